//! What a cluster is asked to be, and the constants of every cluster. Pure: touches nothing.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The only real node's name.
pub const NODE_NAME: &str = "node-1";
/// The node's address, in the network namespace `node`. The API server and kubelet listen here.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 2);
/// The other end of the node's only link: the node's default route, in the namespace `outside`.
pub const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 10, 0, 1);
/// An address of TEST-NET-3 (RFC 5737) that answers as "the internet".
pub const INTERNET_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The address on which clouds answer with the machine's metadata and credentials.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The addresses of all pods that run.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// The range of addresses of pods on nodes that run nothing: loopback addresses, so that whoever stands in for such a pod can
/// listen there.
pub const FAKE_POD_CIDR: &str = "127.244.0.0/16";
/// The pod addresses of the one real node.
pub const NODE_POD_CIDR: &str = "10.244.0.0/24";
/// All service addresses of the cluster.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The service `kubernetes.default`: by rule the first address of the service range.
pub const API_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The service `kube-dns.kube-system`, as every kubeadm cluster has it.
pub const DNS_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Where the stub DNS listens on the node. Not 53, so that only the service answers on 53.
pub const DNS_NODE_PORT: u16 = 5353;
/// The RuntimeClass of pods under gVisor, and the tool group that it needs.
pub const GVISOR: &str = "gvisor";
/// The API server's port on the node.
pub const API_PORT: u16 = 6443;

/// How much of Kubernetes runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// etcd, API server and controller-manager: admission, validation, quotas, garbage collection.
    ControlPlane,
    /// Adds the scheduler and KWOK with fake nodes: many pods that run nothing.
    Scale,
    /// Adds a real node: containerd, kubelet, kube-proxy, pod network, enforced policies, an outside world.
    Full,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::ControlPlane => "control-plane",
            Level::Scale => "scale",
            Level::Full => "full",
        })
    }
}

/// Who ends the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It ends with the process that started it, however that ends.
    Owned,
    /// It stays until `down`.
    Detached,
}

/// What is asked of [`crate::Cluster::up`].
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Its name on this machine: lower case letters, digits and dashes, at most [`MAX_NAME`] characters.
    pub name: String,
    /// How much of Kubernetes runs.
    pub level: Level,
    /// Fake nodes, at level [`Level::Scale`].
    pub fake_nodes: u32,
    /// Whether the API server sheds no load and Kubernetes' own clients hold nothing back: for benches, which measure others.
    pub unthrottled: bool,
    /// The port of the API server on 127.0.0.1 of this machine; 0 lets the kernel choose.
    pub api_port: u16,
    /// Whether pods may run under gVisor, at level [`Level::Full`]: RuntimeClass [`GVISOR`].
    pub gvisor: bool,
    /// Where the logs go when the cluster ends; without it they go with the cluster.
    pub keep_logs: Option<PathBuf>,
}

/// The longest name: it is part of a cgroup's name, which must stay readable in errors.
pub const MAX_NAME: usize = 40;

impl ClusterConfig {
    /// A full cluster of that name with every default.
    #[must_use]
    pub fn new(name: impl Into<String>, level: Level) -> Self {
        Self {
            name: name.into(),
            level,
            fake_nodes: 3,
            unthrottled: false,
            api_port: 0,
            gvisor: false,
            keep_logs: None,
        }
    }

    /// Whether gVisor has to be there.
    pub(crate) fn has_gvisor(&self) -> bool {
        self.gvisor && self.level == Level::Full
    }

    /// The name must be safe as a folder and as a cgroup.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        validate_name(&self.name)
    }
}

/// Accepts what is safe as the name of a folder and a cgroup.
pub(crate) fn validate_name(name: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) || name.starts_with('-') {
        return Err(Error::Name {
            name: name.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_folder_and_a_cgroup() {
        for good in ["vitrine", "a", "e2e-1", "0x"] {
            assert!(validate_name(good).is_ok(), "{good:?}");
        }
        for bad in ["", "../x", "A", "a/b", "-a", ".", "a b", &"x".repeat(41)] {
            assert!(validate_name(bad).is_err(), "{bad:?}");
        }
    }
}
