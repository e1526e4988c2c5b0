//! A token bucket. Touches no clock: the time is passed in.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So much may be taken at once that nobody has taken in the last second.
const BURST_SECONDS: f64 = 1.0;

/// When the rate was too high nothing is taken for so long, in seconds: others count by the second, …
const PAUSE: f64 = 0.5;
/// … and so much of the rate is left, …
const SLOWER: f64 = 0.7;
/// … once in so long: many are told so at the same time.
const SLOWER_AT_MOST: Duration = Duration::from_secs(1);
/// How much of the whole rate comes back in a second: additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the increase and
/// decrease algorithms for congestion avoidance", 1989).
const FASTER: f64 = 0.01;

/// A bucket that fills at a rate, which may turn out to be too high.
#[derive(Debug)]
pub struct Bucket {
    /// A second, at most.
    most: f64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    tokens: f64,
    /// A second, now.
    rate: f64,
    at: Instant,
    slowed_at: Option<Instant>,
}

impl Bucket {
    /// A full one, that fills with so many a second, at least one.
    pub fn new(rate: u32) -> Self {
        let most = f64::from(rate.max(1));
        let state = State {
            tokens: most * BURST_SECONDS,
            rate: most,
            at: Instant::now(),
            slowed_at: None,
        };
        Self {
            most,
            state: Mutex::new(state),
        }
    }

    /// Takes one, if so much of a full bucket is left for others; or says how long it takes until there is one.
    ///
    /// # Errors
    /// For how long there is none.
    pub fn take(&self, leaves: f64, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.saturating_duration_since(state.at).as_secs_f64();
        let most = (state.rate * BURST_SECONDS).max(1.0);
        state.tokens = (state.tokens + since * state.rate).min(most);
        state.rate = (state.rate + since * FASTER * self.most).min(self.most);
        state.at = now;
        // Of a small bucket nobody leaves so much that there is not one for them when it is full.
        let needed = (1.0 + leaves * most).min(most);
        if state.tokens >= needed {
            state.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((needed - state.tokens) / state.rate))
        }
    }

    /// The rate was too high: there is nothing for a moment, and less for a while.
    pub fn slow(&self, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tokens = -PAUSE * state.rate;
        state.at = now;
        let is_news = state
            .slowed_at
            .is_none_or(|at| now.saturating_duration_since(at) > SLOWER_AT_MOST);
        if is_news {
            state.rate = (state.rate * SLOWER).max(1.0);
            state.slowed_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of somebody who always has one, to a server that takes fewer than was thought: how many were sent, and how many of them turned away.
    #[test]
    fn a_rate_that_is_too_high_is_found_out_by_few_and_comes_back() {
        let begun = Instant::now();
        let (ours, theirs) = (Bucket::new(25), Bucket::new(15));
        let (mut sent, mut turned_away) = (0_u32, 0_u32);
        for millisecond in 0..600_000 {
            let now = begun + Duration::from_millis(millisecond);
            if ours.take(0.0, now).is_ok() {
                sent += 1;
                if theirs.take(0.0, now).is_err() {
                    turned_away += 1;
                    ours.slow(now);
                }
            }
        }
        assert!(sent - turned_away > 600 * 15 * 8 / 10, "{sent} and {turned_away}");
        assert!(turned_away < sent / 100, "{turned_away} of {sent}");
        // Nobody turns anything away any more.
        let later = begun + Duration::from_secs(700);
        let taken = (0..60_000).filter(|millisecond| {
            let now = later + Duration::from_millis(*millisecond);
            ours.take(0.0, now).is_ok()
        });
        assert!(taken.count() > 60 * 24);
    }
}
