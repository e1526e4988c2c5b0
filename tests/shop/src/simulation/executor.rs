//! A scheduler of one thread: polls one task that is ready at a time, as its seed says. Time passes only when it says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// A task, which belongs to a process and dies with it.
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What a task asks for when it waits.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Mutex<Told>>);

#[derive(Clone, Debug)]
struct Told {
    now: Timestamp,
    /// Until when the task that is polled now does not want to go on.
    until: Timestamp,
}

impl Clock {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What time it is.
    pub fn now(&self) -> Timestamp {
        self.told().now
    }

    /// Lets others go on: whoever has the processor back may find that hours have passed.
    pub fn turn(&self) -> Pause {
        Pause {
            clock: self.clone(),
            until: self.now(),
            has_paused: false,
        }
    }

    /// Waits for so long at least.
    pub fn sleep(&self, duration: SignedDuration) -> Pause {
        Pause {
            until: self.now() + duration,
            ..self.turn()
        }
    }
}

/// A place at which others go on, or at which a process ends.
pub struct Pause {
    clock: Clock,
    until: Timestamp,
    has_paused: bool,
}

impl Future for Pause {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.has_paused && self.clock.now() >= self.until {
            return Poll::Ready(());
        }
        self.has_paused = true;
        self.clock.told().until = self.until;
        Poll::Pending
    }
}

/// Which process, and which of its tasks.
pub type Id = (u32, u32);

/// The scheduler.
pub struct Executor {
    clock: Clock,
    rng: StdRng,
    tasks: BTreeMap<Id, (Task, Timestamp)>,
    made: u32,
    /// How often a task was polled.
    pub steps: u64,
    trace: u64,
}

/// How likely what is at a step.
#[derive(Clone, Copy, Debug)]
pub struct Odds {
    /// That time passes although somebody could go on, so that leases are over.
    pub leaps: f64,
    /// That a process ends.
    pub crashes: f64,
}

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// A task went on.
    Polled,
    /// A process has ended, and is to be started again.
    Crashed(u32),
    /// There are no tasks.
    Over,
}

/// A leap of time at most.
const LEAP_SECONDS: i64 = 600;

impl Executor {
    /// Nothing to do yet.
    pub fn new(seed: u64, now: Timestamp) -> Self {
        Self {
            clock: Clock(Arc::new(Mutex::new(Told { now, until: now }))),
            rng: StdRng::seed_from_u64(seed),
            tasks: BTreeMap::new(),
            made: 0,
            steps: 0,
            trace: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// The clock that tasks see.
    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    /// Adds a task to a process.
    pub fn spawn(&mut self, process: u32, task: impl Future<Output = ()> + 'static) {
        self.made += 1;
        let from = self.clock.now();
        self.tasks.insert((process, self.made), (Box::pin(task), from));
    }

    /// Adds to what this history is known by (FNV-1a).
    pub fn note(&mut self, what: &str) {
        for byte in what.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// What it is known by: the same for the same seed.
    pub const fn trace(&self) -> u64 {
        self.trace
    }

    /// Lets one task go on, or something happen; `moved` is told what time it is before that.
    pub fn step(&mut self, odds: Odds, moved: impl FnOnce(Timestamp)) -> Stepped {
        if self.tasks.is_empty() {
            return Stepped::Over;
        }
        if odds.leaps > 0.0 && self.rng.random_bool(odds.leaps) {
            let leap = SignedDuration::from_secs(self.rng.random_range(1..=LEAP_SECONDS));
            self.clock.told().now += leap;
        }
        if odds.crashes > 0.0 && self.rng.random_bool(odds.crashes) {
            let processes: BTreeSet<_> = self.tasks.keys().map(|(process, _)| *process).collect();
            let at = self.rng.random_range(0..processes.len());
            let process = processes.into_iter().nth(at).unwrap_or_default();
            self.tasks.retain(|(of, _), _| *of != process);
            self.note(&format!("crash {process}"));
            return Stepped::Crashed(process);
        }
        let mut now = self.clock.now();
        let ready = |now: Timestamp, tasks: &BTreeMap<Id, (Task, Timestamp)>| -> Vec<Id> {
            tasks
                .iter()
                .filter(|(_, (_, until))| *until <= now)
                .map(|(id, _)| *id)
                .collect()
        };
        let mut those = ready(now, &self.tasks);
        if those.is_empty() {
            now = self.tasks.values().map(|(_, until)| *until).min().unwrap_or(now);
            self.clock.told().now = now;
            those = ready(now, &self.tasks);
        }
        moved(now);
        let id = those[self.rng.random_range(0..those.len())];
        self.steps += 1;
        self.note(&format!("{id:?} {now}"));
        self.clock.told().until = now;
        let is_over = self.tasks.get_mut(&id).is_none_or(|(task, _)| {
            task.as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        });
        if is_over {
            self.tasks.remove(&id);
        } else {
            let until = self.clock.told().until;
            if let Some((_, from)) = self.tasks.get_mut(&id) {
                *from = until;
            }
        }
        Stepped::Polled
    }
}
