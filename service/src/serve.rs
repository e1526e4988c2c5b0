//! A service from its first request to its last. Listens on two ports: one for callers, one for who looks after it.

use std::{
    net::SocketAddr,
    process::{ExitCode, Termination},
    time::Duration,
};

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, middleware};
use clap::Args;
use tokio::sync::watch;
use tower_http::timeout::TimeoutLayer;
use vitrine_program::{NotServed, Readiness, listen, logging_beside, until_told};

use crate::{
    metrics,
    metrics::Metrics,
    problem::Problem,
    requests::{self, Callers},
    traces::Traces,
};

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

/// Becomes true when the process is told to end.
pub fn ended() -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        until_told().await;
        let _ = tell.send(true);
    });
    told
}

/// A program of the shop by its name: its log, its traces, its runtime, and what it says when it fails.
pub fn run<T: Termination, E: std::fmt::Display>(
    name: &'static str,
    program: impl Future<Output = Result<T, E>>,
) -> ExitCode {
    let traces = match Traces::wanted(name) {
        Ok(traces) => traces,
        Err(error) => {
            eprintln!("failed to set up traces (OTEL_EXPORTER_OTLP_…): {error}");
            return ExitCode::FAILURE;
        }
    };
    logging_beside(traces.as_ref().map(Traces::beside));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ran = match runtime {
        Ok(runtime) => runtime.block_on(program).map_err(|error| error.to_string()),
        Err(error) => Err(format!("failed to start the runtime: {error}")),
    };
    if let Some(traces) = traces {
        traces.end();
    }
    match ran {
        Ok(done) => done.report(),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves routes until the process is told to end, and then those requests that have begun.
///
/// # Errors
/// If a port cannot be taken.
pub async fn serve(
    routes: Router,
    callers: Callers,
    addresses: Addresses,
    readiness: Readiness,
    metrics: Metrics,
    ended: watch::Receiver<bool>,
) -> Result<(), NotServed> {
    let listener = listen(addresses.listen).await?;
    let watching = watching(addresses.metrics, readiness.clone(), metrics.clone());
    let lingering = async move {
        until(ended).await;
        readiness.missing("service", "it is told to end");
        tokio::time::sleep(LINGERS).await;
    };
    let served = async {
        axum::serve(listener, layered(routes, callers, metrics))
            .with_graceful_shutdown(lingering)
            .await
            .map_err(|source| NotServed {
                address: addresses.listen,
                source,
            })
    };
    tokio::select! {
        watched = watching => watched,
        served = served => served,
    }
}

/// Serves `/healthz`, `/readyz` and `/metrics` until the process ends.
///
/// # Errors
/// If the port cannot be taken.
pub async fn watching(address: SocketAddr, readiness: Readiness, metrics: Metrics) -> Result<(), NotServed> {
    vitrine_program::serve(Router::new(), address, readiness, move || metrics.text()).await
}

async fn until(mut ended: watch::Receiver<bool>) {
    // Whoever would tell is gone: then it ends as well.
    let _ = ended.wait_for(|ended| *ended).await;
}

/// Routes as a service answers them: each request with its id, a limit to its body and its time, and counted; and problems where there is no route.
pub fn layered(routes: Router, callers: Callers, metrics: Metrics) -> Router {
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
        .layer(middleware::from_fn_with_state(callers, requests::with_id))
}
