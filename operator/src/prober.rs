//! Asks the responder's unconfined prober whether targets are up. One HTTP call, no state.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use vitrine_policies::probe::Outside;

/// The prober itself waits one second for a target (`responder::PATIENCE`).
const PATIENCE: Duration = Duration::from_secs(4);
/// A list of a few addresses.
const MAX_BYTES: usize = 64 * 1024;
/// The port of the responder's control server.
pub const CONTROL_PORT: u16 = 8082;

/// Where the prober is.
#[derive(Clone, Debug)]
pub struct Prober {
    base: String,
}

impl Prober {
    /// A prober at a base URL, like `http://10.96.1.2:8082`.
    pub fn new(base: impl Into<String>) -> Self {
        Self { base: base.into() }
    }

    /// What each address answers now.
    ///
    /// # Errors
    /// In words, if the prober does not answer.
    pub async fn ask(&self, addresses: &[String]) -> Result<Outside, String> {
        if addresses.is_empty() {
            return Ok(Outside::new());
        }
        let uri = format!("{}/check?targets={}", self.base, addresses.join(","));
        let uri = uri.parse().map_err(|e| format!("{uri}: {e}"))?;
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let answer = tokio::time::timeout(PATIENCE, async {
            let response = client.get(uri).await.map_err(|e| e.to_string())?;
            if !response.status().is_success() {
                return Err(format!("it answered {}", response.status()));
            }
            Limited::new(response.into_body(), MAX_BYTES)
                .collect()
                .await
                .map_err(|e| e.to_string())
        });
        let body = answer
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())
    }
}
