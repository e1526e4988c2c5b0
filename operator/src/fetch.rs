//! One GET of a small page of another part of Vitrine, with a bound on time and size. Holds no state.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Uri, body::Bytes};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// Gets a page of at most so many bytes.
///
/// # Errors
/// In words: not an address, no answer in time, an answer that is no success, or more bytes than that.
pub async fn get(uri: &str, patience: Duration, max_bytes: usize) -> Result<Bytes, String> {
    let address: Uri = uri.parse().map_err(|e| format!("{uri}: {e}"))?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(patience, async {
        let response = client.get(address).await.map_err(|e| e.to_string())?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), max_bytes).collect().await;
        body.map(|body| body.to_bytes()).map_err(|e| e.to_string())
    });
    answer
        .await
        .map_err(|_| format!("no answer within {} s", patience.as_secs()))?
}
