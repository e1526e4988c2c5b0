//! What every HTTP service of the shop is made of: errors as problems, request ids, metrics on a port of their own, and an end that loses nothing;
//! and the keys they sign with. Knows nothing of what a service is for.

mod bearer;
mod crowd;
mod database;
mod extract;
mod metrics;
mod problem;
mod requests;
mod schema;
mod seal;
mod serve;
mod traces;

pub use bearer::{BadToken, Token, known};
pub use crowd::{Crowd, with_room};
pub use database::{Database, PLANNED_ONCE};
pub use extract::{Json, Path, Query, Text};
pub use metrics::Metrics;
pub use problem::Problem;
pub use requests::Callers;
pub use schema::watch_schema;
pub use seal::{BadSeal, NotSigned, Seal};
pub use serve::{Addresses, ended, layered, run, serve, watching};
pub use traces::told_on;
pub use vitrine_program::{NotServed, Readiness};
