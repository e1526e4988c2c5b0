//! What the tests on real clusters share: the clusters that `cargo xtask test` has brought up, and Vitrine in them.
//!
//! A missing cluster makes a test fail, never skip.

pub mod clusters;
pub mod crds;
pub mod dice;
pub mod eventually;
pub mod history;
pub mod house;
pub mod installed;
pub mod ledger;
pub mod manifest;
pub mod operator;
pub mod proxy;
pub mod request;
pub mod sink;
pub mod streamer;
pub mod trouble;
pub mod turn;

/// Set where `cargo xtask soak` runs a test: to `1`, or to the first and the last of its seeds, as `1-20`.
const SOAK: &str = "VITRINE_SOAK";

/// Whether this run has the counts that evidence needs (`cargo xtask soak`), rather than the small ones of every day.
pub fn soak() -> bool {
    std::env::var_os(SOAK).is_some()
}

/// The seeds of a test that has so many: of all its rounds, or of those that were chosen.
pub fn seeds(all: u64) -> std::ops::RangeInclusive<u64> {
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
