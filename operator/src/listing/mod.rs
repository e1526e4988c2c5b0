//! The controller of `SkuListing`: whether shops may sell it. `judge` is pure, `controller` reads what the watches know and writes the status.

pub mod controller;
pub mod judge;
