//! A Stripe that keeps state: what a shop needs of Checkout, refunds, disputes, events and the balance, for tests, the simulation and the demo.
//! Sans-I/O: time is passed in, nothing is random. The same behind HTTP, with a page on which a person pays: [`server`].
//!
//! What it does and does not do is a table of rules, each with the page of Stripe's documentation that it is from and a test: `tests/rules.rs`.

pub mod error;
pub mod form;
pub mod object;
pub mod server;
pub mod sim;
pub mod webhook;
