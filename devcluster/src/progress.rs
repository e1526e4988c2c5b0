//! How long work shows that it goes on. Writes to stderr, and to nothing else.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the quiet form says that a step still runs: often enough that no log watcher gives up.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// One step of a list of steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Step {
    /// What is done, as a noun or a verb in lower case: "kubernetes (about 290 s)".
    pub what: String,
    /// Which one, from 1.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Step {
    /// The `index`th of `of` steps.
    #[must_use]
    pub fn new(what: impl Into<String>, index: usize, of: usize) -> Self {
        Self {
            what: what.into(),
            index,
            of,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}/{}] {}", self.index, self.of, self.what)
    }
}

/// Where progress goes. Steps may overlap.
pub trait Progress: Send + Sync {
    /// A step began.
    fn started(&self, step: &Step);
    /// A step ended well.
    fn finished(&self, step: &Step, elapsed: Duration);
    /// A step failed; the error itself is returned to the caller.
    fn failed(&self, step: &Step, elapsed: Duration);
    /// A remark that belongs to no step.
    fn note(&self, text: &str);
}

/// Runs one step and reports it.
pub fn run<T, E>(progress: &dyn Progress, step: &Step, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let begun = Instant::now();
    progress.started(step);
    let result = work();
    match &result {
        Ok(_) => progress.finished(step, begun.elapsed()),
        Err(_) => progress.failed(step, begun.elapsed()),
    }
    result
}

/// The form that fits where stderr goes: [`Bars`] on a terminal, [`Lines`] in a log or under `CI=true`.
#[must_use]
pub fn for_stderr(quiet: bool) -> Box<dyn Progress> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
    if quiet || ci || !std::io::stderr().is_terminal() {
        Box::new(Lines::default())
    } else {
        Box::new(Bars::default())
    }
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _: &Step) {}
    fn finished(&self, _: &Step, _: Duration) {}
    fn failed(&self, _: &Step, _: Duration) {}
    fn note(&self, _: &str) {}
}

/// For logs: one line when a step starts, one when it ends, and one every 30 seconds between.
#[derive(Debug, Default)]
pub struct Lines {
    // Dropping the sender ends the heartbeat of its step.
    heartbeats: Mutex<HashMap<Step, mpsc::Sender<()>>>,
}

impl Lines {
    fn stop(&self, step: &Step) {
        self.heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(step);
    }
}

impl Progress for Lines {
    fn started(&self, step: &Step) {
        eprintln!("{step} ...");
        let (sender, receiver) = mpsc::channel();
        self.heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(step.clone(), sender);
        let (step, begun) = (step.clone(), Instant::now());
        std::thread::spawn(move || {
            while receiver.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{step} ... still going after {}", seconds(begun.elapsed()));
            }
        });
    }

    fn finished(&self, step: &Step, elapsed: Duration) {
        self.stop(step);
        eprintln!("{step}: done in {}", seconds(elapsed));
    }

    fn failed(&self, step: &Step, elapsed: Duration) {
        self.stop(step);
        eprintln!("{step}: FAILED after {}", seconds(elapsed));
    }

    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

/// For people: a spinner with the running step and its time, and a line for each that is over.
#[derive(Debug, Default)]
pub struct Bars {
    group: indicatif::MultiProgress,
    running: Mutex<HashMap<Step, ProgressBar>>,
}

impl Bars {
    fn stop(&self, step: &Step) {
        if let Some(bar) = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(step)
        {
            bar.finish_and_clear();
            self.group.remove(&bar);
        }
    }

    fn say(&self, line: &str) {
        // An unwritable stderr must not stop the work.
        let _ = self.group.println(line);
    }
}

impl Progress for Bars {
    fn started(&self, step: &Step) {
        let bar = self.group.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(step.to_string());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(step.clone(), bar);
    }

    fn finished(&self, step: &Step, elapsed: Duration) {
        self.stop(step);
        self.say(&format!("✓ {step} ({})", seconds(elapsed)));
    }

    fn failed(&self, step: &Step, elapsed: Duration) {
        self.stop(step);
        self.say(&format!("✗ {step} (after {})", seconds(elapsed)));
    }

    fn note(&self, text: &str) {
        self.say(text);
    }
}

/// "0.4 s", "4 min 51 s".
#[must_use]
pub fn seconds(elapsed: Duration) -> String {
    let whole = elapsed.as_secs();
    if whole < 60 {
        format!("{:.1} s", elapsed.as_secs_f64())
    } else {
        format!("{} min {} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(291)), "4 min 51 s");
    }

    #[test]
    fn a_step_says_which_of_how_many() {
        assert_eq!(Step::new("etcd", 2, 9).to_string(), "[2/9] etcd");
    }
}
