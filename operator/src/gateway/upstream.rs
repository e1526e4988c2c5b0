//! Connections to a preview's pod: made after the sidecar has said that this is the pod, kept for the next request, ended with the
//! preview. Dials pods.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::{net::TcpStream, sync::watch, time::timeout};
use vitrine_policies::names;

use super::routes::{self, Route, Upstream};

/// How long a pod on the same network may take to accept, and its sidecar to answer.
const DIAL: Duration = Duration::from_secs(5);
/// Idle connections kept for one preview.
const KEPT: usize = 16;
/// A nonce is 32 bytes; what is longer is something else.
const MAX_NONCE: usize = 256;

/// What is sent to a product: a visitor's own body.
pub(super) type Sender = SendRequest<Incoming>;

/// The idle connections to one pod. Made anew when a preview's pod changes, so that none leads to another one.
#[derive(Debug, Default)]
pub(super) struct Idle(Mutex<Vec<Sender>>);

impl Idle {
    fn take(&self) -> Option<Sender> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = kept.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.retain(|sender| !sender.is_closed());
        }
        if kept.len() < KEPT {
            kept.push(sender);
        }
    }
}

/// Sends a request to a pod and waits for the head of its answer.
///
/// # Errors
/// In words, if the pod cannot be reached, is not the one that is meant, or does not answer.
pub(super) async fn send(
    upstream: &Upstream,
    idle: &Arc<Idle>,
    request: Request<Incoming>,
    upgrade: bool,
    route: watch::Receiver<Route>,
    cut: &IntGauge,
) -> Result<Response<Incoming>, String> {
    // A request whose connection the product closed at the same moment is not sent again: it may not bear it. One that was never
    // sent comes back and is.
    let request = match (!upgrade).then(|| idle.take()).flatten() {
        Some(mut kept) => match kept.try_send_request(request).await {
            Ok(response) => {
                keep_when_over(idle, kept);
                return Ok(response);
            }
            Err(mut error) => match error.take_message() {
                Some(request) => request,
                None => return Err(error.into_error().to_string()),
            },
        },
        None => request,
    };
    let mut sender = connect(upstream, route, cut).await?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    if !upgrade {
        keep_when_over(idle, sender);
    }
    Ok(response)
}

/// Once the answer's body has been read the connection can take another request.
fn keep_when_over(idle: &Arc<Idle>, mut sender: Sender) {
    // A short answer is often all there with its head.
    if sender.is_ready() {
        idle.keep(sender);
        return;
    }
    // The table may forget the preview meanwhile: then nobody is to be kept for.
    let idle = Arc::downgrade(idle);
    tokio::spawn(async move {
        if sender.ready().await.is_ok()
            && let Some(idle) = idle.upgrade()
        {
            idle.keep(sender);
        }
    });
}

async fn connect(
    upstream: &Upstream,
    route: watch::Receiver<Route>,
    cut: &IntGauge,
) -> Result<Sender, String> {
    let (stream, same) = tokio::join!(dial(upstream.ip, upstream.port), is_the_pod(upstream));
    same?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream?))
        .await
        .map_err(|e| e.to_string())?;
    let cut = cut.clone();
    tokio::spawn(async move {
        tokio::select! {
            // How the product hangs up shows in the response already.
            _ = connection.with_upgrades() => {}
            () = routes::end(route) => cut.inc(),
        }
    });
    Ok(sender)
}

async fn dial(ip: IpAddr, port: u16) -> Result<TcpStream, String> {
    let dialled = timeout(DIAL, TcpStream::connect((ip, port))).await;
    let stream = dialled
        .map_err(|_| format!("no connection to {ip}:{port} in time"))?
        .map_err(|error| format!("{ip}:{port}: {error}"))?;
    // Small answers must not wait for the acknowledgement of the ones before.
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Whether the pod at the address is this preview's and its cell is sealed: an address that was freed is given to the next pod,
/// and the watch may be behind. Only the sidecar knows the nonce, and nothing else in the pod can have its port.
async fn is_the_pod(upstream: &Upstream) -> Result<(), String> {
    let wrong = |why: String| format!("the pod at {} is not this preview's: {why}", upstream.ip);
    let asked = timeout(DIAL, async {
        let stream = dial(upstream.ip, names::WATCH_PORT).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::get(names::SEALED_PATH)
            .header(hyper::header::HOST, "sidecar")
            .header(hyper::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_NONCE).collect().await;
        Ok::<_, String>((status, body.map_err(|e| e.to_string())?.to_bytes()))
    });
    let (status, nonce) = asked
        .await
        .map_err(|_| wrong("its sidecar does not answer".to_owned()))?
        .map_err(wrong)?;
    if status != StatusCode::OK {
        return Err(wrong(format!("its sidecar answers {status}")));
    }
    if nonce != upstream.nonce.as_bytes() {
        return Err(wrong("it has another nonce".to_owned()));
    }
    Ok(())
}
