//! `/healthz`, `/readyz` with reasons, `/metrics`: the small server that every long-running program here has. Listens on one port.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

/// What must be so before the program is ready, and is not yet.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Says that something is missing, and why.
    pub fn missing(&self, what: &'static str, why: impl Into<String>) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(what, why.into());
    }

    /// Says that it is there.
    pub fn present(&self, what: &'static str) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(what);
    }

    /// What is missing, a line each; empty when ready.
    pub fn reasons(&self) -> String {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .iter()
            .map(|(what, why)| format!("{what}: {why}\n"))
            .collect()
    }
}

/// A port that is not served.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}: {source}")]
pub struct NotServed {
    /// Which.
    pub address: SocketAddr,
    /// Why.
    pub source: std::io::Error,
}

/// Serves until the process ends, with routes of the program's own.
///
/// # Errors
/// If the port cannot be taken.
pub async fn serve(
    own: Router,
    address: SocketAddr,
    readiness: Readiness,
    metrics: impl Fn() -> String + Clone + Send + Sync + 'static,
) -> Result<(), NotServed> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness)
        .route("/metrics", get(move || async move { metrics() }))
        .merge(own);
    let listener = listen(address).await?;
    axum::serve(listener, router)
        .await
        .map_err(|source| NotServed { address, source })
}

/// Takes a port.
///
/// # Errors
/// If it cannot be taken; says which.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, NotServed> {
    TcpListener::bind(address)
        .await
        .map_err(|source| NotServed { address, source })
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing_until_it_is_there() {
        let readiness = Readiness::default();
        readiness.missing("crds", "previewsandboxes.vitrine.dev is not installed");
        assert_eq!(
            readiness.reasons(),
            "crds: previewsandboxes.vitrine.dev is not installed\n"
        );
        readiness.present("crds");
        assert_eq!(readiness.reasons(), "");
    }
}
