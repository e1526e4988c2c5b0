//! Benches on nodes that run nothing: brings up the cluster and runs `tests/e2e/examples/bench`, compiled for speed, against it.

use std::process::Stdio;

use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, progress};
use vitrine_kit::{Result, images, program};

/// What the control plane is given to play with.
pub struct Nodes {
    /// How many nodes.
    count: u32,
    /// Whether nothing in Kubernetes holds requests back.
    unthrottled: bool,
}

impl Nodes {
    /// As tests have them.
    pub const FEW: Self = Self {
        count: 3,
        unthrottled: false,
    };
    /// As agent-sandbox is measured by its own authors.
    pub const MANY: Self = Self {
        count: 100,
        unthrottled: true,
    };
}

/// Runs one; the result is its report in Markdown.
pub fn measure(arguments: &[&str], nodes: Nodes) -> Result<String> {
    // At once: what both depend on is then compiled once.
    let release = super::released(&[
        "--package=vitrine-operator",
        "--package=vitrine-e2e",
        "--bin=vitrine-operator",
        "--example=bench",
    ])?;
    let progress = progress::for_stderr(true);
    let config = ClusterConfig {
        fake_nodes: nodes.count,
        unthrottled: nodes.unthrottled,
        ..ClusterConfig::new(format!("bench-{}", std::process::id()), Level::Scale)
    };
    let cluster = Cluster::up(&config, Lifetime::Owned, &*progress)?;
    let mut bench = std::process::Command::new(release.join("examples/bench"));
    bench
        .current_dir(images::workspace())
        .args(arguments)
        // It may take an hour: how far it is, is told as it goes.
        .stderr(Stdio::inherit())
        .env("VITRINE_E2E_SCALE", cluster.name());
    let report = program::run_with(&mut bench)?;
    cluster.down()?;
    Ok(report)
}
