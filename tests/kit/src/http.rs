//! One HTTP GET, without keeping the connection: enough to ask a server of ours how it is. Connects to what it is given.

use std::{io, net::SocketAddr, time::Duration};

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
    /// The body, as it came.
    pub body: String,
}

/// Asks for a path of a host at an address, with HTTP/1.1 in the clear.
///
/// # Errors
/// If nobody answers in time, or not in HTTP.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    let failed = |what: String| Error::Other(format!("GET http://{host}{path} at {address}: {what}"));
    let asked = timeout(PATIENCE, ask(address, host, path)).await;
    let text = asked
        .map_err(|_| failed(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    read(&text).ok_or_else(|| failed(format!("no HTTP answer: {text:?}")))
}

async fn ask(address: SocketAddr, host: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn read(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Answer {
        status: head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let read = read("HTTP/1.1 410 Gone\r\nA: b\r\n\r\nover\r\n\r\nand out").unwrap();
        assert_eq!((read.status, read.body.as_str()), (410, "over\r\n\r\nand out"));
        assert_eq!(super::read("SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(super::read("HTTP/1.1 2"), None);
    }
}
