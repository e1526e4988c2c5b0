//! Errors as they are answered: problem details (RFC 9457) with a stable code. Touches nothing.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// Their media type.
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// The type of a problem that its HTTP status says all of (RFC 9457, section 4.2.1).
const STATUS_TYPE: &str = "about:blank";

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where it is explained; `about:blank` where there is nothing to explain.
    #[serde(rename = "type")]
    pub kind: String,
    /// HTTP status.
    pub status: u16,
    /// In one stable word, by which programs tell problems apart: `order-unknown`. Never changed, never used again for something else.
    pub code: &'static str,
    /// In few words, the same for each of its code.
    pub title: &'static str,
    /// What it is about this time, and what can be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The request, as it is found in the service's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl Problem {
    /// A problem.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self {
            kind: STATUS_TYPE.to_owned(),
            status: status.as_u16(),
            code,
            title,
            detail: String::new(),
            instance: None,
        }
    }

    /// The same, of this.
    #[must_use]
    pub fn detail(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = detail.to_string();
        self
    }

    /// Something that is not the caller's fault. What it was is in the log only.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong here",
        )
        .detail("it is in the log; ask with the request's id")
    }

    /// Something that will be over soon.
    pub fn unavailable(detail: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "not now; ask again",
        )
        .detail(detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        // So that whoever adds the request's id need not read it again.
        response.extensions_mut().insert(self);
        response
    }
}
