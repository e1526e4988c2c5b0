//! The clusters that the tests run against. Attaches to them; starts none.

use vitrine_devcluster::{Cluster, Level};
use vitrine_kit::install::Target;

/// The cluster of a level that `cargo xtask test` has brought up.
///
/// # Panics
/// If there is none: then the tests were not started by `cargo xtask test`.
pub fn shared(level: Level) -> Cluster {
    let variable = match level {
        Level::ControlPlane => "VITRINE_E2E_CONTROL_PLANE",
        Level::Scale => "VITRINE_E2E_SCALE",
        Level::Full => "VITRINE_E2E_FULL",
    };
    let name = std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `cargo xtask test`, or set it to the name of a cluster from `cargo xtask cluster up`")
    });
    Cluster::attach(&name).unwrap_or_else(|error| panic!("the cluster {name} of {variable}: {error}"))
}

/// How a cluster is reached from this machine.
pub fn target(cluster: &Cluster) -> Target {
    Target {
        kubeconfig: cluster.kubeconfig().to_owned(),
        context: None,
    }
}
