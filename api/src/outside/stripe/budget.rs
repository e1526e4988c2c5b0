//! How many requests Stripe is sent, and who of us waits when there are not enough: a token bucket, of which the last part is kept for those who
//! matter more. Touches nothing but the runtime's clock.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What a request is for; who comes first is served first when there are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A buyer waits.
    Checkout,
    /// Money has to go back.
    Refund,
    /// A worker looks something up.
    Worker,
    /// A session that nobody needs any more is ended.
    Janitor,
    /// Events are looked through for some that nobody told of.
    Sweep,
}

impl Class {
    /// The part of the bucket that it leaves to those before it.
    const fn leaves(self) -> f64 {
        match self {
            Self::Checkout => 0.0,
            Self::Refund => 0.1,
            Self::Worker => 0.2,
            Self::Janitor => 0.4,
            Self::Sweep => 0.6,
        }
    }
}

/// So many requests may be sent at once that nobody has sent in the last second.
const BURST_SECONDS: f64 = 1.0;
/// Who has to wait for longer is told to come back: a worker's lease is a minute, and a buyer's request half of that.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bucket of requests.
#[derive(Debug)]
pub struct Budget {
    /// Requests a second.
    rate: f64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// So many requests a second, at least one.
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

    /// Takes one, or says how long it takes until there is one for this class.
    fn take(&self, class: Class, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let most = (self.rate * BURST_SECONDS).max(1.0);
        let since = now.saturating_duration_since(state.at).as_secs_f64();
        state.tokens = (state.tokens + since * self.rate).min(most);
        state.at = now;
        // Of a small bucket nobody leaves so much that there is not one for them when it is full.
        let needed = (1.0 + class.leaves() * most).min(most);
        if state.tokens >= needed {
            state.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((needed - state.tokens) / self.rate))
        }
    }

    /// Takes one, when there is one for this class.
    ///
    /// # Errors
    /// For how long to stay away, if there would be none for too long.
    pub async fn spend(&self, class: Class) -> Result<(), Duration> {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let Err(wait) = self.take(class, now) else {
                return Ok(());
            };
            if now + wait > begun + PATIENCE {
                return Err(wait.max(Duration::from_secs(1)));
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Stripe has said that it is asked too often, whatever was reckoned here: everybody waits until the bucket has something again.
    pub fn drain(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tokens = 0.0;
        state.at = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Class; 5] = [
        Class::Checkout,
        Class::Refund,
        Class::Worker,
        Class::Janitor,
        Class::Sweep,
    ];

    fn spent(budget: &Budget, class: Class, now: Instant) -> usize {
        (0..1_000).take_while(|_| budget.take(class, now).is_ok()).count()
    }

    #[test]
    fn the_last_of_a_bucket_is_kept_for_who_comes_first() {
        let (budget, now) = (Budget::new(100), Instant::now());
        // The least first: each leaves what is for those before it.
        let taken: Vec<_> = ALL
            .iter()
            .rev()
            .map(|&class| spent(&budget, class, now))
            .collect();
        assert_eq!(taken, [40, 20, 20, 10, 10]);
    }

    #[test]
    fn nobody_sends_more_than_the_rate_and_a_buyer_waits_for_nobody() {
        let (budget, begun) = (Budget::new(50), Instant::now());
        let (mut swept, mut bought) = (0, 0);
        for tenth in 0..100 {
            let now = begun + Duration::from_millis(100) * tenth;
            swept += spent(&budget, Class::Sweep, now);
            bought += usize::from(budget.take(Class::Checkout, now).is_ok());
        }
        assert_eq!(bought, 100);
        assert!((450..=550).contains(&(swept + bought)), "{swept} and {bought}");
    }

    #[test]
    fn whoever_waits_is_told_for_how_long() {
        let budget = Budget::new(1);
        for class in ALL {
            budget.drain();
            let now = Instant::now();
            let wait = budget.take(class, now).unwrap_err();
            assert!(
                (Duration::from_millis(900)..=Duration::from_secs(1)).contains(&wait),
                "{wait:?}"
            );
            // Also of a small bucket there is one for everybody.
            assert_eq!(budget.take(class, now + wait), Ok(()), "{class:?}");
        }
    }
}
