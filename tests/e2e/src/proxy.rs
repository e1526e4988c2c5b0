//! A TLS proxy between an operator and the API server, which sees every write and can kill the operator at any of them, or
//! hold one up.
//!
//! It terminates TLS, authenticates upstream as the cluster's administrator (the operator's own name travels as
//! impersonation), and streams answers, so that watches pass. It writes nothing of its own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use kube::{Client, client::Body};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_rustls::TlsAcceptor;

use crate::{eventually::eventually, operator::Victim};

/// One write on its way.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What kind of write it is, like `PUT previewsandboxes/status`.
    pub label: String,
    path: String,
    body: Bytes,
}

impl Seen {
    /// Whether path or body name any of these.
    pub fn names(&self, keys: &[String]) -> bool {
        let body = String::from_utf8_lossy(&self.body);
        keys.iter()
            .any(|key| self.path.contains(key) || body.contains(key))
    }

    /// Events aim at people; nothing is decided by them.
    pub fn is_event(&self) -> bool {
        self.label.ends_with(" events")
    }
}

/// On which side of a write something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The API server has not seen the write, and never does if the operator is killed.
    Before,
    /// The API server has answered, and the operator does not know it, and never does if it is killed.
    After,
}

/// What happens at a write.
#[derive(Clone)]
pub enum Blow {
    /// The operator is killed.
    Kill(Victim),
    /// The write, or its answer, arrives this much later.
    Delay(Duration),
}

/// Something that happens at a write.
pub struct Trap {
    /// At which kind of write.
    pub label: String,
    /// At the how-manieth of that kind, from 0.
    pub nth: usize,
    /// On which side of it.
    pub moment: Moment,
    /// Only writes that name one of these count; none: all.
    pub keys: Vec<String>,
    /// What happens.
    pub blow: Blow,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    trap: Option<(Trap, oneshot::Sender<()>)>,
}

/// The proxy; it serves until the runtime ends.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate by which it is known, PEM.
    pub certificate: String,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts a proxy to the API server of a client.
    ///
    /// # Panics
    /// If it cannot listen: then no test can go on.
    pub async fn start(upstream: Client) -> Self {
        let fail = "the proxy starts";
        let pair = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect(fail);
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(pair.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect(fail)
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .expect(fail);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect(fail);
        let proxy = Self {
            address: listener.local_addr().expect(fail),
            certificate: pair.cert.pem(),
            state: Arc::default(),
        };
        let (state, tls) = (proxy.state.clone(), TlsAcceptor::from(Arc::new(tls)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, upstream, tls) = (state.clone(), upstream.clone(), tls.clone());
                tokio::spawn(async move {
                    // Connections break when the operator is killed, which is what this is for.
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = hyper::service::service_fn(move |request| {
                        handle(request, upstream.clone(), state.clone())
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        proxy
    }

    /// Sets the trap, in place of any other. The receiver resolves when it has sprung.
    pub fn arm(&self, trap: Trap) -> oneshot::Receiver<()> {
        let (fired, fires) = oneshot::channel();
        lock(&self.state).trap = Some((trap, fired));
        fires
    }

    /// Takes the trap away.
    pub fn disarm(&self) {
        lock(&self.state).trap = None;
    }

    /// Waits until a write of this kind has come by, whether or not it was let on.
    pub async fn until_seen(&self, label: &str, patience: Duration) {
        eventually(&format!("a {label} comes by"), patience, async || {
            let seen: Vec<_> = lock(&self.state)
                .seen
                .iter()
                .map(|seen| seen.label.clone())
                .collect();
            if seen.iter().any(|seen| seen == label) {
                Ok(())
            } else {
                Err(seen.join(", "))
            }
        })
        .await;
    }

    /// The writes since the last time this was asked.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.state).seen)
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn handle(
    request: Request<Incoming>,
    upstream: Client,
    state: Arc<Mutex<State>>,
) -> Result<Response<Body>, Failure> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut forward = Request::new(Body::from(body.clone()));
    *forward.method_mut() = head.method.clone();
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    *forward.uri_mut() = target.parse()?;
    *forward.headers_mut() = head.headers;
    for hop in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH] {
        forward.headers_mut().remove(hop);
    }
    let sprung = if [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(&head.method) {
        notice(&state, &head.method, head.uri.path(), body)
    } else {
        None
    };
    let Some((trap, fired)) = sprung else {
        return Ok(passed_on(upstream.send(forward).await?));
    };
    let answer = match (&trap.blow, trap.moment) {
        (Blow::Kill(_), Moment::Before) => None,
        (Blow::Kill(_), Moment::After) => {
            // The whole answer: the API server has done all that it does for this write.
            let answer = upstream.send(forward).await?;
            answer.into_body().collect().await?;
            None
        }
        (Blow::Delay(time), Moment::Before) => {
            tokio::time::sleep(*time).await;
            Some(upstream.send(forward).await?)
        }
        (Blow::Delay(time), Moment::After) => {
            let answer = upstream.send(forward).await?;
            tokio::time::sleep(*time).await;
            Some(answer)
        }
    };
    if let Blow::Kill(victim) = &trap.blow {
        victim.kill();
    }
    // Whoever waits for it may have given up.
    let _ = fired.send(());
    Ok(passed_on(answer.ok_or("the operator was killed")?))
}

/// An answer without what belongs to the connection it came by.
fn passed_on(mut answer: Response<Body>) -> Response<Body> {
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
        answer.headers_mut().remove(hop);
    }
    answer
}

/// Notes a write, and takes the trap out if this is the one it waits for.
fn notice(
    state: &Mutex<State>,
    method: &Method,
    path: &str,
    body: Bytes,
) -> Option<(Trap, oneshot::Sender<()>)> {
    let seen = Seen {
        label: format!("{method} {}", kind(path)),
        path: path.to_owned(),
        body,
    };
    let mut state = lock(state);
    let hit = state.trap.as_mut().is_some_and(|(trap, _)| {
        let counts = trap.label == seen.label && (trap.keys.is_empty() || seen.names(&trap.keys));
        let hit = counts && trap.nth == 0;
        trap.nth -= usize::from(counts && !hit);
        hit
    });
    state.seen.push(seen);
    if hit { state.trap.take() } else { None }
}

/// The resource and subresource of a path of the Kubernetes API.
fn kind(path: &str) -> String {
    let mut parts = path.trim_matches('/').split('/');
    // /api/v1/… and /apis/GROUP/VERSION/…
    let skip = if parts.next() == Some("api") { 1 } else { 2 };
    let rest: Vec<_> = parts.skip(skip).collect();
    let rest = match rest.as_slice() {
        ["namespaces", _, resource, ..] if !matches!(*resource, "status" | "finalize") => &rest[2..],
        other => other,
    };
    match rest {
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
        [] => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn a_path_tells_the_kind_of_a_write() {
        for (path, expected) in [
            ("/api/v1/namespaces", "namespaces"),
            ("/api/v1/namespaces/a", "namespaces"),
            ("/api/v1/namespaces/a/pods", "pods"),
            ("/api/v1/namespaces/a/pods/b", "pods"),
            (
                "/apis/vitrine.dev/v1alpha1/namespaces/a/previewsandboxes/b/status",
                "previewsandboxes/status",
            ),
            ("/apis/events.k8s.io/v1/namespaces/a/events", "events"),
            (
                "/apis/vitrine.dev/v1alpha1/previewpolicies/default",
                "previewpolicies",
            ),
        ] {
            assert_eq!(kind(path), expected, "{path}");
        }
    }
}
