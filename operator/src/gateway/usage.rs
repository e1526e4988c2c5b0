//! What visitors have had of a preview, and when they were there: its budget of bytes, its rate of requests, and whether anybody
//! still looks at it. Memory of this process only.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::meter::Budget;

/// So many seconds' worth of requests may come at once: a page with many parts is one click.
const BURST_SECONDS: f64 = 10.0;

/// What the policy lets every preview have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes to visitors, in all.
    pub(super) bytes: u64,
    /// Requests a second.
    pub(super) requests: u32,
}

/// What visitors have had of one preview.
#[derive(Debug)]
pub(super) struct Usage {
    /// Bytes.
    pub(super) budget: Arc<Budget>,
    bucket: Mutex<Bucket>,
    /// Milliseconds since 1970; 0 for never.
    opened: AtomicI64,
    last: AtomicI64,
    /// Requests and WebSockets that are not over.
    open: AtomicUsize,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Option<Instant>,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            budget: Arc::default(),
            bucket: Mutex::new(Bucket {
                tokens: 0.0,
                at: None,
            }),
            opened: AtomicI64::new(0),
            last: AtomicI64::new(0),
            open: AtomicUsize::new(0),
        }
    }
}

impl Usage {
    /// Whether another request may come now.
    pub(super) fn admits(&self, per_second: u32, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = f64::from(per_second);
        let full = rate * BURST_SECONDS;
        bucket.tokens = match bucket.at {
            None => full,
            Some(at) => (bucket.tokens + now.saturating_duration_since(at).as_secs_f64() * rate).min(full),
        };
        bucket.at = Some(now);
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    /// Somebody is there, until the answer is dropped.
    pub(super) fn enter(self: &Arc<Self>, now: Timestamp) -> InUse {
        let _ = self
            .opened
            .compare_exchange(0, now.as_millisecond(), Ordering::Relaxed, Ordering::Relaxed);
        self.last.fetch_max(now.as_millisecond(), Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        InUse(self.clone())
    }

    /// What is told of it; `None` if nobody was ever there.
    pub(super) fn seen(&self) -> Option<Seen> {
        let opened = self.opened.load(Ordering::Relaxed);
        (opened != 0).then(|| Seen {
            opened,
            last: self.last.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
        })
    }
}

/// Somebody is there.
#[derive(Debug)]
pub(super) struct InUse(Arc<Usage>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0
            .last
            .fetch_max(Timestamp::now().as_millisecond(), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a gateway tells the operator of its visitors, at [`ACTIVITY_PATH`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Since when it counts: what was before, this gateway does not know. Milliseconds since 1970.
    pub since: i64,
    /// By host label, each preview that was ever opened through it.
    pub previews: BTreeMap<String, Seen>,
}

/// When somebody was last there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// First, in milliseconds since 1970.
    pub opened: i64,
    /// Last, in milliseconds since 1970.
    pub last: i64,
    /// How many requests and connections go on.
    pub open: usize,
}

/// Where a gateway tells it, on its admin port.
pub const ACTIVITY_PATH: &str = "/activity";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_let_in_and_then_as_many_as_the_rate_says() {
        let usage = Usage::default();
        let begun = Instant::now();
        let let_in = |at: Instant, tries: usize| (0..tries).filter(|_| usage.admits(5, at)).count();
        assert_eq!(let_in(begun, 100), 50);
        assert_eq!(let_in(begun + Duration::from_secs(2), 100), 10);
        assert_eq!(let_in(begun + Duration::from_secs(1000), 100), 50);
    }

    #[test]
    fn who_was_there_and_who_still_is_can_be_told() {
        let usage = Arc::new(Usage::default());
        assert_eq!(usage.seen(), None);
        let then = Timestamp::from_second(1000).unwrap();
        let visitor = usage.enter(then);
        assert_eq!(
            usage.seen().map(|seen| (seen.opened, seen.open)),
            Some((1_000_000, 1))
        );
        drop(visitor);
        let seen = usage.seen().unwrap();
        assert_eq!((seen.opened, seen.open), (1_000_000, 0));
        assert!(seen.last > 1_000_000);
    }
}
