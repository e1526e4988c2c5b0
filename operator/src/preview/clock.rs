//! Notices that the clock was set, or that the machine slept. Has all previews looked at then.
//!
//! What waits for a time waits by a clock that only goes on (`CLOCK_MONOTONIC`, which stands still while a machine sleeps); when previews end
//! is told by the other one. Where the two have come apart, whatever waits may be due.

use std::time::{Duration, Instant, SystemTime};

use super::Context;

/// How often they are compared.
const PERIOD: Duration = Duration::from_secs(1);
/// Time servers slew a clock by less than a thousandth (RFC 5905, 500 ppm), and a busy machine is late by less than this.
const APART: Duration = Duration::from_secs(2);

/// Compares for ever.
pub async fn run(context: &Context) {
    let mut last = (Instant::now(), SystemTime::now());
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = (Instant::now(), SystemTime::now());
        if let Some(apart) = apart(last, now) {
            tracing::warn!(
                seconds = apart.as_secs_f64(),
                "the clock was set, or this machine slept: looking at every preview"
            );
            context.wakes.previews.add_each(context.watched.previews.names());
        }
        last = now;
    }
}

/// By how much the two clocks have come apart between two moments, if it matters.
fn apart(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> Option<Duration> {
    let passed = now.0.saturating_duration_since(before.0);
    let apart = match now.1.duration_since(before.1) {
        Ok(told) => told.abs_diff(passed),
        // Set back.
        Err(error) => error.duration() + passed,
    };
    (apart >= APART).then_some(apart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_went_on() {
        let before = (Instant::now(), SystemTime::now());
        let after = |passed: u64, told: i64| {
            let span = Duration::from_secs(told.unsigned_abs());
            let told = if told < 0 {
                before.1 - span
            } else {
                before.1 + span
            };
            apart(before, (before.0 + Duration::from_secs(passed), told))
        };
        assert_eq!(after(1, 1), None);
        assert_eq!(after(60, 60), None, "the machine was busy, and both went on");
        assert_eq!(after(1, 3601), Some(Duration::from_secs(3600)), "it slept");
        assert_eq!(after(1, -9), Some(Duration::from_secs(10)), "it was set back");
    }
}
