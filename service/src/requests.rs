//! Each request has an id: its caller's, or one of ours. It is in the answer, in the log and in every problem. Touches the log.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::{Instrument, field::Empty};
use uuid::Uuid;
use vitrine_commerce::pan;

use crate::{problem::Problem, traces};

/// The header.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A caller's id may be so long, in bytes: longer ones are for somebody who wants to fill the log.
const LONGEST: usize = 128;

fn is_sound(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=LONGEST).contains(&id.len()) && id.bytes().all(is_plain) && !pan::is_in(id)
}

/// Who calls a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Anybody. What they say of traces is not believed: they could fill any.
    Anybody,
    /// Services of ours, whose traces go on.
    Ours,
}

/// Gives each request its id, and its span.
pub(crate) async fn with_id(State(callers): State<Callers>, request: Request, next: Next) -> Response {
    let said = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let id = said
        .filter(|id| is_sound(id))
        .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    // Its route and not its path: what a caller writes there may be anything, a card's number too.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str);
    let method = request.method();
    let name = format!("{method} {route}");
    // Of the gravest level, that a log which tells of nothing else says which all the same.
    let span = tracing::error_span!("request", id, %method, route, otel.name = name, otel.kind = "server", status = Empty);
    if callers == Callers::Ours {
        traces::go_on(&span, request.headers());
    }
    let asked = span.clone();
    let mut response = next.run(request).instrument(asked).await;
    span.record("status", response.status().as_u16());
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.instance = Some(format!("urn:request:{id}"));
        let headers = std::mem::take(response.headers_mut());
        response = problem.into_response();
        for (name, value) in &headers {
            if !response.headers().contains_key(name) && name != axum::http::header::CONTENT_LENGTH {
                response.headers_mut().append(name, value.clone());
            }
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_forge_a_line_of_the_log_is_none() {
        assert!(is_sound("01JD-7.a_b:c"));
        for bad in ["", "a b", "a\nb", "é", "4242424242424242", &"a".repeat(129)] {
            assert!(!is_sound(bad), "{bad:?}");
        }
    }
}
