//! What a request says, read: axum's extractors, whose refusals are problems like all others. Touches nothing.

use axum::{
    extract::{
        FromRequest, FromRequestParts,
        rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use vitrine_commerce::pan;

use crate::problem::Problem;

/// A body of JSON; as an answer too.
#[derive(Clone, Copy, Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// The parts of a path.
#[derive(Clone, Copy, Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// A query.
#[derive(Clone, Copy, Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

/// A caller's text, in which there are no control characters but line breaks and tabs: Postgres takes no NUL, and a log no escapes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Text(pub String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let is_odd = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
        if text.contains(is_odd) {
            return Err("a text with a control character in it");
        }
        Ok(Self(text))
    }
}

/// Code and title of the same thing for every kind of body.
const TOO_LARGE: (&str, &str) = ("body-too-large", "the body is too large");

/// What was wrong may have what was sent in it.
fn unreadable(status: StatusCode, code: &'static str, title: &'static str, why: &str) -> Problem {
    Problem::new(status, code, title).detail(pan::masked(why))
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let (status, why) = (rejection.status(), rejection.body_text());
        let (code, title) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => ("body-media-type", "the body has to be application/json"),
            StatusCode::UNPROCESSABLE_ENTITY => ("body-unsound", "the body is not what is asked for here"),
            _ => ("body-malformed", "the body is no JSON"),
        };
        unreadable(status, code, title, &why)
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        let (status, why) = (rejection.status(), rejection.body_text());
        let (code, title) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => TOO_LARGE,
            _ => ("body-cut-off", "the body did not come to its end"),
        };
        unreadable(status, code, title, &why)
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        // What is no id names nothing.
        unreadable(
            StatusCode::NOT_FOUND,
            "path-unsound",
            "there can be nothing by this path",
            &rejection.body_text(),
        )
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        unreadable(
            rejection.status(),
            "query-unsound",
            "the query is not what is asked for here",
            &rejection.body_text(),
        )
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, header},
    };
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        quantity: u32,
    }

    async fn refused(media_type: &str, body: &'static str) -> Problem {
        let request = Request::post("/")
            .header(header::CONTENT_TYPE, media_type)
            .body(Body::from(body))
            .unwrap();
        Json::<Wanted>::from_request(request, &()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_is_a_problem_that_says_why_and_repeats_no_card_number() {
        for (media_type, body, status, code) in [
            ("text/plain", "{}", 415, "body-media-type"),
            ("application/json", "{", 400, "body-malformed"),
            ("application/json", "{}", 422, "body-unsound"),
        ] {
            let problem = refused(media_type, body).await;
            assert_eq!((problem.status, problem.code), (status, code), "{body}");
            assert!(!problem.detail.is_empty());
        }
        let problem = refused("application/json", r#"{"quantity": "4242424242424242"}"#).await;
        assert!(problem.detail.contains("quantity"), "{problem:?}");
        assert!(!problem.detail.contains("4242424242424242"), "{problem:?}");
    }

    #[tokio::test]
    async fn a_query_that_cannot_be_read_is_a_problem() {
        let (mut parts, ()) = Request::get("/?quantity=-1").body(()).unwrap().into_parts();
        let problem = Query::<Wanted>::from_request_parts(&mut parts, &())
            .await
            .unwrap_err();
        assert_eq!((problem.status, problem.code), (400, "query-unsound"));
        let (mut parts, ()) = Request::get("/?quantity=2").body(()).unwrap().into_parts();
        let Query(read) = Query::<Wanted>::from_request_parts(&mut parts, &())
            .await
            .unwrap();
        assert_eq!(read.quantity, 2);
    }
}
