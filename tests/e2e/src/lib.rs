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
pub mod manifest;
pub mod operator;
pub mod proxy;
pub mod request;
pub mod sink;
pub mod streamer;
pub mod trouble;
pub mod turn;

/// Whether this run has the counts that evidence needs (`cargo xtask soak`), rather than the small ones of every day.
pub fn soak() -> bool {
    std::env::var("VITRINE_SOAK").is_ok_and(|value| value == "1")
}
