//! The store in Postgres beside the one in memory: given the same commands one after the other, and by several clients at once.

mod command;
mod drawn;
pub mod linear;
mod pair;
pub mod same;
