//! `gateway`: the one way in. Carries requests and WebSockets to previews by signed, expiring links, and closes every
//! connection by its own clock. Reads previews, the policy and link keys; writes nothing to the cluster.
//!
//! `forward` judges a request, `upstream` dials, `routes` and `usage` know previews and their visitors, `visit` notes.

mod forward;
mod headers;
mod routes;
mod upstream;
mod usage;
mod visit;

pub use usage::{ACTIVITY_PATH, Activity, Seen};

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use axum::{Json, Router, routing::get};
use clap::Args;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpStream;
use vitrine_program::{Readiness, until_told};

use crate::{
    api,
    audit::AuditLog,
    error::{Error, Result},
};
use forward::Gateway;
use routes::Routes;
use visit::Book;

/// Settings of the gateway.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The namespace of Vitrine itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vitrine-system")]
    namespace: String,
    /// Where previews are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Where `/healthz`, `/readyz`, `/metrics` and `/activity` are served.
    #[arg(long, default_value = "0.0.0.0:8081")]
    admin_listen: SocketAddr,
    /// The file for audit records; standard output if there is none.
    #[arg(long, env = "VITRINE_AUDIT_LOG")]
    audit_log: Option<PathBuf>,
}

/// What is counted.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Requests by outcome.
    pub(crate) requests: IntCounterVec,
    /// Bytes to visitors.
    pub(crate) bytes: IntCounter,
    /// Connections that the gateway's clock ended.
    pub(crate) cut: IntGauge,
}

impl Metrics {
    fn new(audit: &AuditLog) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("vitrine_gateway_requests_total", "requests by outcome"),
            &["outcome"],
        )?;
        let bytes = IntCounter::new(
            "vitrine_gateway_bytes_total",
            "bytes of answers to visitors, without heads",
        )?;
        let cut = IntGauge::new(
            "vitrine_gateway_cut",
            "connections that were ended because their preview was",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(cut.clone()))?;
        registry.register(Box::new(audit.dropped()))?;
        Ok(Self {
            registry,
            requests,
            bytes,
            cut,
        })
    }

    fn text(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# failed to encode the metrics: {error}\n"))
    }
}

/// Runs until told to stop.
///
/// # Errors
/// If a port cannot be taken or no cluster is configured.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = api::client().await?;
    let audit = AuditLog::begin(arguments.audit_log.as_deref())?;
    let metrics = Metrics::new(&audit).map_err(|e| Error::Setting(e.to_string()))?;
    let readiness = Readiness::default();
    let routes = Arc::new(Routes::default());
    let for_text = metrics.clone();
    let for_activity = routes.clone();
    let activity = get(move || std::future::ready(Json(for_activity.activity())));
    let admin = vitrine_program::serve(
        Router::new().route(ACTIVITY_PATH, activity),
        arguments.admin_listen,
        readiness.clone(),
        move || for_text.text(),
    );
    let gateway = Arc::new(Gateway::new(routes.clone(), Book { audit, metrics }));
    tokio::select! {
        result = admin => Ok(result?),
        result = listen(arguments.listen, gateway) => result,
        () = routes::follow(client, &arguments.namespace, &routes, &readiness) => Ok(()),
        () = until_told() => Ok(()),
    }
}

async fn listen(address: SocketAddr, gateway: Arc<Gateway>) -> Result<()> {
    let listener = vitrine_program::listen(address).await?;
    tracing::info!(%address, "carrying previews");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer.ip(), gateway.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one visitor's connection until it ends or its preview does.
async fn connection(stream: TcpStream, source: IpAddr, gateway: Arc<Gateway>) {
    let lifeline = Arc::new(routes::Lifeline::default());
    // The end of an answer must not wait for the acknowledgement of its beginning. If it cannot be set the connection is over.
    let _ = stream.set_nodelay(true);
    let for_service = lifeline.clone();
    let service = service_fn(move |request| {
        let (gateway, lifeline) = (gateway.clone(), for_service.clone());
        async move { gateway.answer(request, source, &lifeline).await }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // A visitor that sends no header for 30 s is gone.
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(30));
    let served = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        // How a visitor hangs up is no concern of ours.
        _ = served => {}
        () = lifeline.cut() => {}
    }
}
