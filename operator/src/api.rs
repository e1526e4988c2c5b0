//! The client of the API server that every program uses. Connects to what the kubeconfig or the pod says.
//!
//! kube's own client leaves a connection alone that the other side has forgotten: its end was lost with an API server that was started
//! anew while the network dropped packets. A watch on such a connection hears nothing for the five minutes of kube's idle
//! time-out, and the operator saw no new preview meanwhile. client-go keeps its connections alive, and so does this.

use std::{fmt::Debug, time::Duration};

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, PartialObjectMeta},
    client::{Body, ClientBuilder, ConfigExt, retry::RetryPolicy},
    runtime::utils::Backoff,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tower::{BoxError, ServiceBuilder, retry::RetryLayer, timeout::TimeoutLayer};

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

/// An answer begins within this, or never: an API server gives up a request, other than a watch, after a minute (kube-apiserver,
/// `--request-timeout`), and a watch answers at once. A load balancer may keep a connection alive behind which nobody is.
const ANSWERED: Duration = Duration::from_secs(65);
/// An API server that is overloaded says when to ask again; where a load balancer answers for one that is away, it is asked after this first, …
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// … then after twice as long each time, and at most this: it is back at some moment, and kube's own pauses grow to a quarter of an hour.
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// What failed so often is told to who asked, who tries again in his own way.
const RETRIES: u32 = 10;

/// Bytes that are read from a connection at once: a TLS record has no more (RFC 8446, 5.1). hyper's own limit is 400 KiB, each connection on
/// which a page of a list has come keeps as much as that took, and a start with three thousand previews kept 15 MB of it.
const BUFFER: usize = 16 * 1024;
/// Connections that are kept while nobody asks for anything, each some 60 KiB here and as much at the API server. For ever, as far as hyper is
/// concerned.
const IDLE: usize = 32;

/// A watch that broke is begun again after one to two times this: a handful of watches, and not all at once. kube's own pause grows to
/// half a minute, for which a gateway knows no new preview after the API server is back.
const AGAIN: Duration = Duration::from_secs(1);

/// Objects in one answer to a list. A page of pods is a megabyte of JSON, and several kinds are listed at once.
pub const PAGE: u32 = 100;
/// The same where they are told of by their metadata alone: half a megabyte. An answer takes some ten milliseconds, however few are in it,
/// and the slots of ten thousand previews would be five hundred answers of a hundred.
pub const PAGE_OF_METADATA: u32 = 500;

/// Shows the metadata of every object with these labels, as they are now and a page at a time: ten thousand at once would be as large as all
/// that an operator keeps.
///
/// # Errors
/// If the API server refuses, or has forgotten what it began to list.
pub async fn each_in<K>(
    api: &Api<K>,
    labels: &str,
    mut show: impl FnMut(&PartialObjectMeta<K>),
) -> kube::Result<()>
where
    K: Clone + DeserializeOwned + Debug,
{
    // Nobody waits for the last of them, and five hundred with what the API server keeps in them are four megabytes.
    let mut page = ListParams::default().labels(labels).limit(PAGE);
    loop {
        let list = api.list_metadata(&page).await?;
        list.items.iter().for_each(&mut show);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// In the metadata of a patch, as its `managedFields`: that it is not tracked who has set which field (Kubernetes "Server-Side Apply",
/// clearing managedFields). Of a cell's namespace only Vitrine writes anything, and of what is about to go nobody asks; the API server took a
/// tenth of its time to keep the books.
pub fn untracked() -> Value {
    json!([{}])
}

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
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .http1_max_buf_size(BUFFER)
        .pool_max_idle_per_host(IDLE)
        .build(bounded);
    let again = RetryPolicy::new(FIRST_RETRY, LONGEST_RETRY, RETRIES, true)
        .map_err(|error| Error::Setting(error.to_string()))?;
    // The layers, and their order, of kube's own client (`ClientBuilder::try_from`).
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(again))
        .layer(TimeoutLayer::new(ANSWERED))
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
