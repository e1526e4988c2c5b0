//! Waits for what must come true, with a deadline and the last reason why not. Touches nothing itself.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

/// How soon it is looked at again: soon at first, later a twentieth of the time that was waited already. Dozens of tests wait at
/// once, on cores that the cluster needs.
const POLL: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(250);

/// Waits until the look succeeds.
///
/// # Panics
/// If it does not in time: with what was waited for and what was seen last.
pub async fn eventually<T>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let begun = Instant::now();
    loop {
        let last = match look().await {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(
            begun.elapsed() < patience,
            "{what} did not come true within {:.1} s; last seen: {last}",
            patience.as_secs_f64()
        );
        tokio::time::sleep((begun.elapsed() / 20).clamp(*POLL.start(), *POLL.end())).await;
    }
}
