//! A real Kubernetes on this machine, from one command: pinned parts, private namespaces, nothing left behind.
//!
//! ```no_run
//! use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, progress};
//!
//! # fn main() -> Result<(), vitrine_devcluster::Error> {
//! let config = ClusterConfig::new("example", Level::ControlPlane);
//! let cluster = Cluster::up(&config, Lifetime::Owned, &*progress::for_stderr(true))?;
//! println!("{}", cluster.kubeconfig().display());
//! cluster.down()
//! # }
//! ```
//!
//! Three levels: [`Level::ControlPlane`], [`Level::Scale`], [`Level::Full`]. Several clusters live side by side under
//! different names. All calls block; none needs a runtime.

mod cgroup;
pub mod cli;
mod cluster;
mod config;
mod control;
mod error;
pub mod host;
pub mod image;
mod paths;
mod pki;
pub mod progress;
mod reap;
mod supervisor;
pub mod tools;

pub use cluster::Cluster;
pub use config::{
    API_PORT, API_SERVICE_ADDRESS, ClusterConfig, DNS_SERVICE_ADDRESS, INTERNET_ADDRESS, Level, Lifetime,
    METADATA_ADDRESS, NODE_ADDRESS, NODE_NAME, OUTSIDE_ADDRESS, POD_CIDR, SERVICE_CIDR,
};
pub use control::{
    Action, ComponentState, ComponentStatus, Hit, Hits, Output, Place, Protocol, Status, Timings,
};
pub use error::{Error, Result};

/// The entry points of this crate's own binary. Not for anybody else.
#[doc(hidden)]
pub mod internal {
    use std::path::Path;

    /// The first process of a cluster's pid namespace.
    pub fn init(state: &Path) -> crate::Result<i32> {
        crate::supervisor::init::run(state)
    }

    /// The supervisor.
    pub fn supervise(state: &Path) -> crate::Result<i32> {
        crate::supervisor::run(state)
    }
}
