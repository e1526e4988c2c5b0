//! A line of JSON for each thing that was let through or refused, for whoever must answer for it later. Writes to one file or
//! to standard output, from a thread of its own.
//!
//! Traffic never waits for it: what the buffer cannot hold, or the file does not take, is dropped and counted.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind, Write},
    mem,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prometheus::{IntCounter, Opts};
use serde::Serialize;

use crate::error::{Error, Result};

/// How much may wait to be written, in bytes: some thousand records.
const BUFFERED: usize = 1 << 20;
/// Lines that come within this time are written together: to wake the writer for each would cost traffic more than the lines.
const GATHERED: Duration = Duration::from_millis(10);
/// How long a process that ends waits for a file that takes nothing.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Takes records. Its copies share one buffer; when the last one is dropped what waits is written first.
#[derive(Clone, Debug)]
pub struct AuditLog(Arc<Log>);

#[derive(Debug)]
struct Log {
    lines: Arc<Lines>,
    dropped: IntCounter,
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
    /// Nothing more will come.
    over: bool,
    /// All is written.
    done: bool,
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
        let before = waiting.text.len();
        waiting.text.extend_from_slice(line);
        waiting.text.push(b'\n');
        let crosses = before < BUFFERED / 2 && waiting.text.len() >= BUFFERED / 2;
        drop(waiting);
        if before == 0 || crosses {
            self.changed.notify_all();
        }
        true
    }

    /// Waits for lines and swaps them for an empty buffer; false once no more will come.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        taken.clear();
        let waiting = self
            .changed
            .wait_while(self.lock(), |waiting| waiting.text.is_empty() && !waiting.over)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .changed
            .wait_timeout_while(waiting, GATHERED, |waiting| {
                !waiting.over && waiting.text.len() < BUFFERED / 2
            })
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
        let (lines, dropped) = (Arc::new(Lines::default()), dropped());
        let (for_writer, lost) = (lines.clone(), dropped.clone());
        std::thread::spawn(move || write(&for_writer, out, &lost));
        Self(Arc::new(Log { lines, dropped }))
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
        let mut waiting = self.lines.lock();
        waiting.over = true;
        self.lines.changed.notify_all();
        let done = self
            .lines
            .changed
            .wait_timeout_while(waiting, LAST_WORDS, |waiting| !waiting.done);
        if done.is_ok_and(|(_, late)| late.timed_out()) {
            tracing::warn!("the last audit records could not be written in time");
        }
    }
}

/// As much of a text as is noted, at most so many bytes: strangers say how long it is.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn dropped() -> IntCounter {
    let opts = Opts::new(
        "vitrine_audit_dropped_total",
        "audit records that were dropped because their buffer was full or they could not be written",
    );
    // Only a name that Prometheus does not allow could fail.
    IntCounter::with_opts(opts).unwrap_or_else(|error| unreachable!("{error}"))
}

fn write(lines: &Lines, mut out: impl Write, dropped: &IntCounter) {
    let mut taken = vec![];
    let mut torn = false;
    while lines.take(&mut taken) {
        if torn {
            // What is left of the line that broke off must not spoil the next one.
            taken.insert(0, b'\n');
        }
        let (written, result) = put(&mut out, &taken);
        torn = match written {
            0 => torn,
            some => taken[some - 1] != b'\n',
        };
        if let Err(error) = result {
            let lost = taken[written..].split_inclusive(|byte| *byte == b'\n');
            let lost = lost.filter(|line| line.len() > 1).count();
            dropped.inc_by(lost as u64);
            tracing::warn!(%error, lost, "failed to write audit records");
        }
    }
    lines.lock().done = true;
    lines.changed.notify_all();
}

/// Writes as much as can be; how many bytes that were, and why not more.
fn put(out: &mut impl Write, text: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < text.len() {
        match out.write(&text[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(some) => written += some,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, out.flush())
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

    /// A disk that is full after some bytes, once, and then has room again.
    struct Full {
        room: usize,
        kept: Sender<Vec<u8>>,
    }

    impl Write for Full {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            let taken = text.len().min(self.room);
            self.room = usize::MAX;
            if taken == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            let _ = self.kept.send(text[..taken].to_vec());
            // The next attempt fails.
            self.room = if taken < text.len() { 0 } else { self.room };
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_spoils_no_other_line() {
        let lines = Lines::default();
        let dropped = dropped();
        let (kept, keeps) = channel();
        for line in ["one", "two", "three"] {
            lines.add(line.as_bytes());
        }
        std::thread::scope(|scope| {
            // Breaks off in the second line.
            let writer = scope.spawn(|| write(&lines, Full { room: 6, kept }, &dropped));
            while dropped.get() < 2 {
                std::thread::yield_now();
            }
            lines.add(b"four");
            lines.lock().over = true;
            lines.changed.notify_all();
            writer.join().unwrap();
        });
        assert_eq!(dropped.get(), 2);
        let text: Vec<u8> = keeps.iter().flatten().collect();
        assert_eq!(String::from_utf8(text).unwrap(), "one\ntw\nfour\n");
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
