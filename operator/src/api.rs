//! The client of the API server that every program uses. Connects to what the kubeconfig or the pod says.
//!
//! kube's own client leaves a connection alone that the other side has forgotten: its end was lost with an API server that was started
//! anew while the network dropped packets. A watch on such a connection hears nothing for the five minutes of kube's idle
//! time-out, and the operator saw no new preview meanwhile. client-go keeps its connections alive, and so does this.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt, retry::RetryPolicy},
    runtime::utils::Backoff,
};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer};

use crate::error::{Error, Result};

/// An API server that is there takes a connection at once, TLS included; while it is not, packets to it may be dropped instead of
/// refused, and a load balancer before it may take connections that lead nowhere.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing was heard for so long is asked whether it is still there, …
const SILENT: Duration = Duration::from_secs(5);
/// … again after so long, …
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// … and so often.
const ASKED: u32 = 3;
/// What was sent and not acknowledged for so long was sent to nobody. So are questions whether it is still there (tcp(7),
/// `TCP_USER_TIMEOUT`): with 20 s, a gateway did not know of a ready preview half a minute after an API server had come back.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A watch that broke is begun again after one to two times this: a handful of watches, and not all at once. kube's own pause grows to
/// half a minute, for which a gateway knows no new preview after the API server is back.
const AGAIN: Duration = Duration::from_secs(1);

/// When a watch that broke is begun again.
#[derive(Debug)]
pub struct Again;

impl Iterator for Again {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(AGAIN.mul_f64(1.0 + rand::random::<f64>()))
    }
}

impl Backoff for Again {
    fn reset(&mut self) {}
}

/// The client that every program uses.
///
/// # Errors
/// If no cluster is configured.
pub async fn client() -> Result<Client> {
    let config = Config::infer().await.map_err(|error| {
        Error::Setting(format!(
            "no Kubernetes cluster is configured ({error}); set KUBECONFIG or run inside a pod"
        ))
    })?;
    connect(config)
}

/// A client of what a configuration names.
///
/// # Errors
/// If it names a proxy, which Vitrine's parts cannot go through, or its certificates or credentials cannot be used.
pub fn connect(config: Config) -> Result<Client> {
    if let Some(proxy) = &config.proxy_url {
        return Err(Error::Setting(format!(
            "the API server is behind the proxy {proxy}, and Vitrine's parts go through none"
        )));
    }
    let unusable = |error: kube::Error| Error::Setting(format!("{}: {error}", config.cluster_url));
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(SILENT));
    connector.set_keepalive_interval(Some(ASK_AGAIN));
    connector.set_keepalive_retries(Some(ASKED));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config
        .rustls_https_connector_with_connector(connector)
        .map_err(unusable)?;
    let mut bounded = TimeoutConnector::new(https);
    bounded.set_connect_timeout(Some(CONNECT));
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(bounded);
    // The layers, and their order, of kube's own client (`ClientBuilder::try_from`).
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(RetryPolicy::server_retry()))
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
