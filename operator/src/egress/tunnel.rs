//! One CONNECT: who asks, for which name, what that turns out to be, and what is really said. Resolves names and dials.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use hickory_resolver::{TokioResolver, config::ResolveHosts};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use super::{
    Metrics, address,
    clients::{self, Client, Clients},
    cluster::Cluster,
    hello::{self, BadHello},
};
use crate::{
    audit::{self, AuditLog},
    error::{Error, Result},
    meter::{self, Metered},
};

/// The ports that a name may be reached on: HTTPS, and HTTP for what has only that.
const TLS: u16 = 443;
const PLAIN: u16 = 80;
/// How long a name may take to be resolved, tries included.
const RESOLVE: Duration = Duration::from_secs(5);
/// How long an address may take to answer, and how many of a name's are tried.
const DIAL: Duration = Duration::from_secs(5);
const ADDRESSES: usize = 3;
/// How long the first bytes of TLS may take.
const HELLO: Duration = Duration::from_secs(10);
/// A name and its port are noted so far, in bytes: a name has at most 253 (RFC 1035, section 2.3.4), a preview may ask for any text.
const TARGET_BYTES: usize = 260;

/// The proxy's one service.
pub(super) struct Proxy {
    clients: Arc<Clients>,
    cluster: Cluster,
    resolver: TokioResolver,
    metrics: Metrics,
    audit: AuditLog,
}

/// Why nothing, or nothing more, goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    NotConnect,
    BadTarget,
    Stranger,
    Port,
    NotAllowed,
    Busy,
    Spent,
    Unresolved,
    Forbidden(&'static str),
    Unreachable,
    Hello(BadHello),
    Slow,
}

impl Stop {
    const fn outcome(self) -> &'static str {
        match self {
            Self::NotConnect => "not_connect",
            Self::BadTarget => "bad_target",
            Self::Stranger => "stranger",
            Self::Port => "port",
            Self::NotAllowed => "not_allowed",
            Self::Busy => "busy",
            Self::Spent => "spent",
            Self::Unresolved => "unresolved",
            Self::Forbidden(_) => "forbidden_address",
            Self::Unreachable => "unreachable",
            Self::Hello(BadHello::NotTls) => "not_tls",
            Self::Hello(BadHello::NoName) => "no_name",
            Self::Hello(BadHello::OtherName) => "other_name",
            Self::Hello(BadHello::Encrypted) => "encrypted_hello",
            Self::Slow => "slow_hello",
        }
    }

    /// Whether the preview asked for what it may not reach. What is slow, busy or gone is nobody's fault.
    const fn is_denial(self) -> bool {
        matches!(self, Self::Port | Self::NotAllowed | Self::Forbidden(_))
    }

    fn response(self) -> Response<Full<Bytes>> {
        let (status, text) = match self {
            Self::NotConnect => (
                StatusCode::METHOD_NOT_ALLOWED,
                "this proxy takes CONNECT only".to_owned(),
            ),
            Self::BadTarget => (
                StatusCode::BAD_REQUEST,
                "CONNECT needs a name and a port".to_owned(),
            ),
            Self::Stranger => (
                StatusCode::FORBIDDEN,
                "no preview with a way out has this address".to_owned(),
            ),
            Self::Port => (
                StatusCode::FORBIDDEN,
                format!("only ports {TLS} and {PLAIN} are open"),
            ),
            Self::NotAllowed => (
                StatusCode::FORBIDDEN,
                "this name is not on the list of listing and platform".to_owned(),
            ),
            Self::Busy => (
                StatusCode::TOO_MANY_REQUESTS,
                "too many connections at a time".to_owned(),
            ),
            Self::Spent => (StatusCode::FORBIDDEN, meter::Spent.to_string()),
            Self::Forbidden(what) => (
                StatusCode::FORBIDDEN,
                format!("this name leads to an address that is no public one: {what}"),
            ),
            Self::Unresolved => (StatusCode::BAD_GATEWAY, "this name has no address".to_owned()),
            Self::Unreachable | Self::Hello(_) | Self::Slow => {
                (StatusCode::BAD_GATEWAY, "nothing answers there".to_owned())
            }
        };
        let mut response = Response::new(Full::from(format!("{text}\n")));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }
}

