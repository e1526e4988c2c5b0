//! Counts the bytes of a connection or a body, and ends it when its preview has had all that it may have. Pure but for the stream
//! inside.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a preview may have in all, and has had. Shared by all its connections.
#[derive(Debug, Default)]
pub struct Budget {
    used: AtomicU64,
}

impl Budget {
    /// Takes bytes of it; false once there were more than the limit, in bytes.
    pub fn take(&self, bytes: u64, limit: u64) -> bool {
        self.used
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes)
            <= limit
    }

    /// Whether nothing is left.
    pub fn is_spent(&self, limit: u64) -> bool {
        self.used.load(Ordering::Relaxed) >= limit
    }

    /// Bytes so far.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// What went over one connection, in bytes.
#[derive(Debug, Default)]
pub struct Count {
    /// Read from the stream.
    pub read: AtomicU64,
    /// Written to it.
    pub written: AtomicU64,
}

/// A stream whose bytes are counted, in both directions, against a budget.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    count: Arc<Count>,
    budget: Arc<Budget>,
    limit: u64,
    /// Whether what is written is part of the budget, and not only what is read.
    both: bool,
}

impl<S> Metered<S> {
    /// Counts a stream's bytes; the limit is of the budget, in bytes.
    pub fn new(stream: S, budget: Arc<Budget>, limit: u64) -> Self {
        Self {
            stream,
            count: Arc::default(),
            budget,
            limit,
            both: true,
        }
    }

    /// Takes only what is read from the budget.
    #[must_use]
    pub fn reading(mut self) -> Self {
        self.both = false;
        self
    }

    /// Its count, which can be read while the stream is in use.
    pub fn count(&self) -> Arc<Count> {
        self.count.clone()
    }

    fn read(&self, bytes: usize) -> io::Result<()> {
        self.count.read.fetch_add(bytes as u64, Ordering::Relaxed);
        self.take(bytes)
    }

    fn written(&self, bytes: usize) -> io::Result<()> {
        self.count.written.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.both { self.take(bytes) } else { Ok(()) }
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        if self.budget.take(bytes as u64, self.limit) {
            Ok(())
        } else {
            Err(io::Error::other(Spent))
        }
    }
}

/// The preview has had all that it may have.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the preview's bytes are used up")]
pub struct Spent;

/// Whether a stream ended because its budget did.
pub fn is_spent(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Spent>())
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled {
            return Poll::Ready(self.read(buf.filled().len() - before));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            return Poll::Ready(self.written(written).map(|()| written));
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_directions_count_and_the_budget_ends_the_stream() {
        let (near, mut far) = tokio::io::duplex(64);
        let budget = Arc::new(Budget::default());
        let mut near = Metered::new(near, budget.clone(), 10);
        let count = near.count();
        near.write_all(b"four").await.unwrap();
        far.write_all(b"sixsix").await.unwrap();
        let mut got = [0; 6];
        near.read_exact(&mut got).await.unwrap();
        assert!(budget.is_spent(10));
        assert_eq!(count.written.load(Ordering::Relaxed), 4);
        assert_eq!(count.read.load(Ordering::Relaxed), 6);
        let error = near.write_all(b"x").await.unwrap_err();
        assert!(is_spent(&error), "{error}");
        assert_eq!(budget.used(), 11);
    }
}
