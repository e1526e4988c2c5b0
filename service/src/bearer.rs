//! Tokens by which one of our programs knows another. Reads a file.

use std::{path::Path, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::problem::Problem;

/// In characters: 32 random ones of base 64 are 192 bits.
const SHORTEST: usize = 32;

/// A token, of which only the hash is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// A token that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// The file cannot be read.
    #[error("failed to read the token in {0}: {1}")]
    Unreadable(String, String),
    /// Somebody could guess it.
    #[error(
        "the token in {0} is shorter than {SHORTEST} characters; make one with `openssl rand -base64 48`"
    )]
    Short(String),
}

impl Token {
    /// Reads one from a file; white space around it does not count.
    ///
    /// # Errors
    /// If there is none that could be used.
    pub fn read(path: &Path) -> Result<Self, BadToken> {
        let shown = || path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| BadToken::Unreadable(shown(), error.to_string()))?;
        if text.trim().len() < SHORTEST {
            return Err(BadToken::Short(shown()));
        }
        Ok(Self(Sha256::digest(text.trim()).into()))
    }

    /// Whether a request has it. Hashes are compared: how long that takes says nothing of the token.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        let said = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        said.and_then(|said| said.strip_prefix("Bearer "))
            .is_some_and(|said| <[u8; 32]>::from(Sha256::digest(said)) == self.0)
    }
}

/// Lets nobody in who has not the token; a layer of routes.
pub async fn known(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    if token.is_in(request.headers()) {
        next.run(request).await
    } else {
        Problem::new(StatusCode::UNAUTHORIZED, "unknown-caller", "who is asking?")
            .detail("send Authorization: Bearer with the token of this installation")
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        let token = Token(Sha256::digest("a".repeat(40)).into());
        let with = |value: &str| HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
        assert!(token.is_in(&with(&format!("Bearer {}", "a".repeat(40)))));
        for wrong in ["Bearer a", "Bearer ", "Basic YQ==", &"a".repeat(40)] {
            assert!(!token.is_in(&with(wrong)), "{wrong}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
    }
}