/// Outcomes of a TLS hello that asks for another name than CONNECT did, or hides which.
const FRONTING: [&str; 2] = [
    Stop::Hello(BadHello::OtherName).outcome(),
    Stop::Hello(BadHello::Encrypted).outcome(),
];

/// Whether a preview came with the name that it asks for now, or is ending: then it did nothing wrong.
fn was_admitted(client: &Client, request: &Request<Incoming>) -> bool {
    let name = request.uri().host().unwrap_or_default().to_ascii_lowercase();
    let permit = client.permit.borrow();
    permit.as_ref().is_none_or(|permit| permit.names.contains(&name))
}

/// What is noted of each tunnel, and of each that was refused.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    time: Timestamp,
    kind: &'static str,
    /// The pod's address.
    source: IpAddr,
    preview: Option<String>,
    preview_uid: Option<String>,
    target: Option<String>,
    address: Option<SocketAddr>,
    outcome: &'static str,
    /// Bytes to the name and from it.
    sent: u64,
    received: u64,
    milliseconds: u128,
}

/// A tunnel that may be opened.
struct Opening {
    name: String,
    port: u16,
    stream: TcpStream,
    _slot: tokio::sync::OwnedSemaphorePermit,
}

impl Proxy {
    pub(super) fn new(
        clients: Arc<Clients>,
        cluster: Cluster,
        metrics: Metrics,
        audit: AuditLog,
    ) -> Result<Self> {
        let mut builder = TokioResolver::builder_tokio().map_err(|error| {
            Error::Setting(format!("failed to read the resolver's configuration: {error}"))
        })?;
        let options = builder.options_mut();
        // What this pod calls other machines is not what a name is called on the internet.
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = builder
            .build()
            .map_err(|error| Error::Setting(format!("failed to start the resolver: {error}")))?;
        Ok(Self {
            clients,
            cluster,
            resolver,
            metrics,
            audit,
        })
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        source: IpAddr,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let begun = Instant::now();
        let mut record = Record {
            time: Timestamp::now(),
            kind: "egress",
            source,
            preview: None,
            preview_uid: None,
            target: request
                .uri()
                .authority()
                .map(|target| audit::cut(target.as_str(), TARGET_BYTES).to_owned()),
            address: None,
            outcome: "",
            sent: 0,
            received: 0,
            milliseconds: 0,
        };
        let client = self.clients.find_soon(source).await;
        if let Some(client) = &client {
            record.preview = client
                .permit
                .borrow()
                .as_ref()
                .map(|permit| permit.preview.clone());
            record.preview_uid = Some(client.uid.clone());
        }
        let opened = self.open(&request, client.as_ref()).await;
        record.address = opened
            .as_ref()
            .ok()
            .and_then(|opening| opening.stream.peer_addr().ok());
        match (opened, client) {
            (Ok(opening), Some(client)) => {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let outcome = self.carry(opening, &client, upgrade, &mut record).await;
                    // Behind a name that it may reach, it asked for another one.
                    if FRONTING.contains(&outcome) {
                        client.denied.fetch_add(1, Ordering::Relaxed);
                    }
                    self.note(record, outcome, begun);
                });
                Ok(Response::new(Full::default()))
            }
            (Err(stop), client) => {
                if let Some(client) = client
                    && stop.is_denial()
                    && !(stop == Stop::NotAllowed && was_admitted(&client, &request))
                {
                    client.denied.fetch_add(1, Ordering::Relaxed);
                }
                self.note(record, stop.outcome(), begun);
                Ok(stop.response())
            }
            // `open` has refused a stranger already.
            (Ok(_), None) => Ok(Stop::Stranger.response()),
        }
    }

    fn note(&self, mut record: Record, outcome: &'static str, begun: Instant) {
        self.metrics.tunnels.with_label_values(&[outcome]).inc();
        let bytes =
            |direction: &str, count: u64| self.metrics.bytes.with_label_values(&[direction]).inc_by(count);
        bytes("sent", record.sent);
        bytes("received", record.received);
        record.outcome = outcome;
        record.milliseconds = begun.elapsed().as_millis();
        self.audit.record(&record);
    }

    async fn open(&self, request: &Request<Incoming>, client: Option<&Client>) -> Result<Opening, Stop> {
        if request.method() != Method::CONNECT {
            return Err(Stop::NotConnect);
        }
        let authority = request.uri().authority().ok_or(Stop::BadTarget)?;
        let port = authority.port_u16().ok_or(Stop::BadTarget)?;
        let name = authority.host().to_ascii_lowercase();
        let client = client.ok_or(Stop::Stranger)?;
        if port != TLS && port != PLAIN {
            return Err(Stop::Port);
        }
        let admitted = client
            .permit
            .borrow()
            .as_ref()
            .is_some_and(|permit| permit.names.contains(&name));
        let allowed = self.clients.allowed().borrow().clone();
        if !admitted || !allowed.names.contains(&name) {
            return Err(Stop::NotAllowed);
        }
        if client.budget.is_spent(allowed.bytes) {
            return Err(Stop::Spent);
        }
        let slot = client
            .tunnels
            .clone()
            .try_acquire_owned()
            .map_err(|_| Stop::Busy)?;
        let addresses = self.resolve(&name).await?;
        let stream = dial(&addresses, port).await.ok_or(Stop::Unreachable)?;
        Ok(Opening {
            name,
            port,
            stream,
            _slot: slot,
        })
    }

    /// Resolves a name once. One forbidden address among its answers, and none of them is dialled: a name that leads inside is
    /// not made by accident.
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Stop> {
        // With the dot at its end no search list applies: "api" must not become a Service of this cluster.
        let looked_up = timeout(RESOLVE, self.resolver.lookup_ip(format!("{name}."))).await;
        let found = looked_up
            .map_err(|_| Stop::Unresolved)?
            .map_err(|_| Stop::Unresolved)?;
        let own = self.cluster.own();
        let addresses: Vec<_> = found.iter().collect();
        match addresses
            .iter()
            .find_map(|address| address::forbidden(*address, &own))
        {
            Some(what) => Err(Stop::Forbidden(what)),
            None if addresses.is_empty() => Err(Stop::Unresolved),
            None => Ok(addresses),
        }
    }

    /// Carries a tunnel to its end, and says what that was.
    async fn carry(
        &self,
        opening: Opening,
        client: &Client,
        upgrade: OnUpgrade,
        record: &mut Record,
    ) -> &'static str {
        let Ok(pod) = upgrade.await else {
            return "hung_up";
        };
        let mut pod = TokioIo::new(pod);
        let limit = self.clients.allowed().borrow().bytes;
        let mut far = Metered::new(opening.stream, client.budget.clone(), limit);
        let count = far.count();
        let carried = async {
            if opening.port == TLS {
                let first = match timeout(HELLO, first_words(&mut pod, &opening.name)).await {
                    Ok(Ok(first)) => first,
                    Ok(Err(stop)) => return stop.outcome(),
                    Err(_) => return Stop::Slow.outcome(),
                };
                if let Err(error) = far.write_all(&first).await {
                    return ended(&error);
                }
            }
            match copy_bidirectional(&mut pod, &mut far).await {
                Ok(_) => "ok",
                Err(error) => ended(&error),
            }
        };
        let outcome = tokio::select! {
            outcome = carried => outcome,
            () = clients::end(&opening.name, client.permit.clone(), self.clients.allowed()) => "cut",
        };
        record.sent = count.written.load(Ordering::Relaxed);
        record.received = count.read.load(Ordering::Relaxed);
        outcome
    }
}

fn ended(error: &std::io::Error) -> &'static str {
    if meter::is_spent(error) {
        Stop::Spent.outcome()
    } else {
        "hung_up"
    }
}

/// Reads what the pod says first, until it is a TLS hello for the name. Nothing of it has gone out by then.
async fn first_words(pod: &mut (impl tokio::io::AsyncRead + Unpin), name: &str) -> Result<Vec<u8>, Stop> {
    let mut first = Vec::with_capacity(1024);
    loop {
        let mut more = [0; 1024];
        let read = pod.read(&mut more).await.unwrap_or(0);
        if read == 0 {
            return Err(Stop::Hello(BadHello::NotTls));
        }
        first.extend_from_slice(&more[..read]);
        if hello::judge(&first, name).map_err(Stop::Hello)?.is_some() {
            return Ok(first);
        }
    }
}

async fn dial(addresses: &[IpAddr], port: u16) -> Option<TcpStream> {
    for address in addresses.iter().take(ADDRESSES) {
        if let Ok(Ok(stream)) = timeout(DIAL, TcpStream::connect((*address, port))).await {
            return Some(stream);
        }
    }
    None
}
