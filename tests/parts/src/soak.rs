//! How much a test tries: little every day, and as much as evidence needs where `cargo xtask soak` runs it.

use std::ops::RangeInclusive;

/// Set by `cargo xtask soak`: to `1`, or to the first and the last of the chosen seeds, as `1-20`.
const SOAK: &str = "VITRINE_SOAK";

/// Whether this run has the counts that evidence needs, rather than the small ones of every day.
pub fn soak() -> bool {
    std::env::var_os(SOAK).is_some()
}

/// The seeds of a test that has so many: of all its rounds, or of those that were chosen.
///
/// # Panics
/// If what was chosen names no seeds.
pub fn seeds(all: u64) -> RangeInclusive<u64> {
    let chosen = std::env::var(SOAK).unwrap_or_default();
    let chosen = chosen.split_once('-');
    chosen.map_or(1..=all, |(first, last)| {
        let seed = |text: &str| {
            text.parse()
                .unwrap_or_else(|error| panic!("{SOAK}: {text:?}: {error}"))
        };
        seed(first)..=seed(last)
    })
}
