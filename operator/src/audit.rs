//! A line of JSON for each thing that was let through or refused, for whoever must answer for it later. Writes to one file or
//! to standard output, from a thread of its own.
//!
//! Traffic never waits for it: what the buffer cannot hold is dropped and counted.

use std::{
    fs::OpenOptions,
    io::{BufWriter, Write},
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use prometheus::{IntCounter, Opts};
use serde::Serialize;

use crate::error::{Error, Result};

/// How many records may wait to be written: about a megabyte.
const BUFFERED: usize = 4096;

/// Takes records. Its copies share one buffer.
#[derive(Clone, Debug)]
pub struct AuditLog {
    lines: SyncSender<String>,
    dropped: IntCounter,
}

impl AuditLog {
    /// Begins to write: to a file, or to standard output if there is none. The counter is to be registered by the caller.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn begin(file: Option<&Path>) -> Result<Self> {
        let (lines, received) = sync_channel(BUFFERED);
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
        std::thread::spawn(move || write(&received, out));
        Ok(Self {
            lines,
            dropped: dropped(),
        })
    }

    /// How many records were dropped.
    pub fn dropped(&self) -> IntCounter {
        self.dropped.clone()
    }

    /// Notes one record.
    pub fn record(&self, record: &impl Serialize) {
        let line = serde_json::to_string(record).ok();
        if line.is_none_or(|line| self.lines.try_send(line).is_err()) {
            self.dropped.inc();
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

fn write(lines: &Receiver<String>, out: impl Write) {
    let mut out = BufWriter::new(out);
    while let Ok(line) = lines.recv() {
        let mut next = Some(line);
        let mut written = Ok(());
        // Flushed when nothing more waits, not after each line.
        while let Some(line) = next {
            written = written.and_then(|()| writeln!(out, "{line}"));
            next = lines.try_recv().ok();
        }
        if let Err(error) = written.and_then(|()| out.flush()) {
            tracing::warn!(%error, "failed to write audit records");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_written_as_lines_and_dropped_with_a_count_when_nobody_takes_them() {
        let (lines, received) = sync_channel(2);
        let log = AuditLog {
            lines,
            dropped: dropped(),
        };
        for n in 0..5 {
            log.record(&serde_json::json!({"n": n}));
        }
        assert_eq!(log.dropped().get(), 3);
        drop(log);
        let mut out = vec![];
        write(&received, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "{\"n\":0}\n{\"n\":1}\n");
    }
}
