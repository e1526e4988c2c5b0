//! The shop's HTTP interface. Turns requests into flows and edges, and what they say into answers; one OpenAPI document is made from this code.

mod admin;
mod catalogue;
mod checkout;
mod licences;
mod orders;
pub(crate) mod problems;
mod views;
mod webhooks;

use std::sync::Arc;

use axum::{Json, Router, middleware, routing::get};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use vitrine_service::{Crowd, with_room};

use crate::{
    bucket::Bucket, flows::webhook::Endpoint, identity::Identity, metrics::Counters,
    outside::stripe::StripeApi, store::postgres::Shop,
};

/// What the routes work with.
#[derive(Clone)]
pub struct Counter {
    /// Orders.
    pub shop: Shop,
    /// Stripe.
    pub stripe: StripeApi,
    /// Where Stripe's events come in.
    pub endpoint: Arc<Endpoint>,
    /// How many requests are looked at where events come in, of those that cannot be Stripe's.
    pub events: Arc<Bucket>,
    /// Who people are.
    pub identity: Arc<Identity>,
    /// How many of them are answered at once.
    pub crowd: Crowd,
    /// What is counted.
    pub counters: Counters,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Vitrine",
        description = "A software marketplace: what is sold, how it is paid, and what is licensed. Errors are problem details (RFC 9457) with a stable `code`.",
    ),
    modifiers(&Bearer),
    tags(
        (name = "catalogue", description = "What is sold"),
        (name = "orders", description = "Buying"),
        (name = "licences", description = "What was bought"),
        (name = "webhooks", description = "What Stripe tells"),
        (name = "admin", description = "For who runs the shop"),
    )
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(
            Http::builder()
                .scheme(HttpAuthScheme::Bearer)
                .bearer_format("JWT")
                .build(),
        );
        components.add_security_scheme("oidc", scheme);
    }
}

fn documented(crowd: Crowd) -> OpenApiRouter<Counter> {
    let of_people = OpenApiRouter::new()
        .routes(routes!(catalogue::list))
        .routes(routes!(checkout::checkout))
        .routes(routes!(checkout::confirm))
        .routes(routes!(orders::list))
        .routes(routes!(orders::read))
        .routes(routes!(orders::pay))
        .routes(routes!(orders::refund))
        .routes(routes!(licences::list))
        .routes(routes!(licences::read))
        .routes(routes!(licences::revocations))
        .routes(routes!(admin::price))
        .layer(middleware::from_fn_with_state(crowd, with_room));
    // Whoever crowds the shop does not keep it from hearing that somebody has paid.
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(of_people)
        .routes(routes!(webhooks::stripe))
}

/// The OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented(Crowd::of(1)).into_openapi()
}

/// The routes.
pub fn routes(counter: Counter) -> Router {
    let (routes, document) = documented(counter.crowd.clone()).split_for_parts();
    routes
        .route("/openapi.json", get(async move || Json(document)))
        .with_state(counter)
}

#[cfg(test)]
mod tests {
    /// `UPDATE_GOLDEN=1 cargo test -p vitrine-api openapi` writes it anew.
    #[test]
    fn the_openapi_document_is_the_one_that_is_committed() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let now = super::openapi().to_pretty_json().unwrap() + "\n";
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            now == committed,
            "api/openapi.json is not what the code says; run `UPDATE_GOLDEN=1 cargo test -p vitrine-api openapi`"
        );
    }
}
