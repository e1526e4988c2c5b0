//! Waits for what must come true, with a deadline and the last reason why not. Touches nothing itself.

use std::time::{Duration, Instant};

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(50);

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
        tokio::time::sleep(POLL).await;
    }
}
