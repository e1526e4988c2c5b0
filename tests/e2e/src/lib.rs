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

pub use vitrine_parts::{seeds, soak};
