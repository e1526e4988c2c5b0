//! `Idempotency-Key`: the same request asked for again is the same thing (draft-ietf-httpapi-idempotency-key-header). Touches nothing.
//!
//! What is made has an id that follows from account and key, and keeps the hash of the request that made it: no table of answers, which a crash
//! could leave half written.

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use uuid::Uuid;
use vitrine_service::Problem;

/// Its header.
const HEADER: &str = "idempotency-key";
/// In bytes.
const LONGEST: usize = 255;
/// Ids are made in it (RFC 9562, section 5.5); made at random, once.
const NAMESPACE: Uuid = Uuid::from_u128(0x51c2_7b0e_3d84_4a6f_9be1_e2a4_0c95_68d7);

/// A caller's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The id of what an account makes by it.
    pub fn id(&self, account: Uuid, what: &str) -> Uuid {
        Uuid::new_v5(&NAMESPACE, format!("{account}\n{what}\n{}", self.0).as_bytes())
    }
}

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let said = parts.headers.get(HEADER).and_then(|value| value.to_str().ok());
        let sound = said.filter(|said| (1..=LONGEST).contains(&said.len()));
        sound.map(|said| Self(said.to_owned())).ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "key-missing",
                "this needs an Idempotency-Key",
            )
            .detail("send any text of yours, 1 to 255 characters; the same one when you ask again")
        })
    }
}
