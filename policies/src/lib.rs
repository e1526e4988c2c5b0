//! All that confines a preview, as pure functions from custom resources to Kubernetes objects. No client, no I/O, no clock.
//!
//! Golden YAML of every object is beside the code in `golden/`; a change to it is a change to the isolation of previews.

pub mod abuse;
pub mod capacity;
pub mod cell;
pub mod envelope;
pub mod names;
pub mod probe;
pub mod queue;
pub mod slots;

pub use envelope::{Envelope, Refusal};
