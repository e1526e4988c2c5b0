//! What every long-running program of Vitrine has: a log, readiness with reasons, a port for who looks after it, an end when it is told.

mod health;
mod logging;
mod signals;

pub use health::{NotServed, Readiness, listen, serve};
pub use logging::{Beside, logging, logging_beside};
pub use signals::until_told;
