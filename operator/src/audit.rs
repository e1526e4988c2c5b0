//! A line of JSON for each thing that was let through or refused, for whoever must answer for it later. Writes to one file or
//! to standard output, from a thread of its own.
//!
//! Traffic never waits for it: what the buffer cannot hold is dropped and counted.

use std::{
    fs::OpenOptions,
    io::Write,
    mem,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use prometheus::{IntCounter, Opts};
use serde::Serialize;

use crate::error::{Error, Result};

/// How much may wait to be written, in bytes: some thousand records.
const BUFFERED: usize = 1 << 20;
/// Lines that come within this time are written together: to wake the writer for each would cost traffic more than the lines.
const GATHERED: Duration = Duration::from_millis(10);

/// Takes records. Its copies share one buffer; when the last one is dropped all that waits is written first.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    lines: Arc<Lines>,
    dropped: IntCounter,
    writer: Option<JoinHandle<()>>,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    text: Vec<u8>,
    over: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; false if there is no room for it.
    fn add(&self, line: &[u8]) -> bool {
        let mut waiting = self.lock();
        if waiting.text.len() + line.len() >= BUFFERED {
            return false;
        }
        let first = waiting.text.is_empty();
        waiting.text.extend_from_slice(line);
        waiting.text.push(b'\n');
        drop(waiting);
        if first {
            self.changed.notify_one();
        }
        true
    }

    fn end(&self) {
        self.lock().over = true;
        self.changed.notify_one();
    }

    /// Waits for lines and swaps them for an empty buffer; false once no more will come.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        taken.clear();
        let waiting = self
            .changed
            .wait_while(self.lock(), |waiting| waiting.text.is_empty() && !waiting.over)
            .unwrap_or_else(PoisonError::into_inner);
        // Only the end shortens this.
        let (mut waiting, _) = self
            .changed
            .wait_timeout_while(waiting, GATHERED, |waiting| !waiting.over)
            .unwrap_or_else(PoisonError::into_inner);
        mem::swap(&mut waiting.text, taken);
        !taken.is_empty()
    }
}

impl AuditLog {
    /// Begins to write: to a file, or to standard output if there is none. The counter is to be registered by the caller.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn begin(file: Option<&Path>) -> Result<Self> {
        let out: Box<dyn Write + Send> = match file {
            Some(path) => {
                let opened = OpenOptions::new().create(true).append(true).open(path);
                Box::new(opened.map_err(|error| {
                    Error::Setting(format!(
                        "failed to open the audit log {}: {error}",
                        path.display()
                    ))
                })?)
            }
            None => Box::new(std::io::stdout()),
        };
        Ok(Self::to(out))
    }

    fn to(out: impl Write + Send + 'static) -> Self {
        let lines = Arc::new(Lines::default());
        let for_writer = lines.clone();
        let writer = std::thread::spawn(move || write(&for_writer, out));
        Self(Arc::new(Log {
            lines,
            dropped: dropped(),
            writer: Some(writer),
        }))
    }

    /// How many records were dropped.
    pub fn dropped(&self) -> IntCounter {
        self.0.dropped.clone()
    }

    /// Notes one record.
    pub fn record(&self, record: &impl Serialize) {
        let line = serde_json::to_vec(record).ok();
        if line.is_none_or(|line| !self.0.lines.add(&line)) {
            self.0.dropped.inc();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.lines.end();
        if let Some(writer) = self.writer.take() {
            // It has nothing to say: what it could not write is in the log.
            let _ = writer.join();
        }
    }
}

fn dropped() -> IntCounter {
    let opts = Opts::new(
        "vitrine_audit_dropped_total",
        "audit records that were dropped because their buffer was full",
    );
    // Only a name that Prometheus does not allow could fail.
    IntCounter::with_opts(opts).unwrap_or_else(|error| unreachable!("{error}"))
}

fn write(lines: &Lines, mut out: impl Write) {
    let mut taken = vec![];
    while lines.take(&mut taken) {
        if let Err(error) = out.write_all(&taken).and_then(|()| out.flush()) {
            tracing::warn!(%error, "failed to write audit records");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Writes for somebody else to see, who says when.
    struct Slow {
        go: Receiver<()>,
        seen: Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            // Whoever is gone lets everything through.
            let _ = self.go.recv();
            let _ = self.seen.send(text.to_vec());
            Ok(text.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (AuditLog, Sender<()>, Receiver<Vec<u8>>) {
        let (go, may) = channel();
        let (seen, sees) = channel();
        (AuditLog::to(Slow { go: may, seen }), go, sees)
    }

    #[test]
    fn records_are_written_as_lines_and_none_is_lost_when_the_log_is_dropped() {
        let (log, go, seen) = slow();
        drop(go);
        for n in 0..1000 {
            log.clone().record(&serde_json::json!({"n": n}));
        }
        drop(log);
        let text = String::from_utf8(seen.iter().flatten().collect()).unwrap();
        let wanted: Vec<_> = (0..1000).map(|n| format!("{{\"n\":{n}}}")).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn what_the_buffer_cannot_hold_is_dropped_and_counted_and_nobody_waits() {
        let (log, go, seen) = slow();
        let record = "x".repeat(BUFFERED / 4);
        // The writer has taken the first: it waits to be let through with it in hand.
        log.record(&"first");
        while !log.0.lines.lock().text.is_empty() {
            std::thread::yield_now();
        }
        for _ in 0..5 {
            log.record(&record);
        }
        assert_eq!(log.dropped().get(), 2);
        drop(go);
        drop(log);
        let text: Vec<u8> = seen.iter().flatten().collect();
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 4);
    }
}
