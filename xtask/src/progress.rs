//! What a person sees while something long runs; prints to standard output and touches nothing else.
//!
//! On a terminal the current activity is one line that is overwritten. In a log (no terminal, or `CI` set) it is
//! a line a minute, so that silence always means something is wrong.

use std::cell::{Cell, RefCell};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const LOG_HEARTBEAT: Duration = Duration::from_secs(60);
const TERMINAL_HEARTBEAT: Duration = Duration::from_millis(500);

/// The lines of one run.
pub struct Progress {
    began: Instant,
    quiet: bool,
    /// When the transient line was last shown.
    shown: Cell<Instant>,
    /// Whether a transient line stands on the terminal and must be wiped before the next one.
    dirty: Cell<bool>,
    stage: RefCell<String>,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Self {
        let quiet = std::env::var_os("CI").is_some() || !std::io::stdout().is_terminal();
        let now = Instant::now();
        Self {
            began: now,
            quiet,
            shown: Cell::new(now),
            dirty: Cell::new(false),
            stage: RefCell::default(),
        }
    }

    /// For a thread that works beside in the same stage: the same clock, its own lines.
    pub fn beside(&self) -> Self {
        Self {
            began: self.began,
            quiet: self.quiet,
            shown: self.shown.clone(),
            dirty: Cell::new(false),
            stage: self.stage.clone(),
        }
    }

    /// How long the run has taken so far.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A stage begins: the `number`-th of `total`.
    pub fn stage(&self, number: usize, total: usize, name: &str, about: &str) {
        *self.stage.borrow_mut() = name.to_owned();
        self.line(&format!(
            "[{number}/{total}] {name}: {about} ({} elapsed)",
            clock(self.elapsed())
        ));
        self.shown.set(Instant::now());
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        self.wipe();
        // A closed pipe (`| head`) must not end the run half way: clusters would be left to their supervisor.
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// What is being done now, since `since`; shown at most every half second, in a log every minute.
    pub fn activity(&self, what: &str, since: Instant) {
        let pause = if self.quiet {
            LOG_HEARTBEAT
        } else {
            TERMINAL_HEARTBEAT
        };
        if self.shown.get().elapsed() < pause {
            return;
        }
        self.shown.set(Instant::now());
        let text = format!("      {} {what}", clock(since.elapsed()));
        if self.quiet {
            self.line(&format!("{text} ({}, still running)", self.stage.borrow()));
            return;
        }
        let short: String = text.chars().take(100).collect();
        let mut out = std::io::stdout();
        let _ = write!(out, "\r\x1b[2K{short}").and_then(|()| out.flush());
        self.dirty.set(true);
    }

    fn wipe(&self) {
        if self.dirty.replace(false) {
            let _ = write!(std::io::stdout(), "\r\x1b[2K");
        }
    }
}

/// A duration as `m:ss`, or `h:mm:ss` from an hour on.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_a_clock() {
        assert_eq!(clock(Duration::from_millis(900)), "0:00");
        assert_eq!(clock(Duration::from_secs(61)), "1:01");
        assert_eq!(clock(Duration::from_secs(3_605)), "1:00:05");
    }
}
