//! What demo, tests and benches share: Vitrine's images, its charts in a cluster, and objects to try it with.
//!
//! Runs cargo, helm and the container image builder; talks to the clusters it is given.

pub mod audit;
pub mod browser;
pub mod error;
pub mod http;
pub mod images;
pub mod install;
pub mod market;
pub mod objects;
pub mod program;

pub use error::{Error, Result};
