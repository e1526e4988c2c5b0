//! What happens between a store and the world, step by step. Generic over both: the same code runs in production and in the simulation, where
//! every await is a place at which the process may end, or sleep past its lease. No spawn, no sleep, no select here.

#![deny(clippy::disallowed_macros, clippy::disallowed_methods)]

pub mod checkout;
pub mod sweep;
pub mod webhook;
pub mod worker;
