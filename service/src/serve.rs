//! A service from its first request to its last. Listens on two ports: one for callers, one for who looks after it.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    middleware,
    routing::get,
};
use clap::Args;
use tokio::{net::TcpListener, signal::unix::SignalKind, sync::watch};
use tower_http::timeout::TimeoutLayer;

use crate::{health::Readiness, metrics, metrics::Metrics, problem::Problem, requests};

/// Of a body, in bytes, where a route says nothing else.
const LARGEST_BODY: usize = 1 << 20;
/// Of a request, where nobody waits any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// A load balancer asks every few seconds whether a service is ready: for so long it still takes requests after it has said that it is not.
const LINGERS: Duration = Duration::from_secs(5);

/// Where a service listens.
#[derive(Args, Clone, Copy, Debug)]
pub struct Addresses {
    /// For callers.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// For `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, default_value = "0.0.0.0:9090")]
    pub metrics: SocketAddr,
}

/// Why a service does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port is taken.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It broke.
    #[error("the server ended: {0}")]
    Ended(std::io::Error),
}

/// Becomes true when the process is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// If signals cannot be had.
pub fn ended() -> std::io::Result<watch::Receiver<bool>> {
    let (tell, told) = watch::channel(false);
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = tell.send(true);
    });
    Ok(told)
}

/// Serves routes until the process is told to end, and then those requests that have begun.
///
/// # Errors
/// If a port cannot be taken.
pub async fn serve(
    routes: Router,
    addresses: Addresses,
    readiness: Readiness,
    metrics: Metrics,
    ended: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (callers, watchers) = (listen(addresses.listen).await?, listen(addresses.metrics).await?);
    let for_watchers = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness.clone())
        .route(
            "/metrics",
            get(async |State(metrics): State<Metrics>| metrics.text()),
        )
        .with_state(metrics.clone());
    let watching = tokio::spawn(async move { axum::serve(watchers, for_watchers).await });
    let lingering = async move {
        until(ended).await;
        readiness.missing("service", "it is told to end");
        tokio::time::sleep(LINGERS).await;
    };
    let served = axum::serve(callers, layered(routes, metrics))
        .with_graceful_shutdown(lingering)
        .await;
    watching.abort();
    served.map_err(ServeError::Ended)
}

async fn until(mut ended: watch::Receiver<bool>) {
    // Whoever would tell is gone: then it ends as well.
    let _ = ended.wait_for(|ended| *ended).await;
}

fn layered(routes: Router, metrics: Metrics) -> Router {
    routes
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "route-unknown", "there is nothing here"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-unknown",
                "this cannot be done here",
            )
        })
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            PATIENCE,
        ))
        .layer(middleware::from_fn_with_state(metrics, metrics::counted))
        .layer(middleware::from_fn(requests::with_id))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, reasons)
    }
}
