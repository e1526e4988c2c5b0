//! What the tests on real clusters share: the clusters that `cargo xtask test` has brought up, and Vitrine in them.
//!
//! A missing cluster makes a test fail, never skip.

pub mod clusters;
pub mod crds;
pub mod eventually;
pub mod history;
pub mod house;
pub mod installed;
pub mod operator;
pub mod proxy;
