//! Where Stripe's events come in. Answers no more than it must: whoever is not Stripe learns nothing.

use axum::{
    body::Bytes,
    extract::{FromRequestParts, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER, request::Parts},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use tokio::time::Instant;
use vitrine_service::Problem;

use super::{Counter, problems};
use crate::{
    flows::webhook::{Rejected, receive},
    stripe_signature,
};

/// Its header.
const SIGNATURE: &str = "stripe-signature";

/// A request that may be Stripe's, or is not one too many of the others (CHK-04): judged before its body is read. What may be Stripe's is always
/// looked at, so that nobody can keep Stripe out.
pub(super) struct NotTooMany;

impl FromRequestParts<Counter> for NotTooMany {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, counter: &Counter) -> Result<Self, Response> {
        let header = parts.headers.get(SIGNATURE);
        let header = header.and_then(|value| value.to_str().ok());
        if stripe_signature::is_plausible(header, Timestamp::now().as_second()) {
            return Ok(Self);
        }
        let Err(wait) = counter.events.take(0.0, Instant::now()) else {
            return Ok(Self);
        };
        counter.counters.webhooks.with_label_values(&["too_many"]).inc();
        let problem = Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many",
            "too many requests; ask again",
        );
        let seconds = wait.as_secs() + 1;
        Err(([(RETRY_AFTER, seconds.to_string())], problem).into_response())
    }
}

/// Takes an event: it is written down when this answers 200.
#[utoipa::path(
    post, path = "/webhooks/stripe", tag = "webhooks", request_body(content = String, content_type = "application/json"),
    params(("Stripe-Signature" = String, Header)),
    responses((status = 200, description = "It is kept"), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn stripe(
    State(counter): State<Counter>,
    _: NotTooMany,
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
