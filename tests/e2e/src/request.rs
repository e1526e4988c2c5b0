//! The head of an HTTP request, for the small servers of tests. Reads one connection.

use tokio::{io::AsyncReadExt, net::TcpStream};

/// Reads up to the end of the head; `None` if the other side hangs up before.
///
/// # Errors
/// If the connection breaks.
pub async fn head(stream: &mut TcpStream) -> std::io::Result<Option<String>> {
    let mut head = String::new();
    let mut buffer = [0; 4096];
    while !head.contains("\r\n\r\n") {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(None);
        }
        head.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(Some(head))
}
