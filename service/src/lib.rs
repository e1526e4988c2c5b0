//! What every HTTP service of the shop is made of: errors as problems, request ids, readiness, metrics on a port of their own, and an end
//! that loses nothing; and the keys they sign with. Knows nothing of what a service is for.

mod bearer;
mod health;
mod logging;
mod metrics;
mod problem;
mod requests;
mod schema;
mod seal;
mod serve;

pub use bearer::{BadToken, Token};
pub use health::Readiness;
pub use logging::logging;
pub use metrics::Metrics;
pub use problem::{Problem, STATUS_TYPE};
pub use requests::{REQUEST_ID, RequestId};
pub use schema::watch_schema;
pub use seal::{BadSeal, NotSigned, Seal};
pub use serve::{Addresses, ServeError, ended, serve};
