//! A sink of receipts that answers as it is told and remembers what it got. Listens on one port of this machine.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The `Idempotency-Key`.
    pub id: String,
    /// The media type.
    pub content_type: String,
    /// The `Authorization`.
    pub authorization: Option<String>,
    /// The body.
    pub body: String,
    /// What was answered.
    pub answer: u16,
}

/// A sink. Serves until the runtime ends.
pub struct Sink {
    /// Where it is, as an address for the operator.
    pub url: String,
    /// The certificate of its authority, PEM, if it speaks TLS.
    pub authority: Option<String>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    down: Mutex<bool>,
    refused: Mutex<BTreeMap<String, u16>>,
    got: Mutex<Vec<Delivery>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sink {
    /// Starts one that takes everything.
    ///
    /// # Panics
    /// If no port is free.
    pub async fn start(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("a listener has an address");
        let state = Arc::new(State::default());
        let (acceptor, authority) = if tls {
            let (acceptor, authority) = certified();
            (Some(acceptor), Some(authority))
        } else {
            (None, None)
        };
        let scheme = if tls { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}/receipts", address.port());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (shared.clone(), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(stream, state).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            url,
            authority,
            state,
        }
    }

    /// From now on it answers 503, or no longer does.
    pub fn set_down(&self, down: bool) {
        *lock(&self.state.down) = down;
    }

    /// Answers this for one receipt from now on.
    pub fn refuse(&self, id: &str, status: u16) {
        lock(&self.state.refused).insert(id.to_owned(), status);
    }

    /// What came so far, acknowledged or not.
    pub fn got(&self) -> Vec<Delivery> {
        lock(&self.state.got).clone()
    }

    /// The receipts that were acknowledged, by id.
    pub fn acknowledged(&self) -> BTreeMap<String, Vec<String>> {
        let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for delivery in self.got().into_iter().filter(|d| d.answer == 201) {
            taken.entry(delivery.id).or_default().push(delivery.body);
        }
        taken
    }
}

fn certified() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate of its own key");
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let state = state.clone();
        async move { answer(request, &state).await }
    });
    // The operator hangs up when it likes.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(request: Request<Incoming>, state: &State) -> hyper::Result<Response<Full<Bytes>>> {
    let header = |name: &str| {
        let value = request.headers().get(name)?;
        Some(value.to_str().unwrap_or_default().to_owned())
    };
    let (id, content_type) = (header("idempotency-key"), header(CONTENT_TYPE.as_str()));
    let authorization = header(AUTHORIZATION.as_str());
    let body = request.into_body().collect().await?.to_bytes();
    let id = id.unwrap_or_default();
    let status = match lock(&state.refused).get(&id) {
        _ if *lock(&state.down) => 503,
        Some(status) => *status,
        None => 201,
    };
    lock(&state.got).push(Delivery {
        id,
        content_type: content_type.unwrap_or_default(),
        authorization,
        body: String::from_utf8_lossy(&body).into_owned(),
        answer: status,
    });
    let mut response = Response::new(Full::from(format!("{status} by the test's sink")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    Ok(response)
}
