//! What is counted of requests, as Prometheus reads it. In memory.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use prometheus::{HistogramOpts, HistogramVec, Registry, TextEncoder};

/// Seconds, from what memory answers to what is given up.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// A service's metrics. What it counts itself is registered in [`Metrics::registry`].
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    seconds: HistogramVec,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let registry = Registry::new();
        let options = HistogramOpts::new(
            "vitrine_http_request_seconds",
            "How long requests took, by route and status.",
        )
        .buckets(BUCKETS.to_vec());
        let seconds = HistogramVec::new(options, &["method", "route", "status"])
            .unwrap_or_else(|error| unreachable!("the metric's name is sound: {error}"));
        registry
            .register(Box::new(seconds.clone()))
            .unwrap_or_else(|error| unreachable!("the registry was empty: {error}"));
        Self { registry, seconds }
    }

    /// Where a service registers what it counts itself.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

/// Counts a request. By its route and not its path, of which there are as many as callers like.
pub(crate) async fn counted(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().to_string();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    metrics
        .seconds
        .with_label_values(&[&method, &route, &status])
        .observe(begun.elapsed().as_secs_f64());
    response
}
