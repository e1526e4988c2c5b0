//! A buyer's licences, and the list of revoked ones, which is everybody's.

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, UnitStatus},
    licence::LicenceKey,
    note::{self, NamedKey},
};
use vitrine_service::{Json, Path, Problem};

use super::{Counter, problems};
use crate::{identity::Person, order::Order};

/// A list is fetched by whoever verifies, all over the world: for so long, in seconds, a cache may answer instead.
const LIST_CACHED: &str = "public, max-age=60";

/// A licence.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LicenceView {
    /// What a person types.
    #[schema(example = "VL-0RRTK-…")]
    key: String,
    /// Its id, which is in the document.
    id: Uuid,
    /// Of which order.
    order: Uuid,
    /// For which product.
    sku: String,
    /// `licensed`, `suspended`, `revoked`, …
    #[schema(value_type = String, example = "licensed")]
    status: UnitStatus,
    /// The signed document: `vitrine licence verify` takes it as it is.
    document: String,
}

fn views(order: &Order) -> Result<Vec<LicenceView>, Problem> {
    let known = order.facts();
    let signed = order
        .licences
        .iter()
        .filter_map(|(unit, licence)| Some((unit, licence, licence.signature.as_ref()?)));
    signed
        .map(|(unit, licence, signature)| {
            let key = NamedKey::read(&licence.key).map_err(|error| problems::internal(&error))?;
            let document = note::signed(&licence.text, &key, signature);
            Ok(LicenceView {
                key: licence.lookup.to_string(),
                id: licence.id,
                order: order.id,
                sku: order.line(*unit).map(|line| line.sku.clone()).unwrap_or_default(),
                status: facts::unit_status(&known, *unit),
                // Notes are text.
                document: String::from_utf8_lossy(&document).into_owned(),
            })
        })
        .collect()
}

/// The caller's licences.
#[utoipa::path(
    get, path = "/api/v1/marketplace/licenses", tag = "licences", security(("oidc" = [])),
    responses((status = 200, body = [LicenceView]), (status = "4XX", description = "A problem"))
)]
pub(super) async fn list(
    State(counter): State<Counter>,
    person: Person,
) -> Result<Json<Vec<LicenceView>>, Problem> {
    let account = person.account(&counter.shop).await?;
    let orders = counter.shop.licensed_orders(account).await;
    let mut all = vec![];
    for found in orders.map_err(|error| problems::store(&error))? {
        all.extend(views(&found.order)?);
    }
    Ok(Json(all))
}

/// One of the caller's licences, by its key.
#[utoipa::path(
    get, path = "/api/v1/marketplace/licenses/{key}", tag = "licences", security(("oidc" = [])), params(("key" = String, Path)),
    responses((status = 200, body = LicenceView), (status = "4XX", description = "A problem"))
)]
pub(super) async fn read(
    State(counter): State<Counter>,
    person: Person,
    Path(key): Path<String>,
) -> Result<Json<LicenceView>, Problem> {
    let no_such = || {
        Problem::new(
            StatusCode::NOT_FOUND,
            "licence-unknown",
            "there is no such licence",
        )
    };
    let key: LicenceKey = key
        .parse()
        .map_err(|error: vitrine_commerce::licence::BadLicenceKey| no_such().detail(error))?;
    let order = counter
        .shop
        .order_of_licence(&key.to_string())
        .await
        .map_err(|error| problems::store(&error))?;
    // Of another's it is not told that there is one.
    let order = person
        .order(&counter.shop, order.ok_or_else(no_such)?)
        .await
        .map_err(|_| no_such())?;
    let found = views(&order.order)?
        .into_iter()
        .find(|licence| licence.key == key.to_string());
    found.map(Json).ok_or_else(no_such)
}

/// The newest list of revoked licences, signed.
#[utoipa::path(
    get, path = "/revocations", tag = "licences",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn revocations(State(counter): State<Counter>) -> Result<Response, Problem> {
    let list = counter
        .shop
        .newest_revocations()
        .await
        .map_err(|error| problems::store(&error))?;
    let list = list.ok_or_else(|| Problem::unavailable("there is no revocation list yet"))?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, LIST_CACHED),
    ];
    Ok((headers, list).into_response())
}
