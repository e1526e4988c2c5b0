//! Asks the responder's unconfined prober whether targets are up. One HTTP call, no state.

use std::time::Duration;

use vitrine_policies::probe::Outside;

use crate::fetch;

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
        let body = fetch::get(&uri, PATIENCE, MAX_BYTES).await?;
        serde_json::from_slice(&body).map_err(|e| e.to_string())
    }
}
