//! What tests of the shop share: a Postgres of their own, a house with keys, Finance's side of it.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "tests say what is wrong by panicking"
)]

pub mod around;
pub mod garbage;
pub mod house;
pub mod model;
pub mod postgres;
pub mod simulation;
pub mod stores;
pub mod town;
pub mod wire;
