//! Loads a server over HTTP/1.1: as fast as it goes, or at a rate that does not wait for answers. Connects to what it is given.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::setup::Ready;

/// Whom to ask.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub cookie: Option<String>,
}

impl Target {
    async fn connect(&self) -> SendRequest<Empty<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn get(&self, sender: &mut SendRequest<Empty<Bytes>>) {
        let mut request = Request::get("/").header(header::HOST, &self.host);
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        sender.ready().await.unwrap();
        let answer = sender
            .send_request(request.body(Empty::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}: {answer:?}", self.host);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 1024);
    }
}

/// Requests a second with so many connections, each of which asks as soon as it was answered.
pub async fn throughput(targets: &[Target], connections: usize, time: Duration) -> f64 {
    let deadline = Instant::now() + time;
    let tasks = (0..connections).map(|number| {
        let target = targets[number % targets.len()].clone();
        tokio::spawn(async move {
            let mut sender = target.connect().await;
            let mut done = 0_u32;
            while Instant::now() < deadline {
                target.get(&mut sender).await;
                done += 1;
            }
            done
        })
    });
    let begun = Instant::now();
    let done: u32 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    f64::from(done) / begun.elapsed().as_secs_f64()
}

/// How long answers take, each counted from when it should have been asked for: who is late is late for all that wait behind it.
pub async fn latencies(targets: &[Target], connections: usize, rate: f64, time: Duration) -> Vec<Duration> {
    let next = Arc::new(AtomicU64::new(0));
    let count = (rate * time.as_secs_f64()) as u64;
    let begun = Instant::now() + Duration::from_millis(200);
    let tasks = (0..connections).map(|number| {
        let (target, next) = (targets[number % targets.len()].clone(), next.clone());
        tokio::spawn(async move {
            let mut sender = target.connect().await;
            let mut seen = vec![];
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return seen;
                }
                let due = begun + Duration::from_secs_f64(number as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
                target.get(&mut sender).await;
                seen.push(due.elapsed());
            }
        })
    });
    join_all(tasks)
        .await
        .into_iter()
        .flat_map(Result::unwrap)
        .collect()
}

/// Exchanges a preview's link for its cookie.
pub async fn cookie(gateway: SocketAddr, ready: &Ready) -> String {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        ready.open, ready.host
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let line = answer
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("set-cookie:"));
    let line = line.unwrap_or_else(|| panic!("no cookie for {}: {answer}", ready.host));
    let value = line.split_once(':').unwrap().1;
    value.split(';').next().unwrap().trim().to_owned()
}

/// A WebSocket to a preview through the gateway, opened.
pub async fn websocket(gateway: SocketAddr, ready: &Ready) -> TcpStream {
    let cookie = cookie(gateway, ready).await;
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    // The key is the example of RFC 6455, section 1.3.
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        ready.host
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        head.push(byte.unwrap_or_else(|error| {
            panic!("{}: {error} after {}", ready.host, String::from_utf8_lossy(&head))
        }));
    }
    assert!(
        head.starts_with(b"HTTP/1.1 101"),
        "{}: {}",
        ready.host,
        String::from_utf8_lossy(&head)
    );
    stream
}
