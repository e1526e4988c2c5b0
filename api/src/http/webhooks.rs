//! Where Stripe's events come in. Answers no more than it must: whoever is not Stripe learns nothing.

use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
};
use jiff::Timestamp;
use vitrine_service::Problem;

use super::{Counter, problems};
use crate::flows::webhook::{Rejected, receive};

/// Its header.
const SIGNATURE: &str = "stripe-signature";

/// Takes an event: it is written down when this answers 200.
#[utoipa::path(
    post, path = "/webhooks/stripe", tag = "webhooks", request_body(content = String, content_type = "application/json"),
    params(("Stripe-Signature" = String, Header)),
    responses((status = 200, description = "It is kept"), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn stripe(
    State(counter): State<Counter>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body?;
    let header = headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
    let received = receive(&counter.shop, &counter.endpoint, header, &body, Timestamp::now()).await;
    let outcome = match &received {
        Ok(true) => "new",
        Ok(false) => "known",
        Err(Rejected::Store(_)) => "unavailable",
        Err(_) => "rejected",
    };
    counter.counters.webhooks.with_label_values(&[outcome]).inc();
    match received {
        Ok(_) => Ok(StatusCode::OK),
        Err(Rejected::Store(error)) => Err(problems::store(&error)),
        Err(Rejected::NoEndpoint) => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "route-unknown",
            "there is nothing here",
        )),
        Err(rejected) => {
            tracing::warn!(%rejected, "an event was not taken");
            Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "event-rejected",
                "this event is not taken",
            ))
        }
    }
}
