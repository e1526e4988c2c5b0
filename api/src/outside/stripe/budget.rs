//! How many requests Stripe is sent, and who of us waits when there are not enough: a token bucket, of which the last part is kept for those who
//! matter more. Touches nothing but the runtime's clock.

use std::time::Duration;

use tokio::time::Instant;

use super::WHO;
use crate::{bucket::Bucket, seams::Outside};

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

/// Who has to wait for longer is told to come back: a worker's lease is a minute, and a buyer's request half of that.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bucket of requests.
#[derive(Debug)]
pub struct Budget(Bucket);

impl Budget {
    /// So many requests a second, at least one.
    pub fn new(rate: u32) -> Self {
        Self(Bucket::new(rate))
    }

    /// Takes one, or says how long it takes until there is one for this class.
    fn take(&self, class: Class, now: Instant) -> Result<(), Duration> {
        self.0.take(class.leaves(), now)
    }

    /// Takes one, when there is one for this class; or says for how long to stay away, if there would be none for too long.
    async fn spend(&self, class: Class) -> Result<(), Duration> {
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

    /// Sends something when there is a request for it. Where Stripe says nevertheless that it is asked too often, everybody waits until the bucket
    /// has something again, which takes longer for a while.
    ///
    /// # Errors
    /// What the answer is, or that there would be no request for too long.
    pub async fn through<T>(
        &self,
        class: Class,
        sent: impl Future<Output = Result<T, Outside>>,
    ) -> Result<T, Outside> {
        let wait = self.spend(class).await;
        wait.map_err(|wait| Outside::TooOften {
            who: WHO,
            wait: Some(wait),
        })?;
        let answered = sent.await;
        if matches!(answered, Err(Outside::TooOften { .. })) {
            self.0.slow(Instant::now());
        }
        answered
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
            let now = Instant::now();
            budget.0.slow(now);
            let wait = budget.take(class, now).unwrap_err();
            assert!(
                (Duration::from_millis(1_400)..=Duration::from_millis(1_500)).contains(&wait),
                "{wait:?}"
            );
            // Also of a small bucket there is one for everybody.
            assert_eq!(budget.take(class, now + wait), Ok(()), "{class:?}");
        }
    }
}
