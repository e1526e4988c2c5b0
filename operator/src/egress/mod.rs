//! `egress`: the one way out. Carries a preview's TLS to the exact names that platform and listing allow, and to nothing else.
//! Reads previews, the policy and the cluster's own addresses; writes nothing to the cluster.
//!
//! `address` and `hello` are pure; `clients` and `cluster` know who asks and what is the cluster's own; `tunnel` dials.

mod address;
mod clients;
mod cluster;
mod hello;
mod tunnel;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use axum::{Json, Router, routing::get};
use clap::Args;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use tokio::net::TcpStream;
use vitrine_crds::PreviewPolicySpec;
use vitrine_program::{Readiness, until_told};

use crate::{
    api,
    audit::AuditLog,
    error::{Error, Result},
    follow,
};
use clients::Clients;
use cluster::Cluster;
use tunnel::Proxy;

/// A pod that sends no CONNECT for so long is not going to.
const HEAD: Duration = Duration::from_secs(10);

/// Where the proxy tells the operator how often it has refused each preview, by uid.
pub const DENIALS_PATH: &str = "/denials";

/// Settings of the egress proxy.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Where previews ask.
    #[arg(long, default_value = "0.0.0.0:3128")]
    listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
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
    /// Tunnels by outcome.
    pub(crate) tunnels: IntCounterVec,
    /// Bytes by direction.
    pub(crate) bytes: IntCounterVec,
}

impl Metrics {
    fn new(audit: &AuditLog) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let tunnels = IntCounterVec::new(
            Opts::new("vitrine_egress_tunnels_total", "tunnels asked for, by outcome"),
            &["outcome"],
        )?;
        let bytes = IntCounterVec::new(
            Opts::new("vitrine_egress_bytes_total", "bytes of tunnels, by direction"),
            &["direction"],
        )?;
        registry.register(Box::new(tunnels.clone()))?;
        registry.register(Box::new(bytes.clone()))?;
        registry.register(Box::new(audit.dropped()))?;
        Ok(Self {
            registry,
            tunnels,
            bytes,
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
/// If a port cannot be taken, no cluster is configured, or the resolver's configuration cannot be read.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = api::client().await?;
    let audit = AuditLog::begin(arguments.audit_log.as_deref())?;
    let metrics = Metrics::new(&audit).map_err(|e| Error::Setting(e.to_string()))?;
    let readiness = Readiness::default();
    let (clients, cluster) = (Arc::new(Clients::default()), Cluster::default());
    let for_text = metrics.clone();
    let for_denials = clients.clone();
    let denials = get(move || std::future::ready(Json(for_denials.denials())));
    let admin = vitrine_program::serve(
        Router::new().route(DENIALS_PATH, denials),
        arguments.admin_listen,
        readiness.clone(),
        move || for_text.text(),
    );
    let proxy = Arc::new(Proxy::new(clients.clone(), cluster.clone(), metrics, audit)?);
    follow::not_read_yet(&readiness);
    tokio::select! {
        result = admin => Ok(result?),
        result = listen(arguments.listen, proxy) => result,
        () = follow::previews(client.clone(), clients.as_ref(), &readiness) => Ok(()),
        () = follow::policy(client.clone(), |policy| allow(&clients, policy), &readiness) => Ok(()),
        () = cluster.follow(client, &readiness) => Ok(()),
        () = until_told() => Ok(()),
    }
}

/// What the policy allows from now on; nothing without one. A name that is taken off its list is shut at once.
fn allow(clients: &Clients, policy: Option<PreviewPolicySpec>) {
    let bytes = policy.as_ref().map(|policy| policy.traffic.egress_limit());
    let names = policy.into_iter().flat_map(|policy| policy.egress.allowed_names);
    clients.allow(names.collect(), bytes.unwrap_or_default());
}

async fn listen(address: SocketAddr, proxy: Arc<Proxy>) -> Result<()> {
    let listener = vitrine_program::listen(address).await?;
    tracing::info!(%address, "carrying previews' way out");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(stream, peer, proxy.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, proxy: Arc<Proxy>) {
    let service = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { proxy.answer(request, peer.ip()).await }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false);
    // How a pod hangs up is no concern of ours.
    let _ = builder
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}
