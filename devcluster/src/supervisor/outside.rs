//! The outside world: answers as the internet and as cloud metadata, and remembers who came. "Blocked" is worth
//! nothing against something that would not have answered.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::namespaces::Namespace;
use crate::config::{INTERNET_ADDRESS, METADATA_ADDRESS};
use crate::control::{Hit, Hits, Protocol};
use crate::error::Result;

/// Plain HTTP on both: what matters is whether anything arrives.
const TCP_PORTS: [u16; 2] = [80, 443];
const UDP_PORT: u16 = 53;
/// How many hits are remembered one by one: a hostile pod can make thousands in a test.
const REMEMBERED: usize = 10_000;

/// The record of what arrived.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    recent: VecDeque<Hit>,
    total: u64,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an arrival; the answer is its number.
    fn arrived(&self, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> u64 {
        let mut inner = self.lock();
        inner.total += 1;
        let id = inner.total;
        if inner.recent.len() == REMEMBERED {
            inner.recent.pop_front();
        }
        let hit = Hit {
            id,
            protocol,
            at_ms: now_ms(),
            source,
            destination,
            bytes: 0,
            last_byte_ms: None,
            open: true,
        };
        inner.recent.push_back(hit);
        id
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Hit)) {
        let mut inner = self.lock();
        // Ids in the queue are consecutive.
        let index = inner.recent.front().and_then(|first| id.checked_sub(first.id));
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(hit) = index.and_then(|index| inner.recent.get_mut(index)) {
            change(hit);
        }
    }

    fn received(&self, id: u64, bytes: usize) {
        self.update(id, |hit| {
            hit.bytes += u64::try_from(bytes).unwrap_or(0);
            hit.last_byte_ms = Some(now_ms());
        });
    }

    fn closed(&self, id: u64) {
        self.update(id, |hit| hit.open = false);
    }

    /// All that is remembered.
    pub(crate) fn hits(&self) -> Hits {
        let inner = self.lock();
        let remembered = u64::try_from(inner.recent.len()).unwrap_or(0);
        Hits {
            recent: inner.recent.iter().cloned().collect(),
            total: inner.total,
            dropped: inner.total - remembered,
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Starts to answer.
pub(crate) async fn serve(outside: &Namespace) -> Result<Record> {
    let record = Record::default();
    for address in [INTERNET_ADDRESS, METADATA_ADDRESS] {
        for port in TCP_PORTS {
            let at = SocketAddr::from((address, port));
            tokio::spawn(accept(outside.listen_tcp(at).await?, at, record.clone()));
        }
        let at = SocketAddr::from((address, UDP_PORT));
        tokio::spawn(echo(outside.listen_udp(at).await?, at, record.clone()));
    }
    Ok(record)
}

async fn accept(listener: TcpListener, at: SocketAddr, record: Record) {
    loop {
        let Ok((stream, source)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        // Counted here and not when a request is complete: a connection alone is a breach.
        let id = record.arrived(Protocol::Tcp, source, at);
        let record = record.clone();
        tokio::spawn(async move {
            answer(stream, at, source, id, &record).await;
            record.closed(id);
        });
    }
}

/// Answers each HTTP request head; anything else is only counted, for as long as it goes on.
async fn answer(mut stream: TcpStream, at: SocketAddr, source: SocketAddr, id: u64, record: &Record) {
    const END_OF_HEAD: [u8; 4] = *b"\r\n\r\n";
    let mut buffer = [0; 4096];
    let mut last = [0; 4];
    loop {
        let length = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        record.received(id, length);
        for byte in &buffer[..length] {
            last.rotate_left(1);
            last[3] = *byte;
            if last == END_OF_HEAD && stream.write_all(response(at, source).as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

fn response(at: SocketAddr, source: SocketAddr) -> String {
    let who = if at.ip() == METADATA_ADDRESS {
        "cloud metadata"
    } else {
        "the internet"
    };
    let body = format!("{who} at {at} answers {source}\n");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn echo(socket: UdpSocket, at: SocketAddr, record: Record) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let id = record.arrived(Protocol::Udp, source, at);
        record.received(id, length);
        record.closed(id);
        let _ = socket.send_to(&buffer[..length], source).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_bounded_and_keeps_its_totals() {
        let record = Record::default();
        let at = SocketAddr::from((INTERNET_ADDRESS, 80));
        let first = record.arrived(Protocol::Tcp, at, at);
        for _ in 0..REMEMBERED {
            record.arrived(Protocol::Tcp, at, at);
        }
        record.received(first, 5);
        let hits = record.hits();
        assert_eq!(
            (hits.recent.len(), hits.total, hits.dropped),
            (REMEMBERED, REMEMBERED as u64 + 1, 1)
        );
        let last = hits.recent.last().unwrap().id;
        record.received(last, 7);
        assert_eq!(record.hits().recent.last().unwrap().bytes, 7);
    }
}
