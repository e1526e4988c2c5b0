//! A token bucket. Touches no clock: the time is passed in.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So much may be taken at once that nobody has taken in the last second.
const BURST_SECONDS: f64 = 1.0;

/// A bucket that fills at a rate.
#[derive(Debug)]
pub struct Bucket {
    /// A second.
    rate: f64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one, that fills with so many a second, at least one.
    pub fn new(rate: u32) -> Self {
        let rate = f64::from(rate.max(1));
        let state = State {
            tokens: rate * BURST_SECONDS,
            at: Instant::now(),
        };
        Self {
            rate,
            state: Mutex::new(state),
        }
    }

    /// Takes one, if so much of a full bucket is left for others; or says how long it takes until there is one.
    ///
    /// # Errors
    /// For how long there is none.
    pub fn take(&self, leaves: f64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let most = (self.rate * BURST_SECONDS).max(1.0);
        let since = now.saturating_duration_since(state.at).as_secs_f64();
        state.tokens = (state.tokens + since * self.rate).min(most);
        state.at = now;
        // Of a small bucket nobody leaves so much that there is not one for them when it is full.
        let needed = (1.0 + leaves * most).min(most);
        if state.tokens >= needed {
            state.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((needed - state.tokens) / self.rate))
        }
    }

    /// Empties it.
    pub fn drain(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tokens = 0.0;
        state.at = Instant::now();
    }
}
