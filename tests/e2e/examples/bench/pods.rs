//! Stands in for the pods of nodes that run nothing: product and sidecar on every loopback address that such a pod has. Listens.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use vitrine_policies::names;

/// What the product of [`vitrine_kit::objects::stub`] listens on.
pub const PORT: u16 = 8090;
/// A small page.
const PAGE: [u8; 1024] = [b'x'; 1024];

/// What each pod's sidecar says, by the pod's address.
#[derive(Clone, Default)]
pub struct Nonces(Arc<RwLock<HashMap<IpAddr, String>>>);

impl Nonces {
    /// The pod at an address says this.
    pub fn at(&self, ip: IpAddr, nonce: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(ip, nonce.to_owned());
    }

    fn of(&self, ip: IpAddr) -> Option<String> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&ip)
            .cloned()
    }
}

/// Serves all products and all sidecars until the runtime ends.
pub async fn serve() -> Nonces {
    let nonces = Nonces::default();
    let products = TcpListener::bind(("0.0.0.0", PORT)).await.unwrap();
    let sidecars = TcpListener::bind(("0.0.0.0", names::WATCH_PORT)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = products.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(product(stream));
        }
    });
    let known = nonces.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = sidecars.accept().await {
            tokio::spawn(sidecar(stream, known.clone()));
        }
    });
    nonces
}

/// A page for whoever asks, and a WebSocket that says nothing for whoever wants one.
async fn product(stream: TcpStream) {
    let service = service_fn(|mut request: Request<Incoming>| async move {
        if request.headers().contains_key(header::UPGRADE) {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    let mut stream = TokioIo::new(upgraded);
                    let mut buffer = [0; 1024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        if stream.write_all(&buffer[..read]).await.is_err() {
                            break;
                        }
                    }
                }
            });
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "websocket")
                // The answer to the key of RFC 6455, section 1.3.
                .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
                .body(Full::default());
            return Ok::<_, Infallible>(response.unwrap());
        }
        Ok(Response::new(Full::new(Bytes::from_static(&PAGE))))
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn sidecar(stream: TcpStream, nonces: Nonces) {
    let nonce = stream
        .local_addr()
        .ok()
        .and_then(|address| nonces.of(address.ip()));
    let service = service_fn(move |_: Request<Incoming>| {
        let nonce = nonce.clone();
        async move {
            let mut response = Response::new(Full::<Bytes>::from(nonce.clone().unwrap_or_default()));
            if nonce.is_none() {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            Ok::<_, Infallible>(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
