//! One HTTP GET, without keeping the connection: enough to ask a server of ours how it is. Connects to what it is given.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::error::{Error, Result};

/// Far longer than a server on this machine takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header lines.
    pub headers: Vec<String>,
    /// The body, as it came.
    pub body: String,
    /// When its first byte was there.
    pub began: Instant,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Asks for a path of a host at an address, with HTTP/1.1 in the clear.
///
/// # Errors
/// If nobody answers in time, or not in HTTP.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    get_with(address, host, path, None).await
}

/// The same with a cookie, `name=value`.
///
/// # Errors
/// If nobody answers in time, or not in HTTP.
pub async fn get_with(address: SocketAddr, host: &str, path: &str, cookie: Option<&str>) -> Result<Answer> {
    let failed = |what: String| Error::Other(format!("GET http://{host}{path} at {address}: {what}"));
    let asked = timeout(PATIENCE, ask(address, host, path, cookie)).await;
    let (text, began) = asked
        .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    read(&text, began).ok_or_else(|| failed(format!("no HTTP answer: {text:?}")))
}

async fn ask(
    address: SocketAddr,
    host: &str,
    path: &str,
    cookie: Option<&str>,
) -> io::Result<(String, Instant)> {
    let mut stream = TcpStream::connect(address).await?;
    let cookie = cookie.map_or_else(String::new, |cookie| format!("Cookie: {cookie}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{cookie}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = vec![];
    stream.read_buf(&mut bytes).await?;
    let began = Instant::now();
    stream.read_to_end(&mut bytes).await?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), began))
}

fn read(text: &str, began: Instant) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    Some(Answer {
        status: lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?,
        headers: lines.map(str::to_owned).collect(),
        body: body.to_owned(),
        began,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let now = Instant::now();
        let read = read("HTTP/1.1 410 Gone\r\nA: b\r\n\r\nover\r\n\r\nand out", now).unwrap();
        assert_eq!((read.status, read.body.as_str()), (410, "over\r\n\r\nand out"));
        assert_eq!(read.header("a"), Some("b"));
        assert_eq!(super::read("SSH-2.0-x\r\n\r\n", now), None);
        assert_eq!(super::read("HTTP/1.1 2", now), None);
    }
}
