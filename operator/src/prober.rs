//! Asks the responder's unconfined prober whether targets are up. One HTTP call; remembers only whether the last one was answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;

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
    silent: Arc<AtomicBool>,
    /// Who asks while it is silent.
    one: Arc<Semaphore>,
}

impl Prober {
    /// A prober at a base URL, like `http://10.96.1.2:8082`.
    pub fn new(base: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            silent: Arc::default(),
            one: Arc::new(Semaphore::new(1)),
        }
    }

    /// What each address answers now.
    ///
    /// # Errors
    /// In words, if the prober does not answer.
    pub async fn ask(&self, addresses: &[String]) -> Result<Outside, String> {
        if addresses.is_empty() {
            return Ok(Outside::new());
        }
        // While it is silent one waits for it, not everybody: each who asks has one of the few turns of those whom somebody waits for.
        let _one = if self.silent.load(Ordering::Relaxed) {
            let one = self.one.try_acquire();
            Some(one.map_err(|_| "it did not answer the last time".to_owned())?)
        } else {
            None
        };
        let uri = format!("{}/check?targets={}", self.base, addresses.join(","));
        let body = fetch::get(&uri, PATIENCE, MAX_BYTES).await;
        self.silent.store(body.is_err(), Ordering::Relaxed);
        serde_json::from_slice(&body?).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_asks_beside_another_while_it_is_silent_does_not_wait() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let prober = Prober::new(format!("http://{address}"));
        let targets = ["203.0.113.10:80".to_owned()];
        assert!(prober.ask(&targets).await.is_err());

        let silent = TcpListener::bind(address).await.unwrap();
        let heard = async {
            let asked = silent.accept().await.unwrap();
            let beside = prober.ask(&targets).await.unwrap_err();
            assert_eq!(beside, "it did not answer the last time");
            drop(asked);
        };
        let (first, ()) = tokio::join!(prober.ask(&targets), heard);
        assert!(first.is_err());
        drop(silent);
        assert_ne!(
            prober.ask(&targets).await.unwrap_err(),
            "it did not answer the last time",
            "nobody asks now"
        );
    }
}
