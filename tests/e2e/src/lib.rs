//! What the tests on real clusters share: the clusters that `cargo xtask test` has brought up, and Vitrine in them.
//!
//! A missing cluster makes a test fail, never skip.

pub mod clusters;
