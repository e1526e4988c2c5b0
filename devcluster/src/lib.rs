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
//! How it holds together:
//!
//! ```text
//! owner (xtask, a test, a shell)       builds the tools, starts the supervisor, talks to its control socket
//!  └ unshare                           makes a mount and a pid namespace; when it dies, all below dies
//!     └ init        pid 1 in there     buries orphans; when it ends, the kernel ends every process in there
//!        └ supervise                   in the machine's own network namespace, from where it relays
//!           ├ etcd, API server, …      in the network namespace "node", entered by nsenter
//!           └ containerd, kubelet, …   pods in namespaces of their own, joined to "node" by a bridge
//! network namespace "outside"          203.0.113.10 and 169.254.169.254, answered by the supervisor
//! ```
//!
//! /run, /var/lib and /var/log are the cluster's own in there. So after any end, kill -9 included, only the state folder
//! and empty cgroups can be left, and every cluster command removes those of dead clusters.
//!
//! Three levels: [`Level::ControlPlane`], [`Level::Scale`], [`Level::Full`]. Several clusters live side by side under
//! different names. All calls block; none needs a runtime.

pub mod cargo;
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
    API_PORT, API_SERVICE_ADDRESS, ClusterConfig, DNS_NODE_PORT, DNS_SERVICE_ADDRESS, GVISOR,
    INTERNET_ADDRESS, Level, Lifetime, METADATA_ADDRESS, NODE_ADDRESS, NODE_NAME, OUTSIDE_ADDRESS, POD_CIDR,
    SERVICE_CIDR,
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
