//! Where orders are kept.

pub mod postgres;
