//! What the tests of this crate share: clusters with names of their own, kubectl, and waiting on conditions.
#![allow(
    dead_code,
    reason = "each test file is a program of its own and uses a part of this"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, progress};

/// A name that no other run uses, so that tests run beside each other and beside a person's clusters.
pub fn name(what: &str) -> String {
    format!("test-{what}-{}", std::process::id())
}

/// Brings a cluster up that ends with the test.
pub fn up(what: &str, level: Level) -> Cluster {
    up_with(ClusterConfig::new(name(what), level))
}

/// Like [`up`], for a config of one's own.
pub fn up_with(config: ClusterConfig) -> Cluster {
    Cluster::up(&config, Lifetime::Owned, &*progress::for_stderr(true))
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Runs kubectl; panics when it fails.
pub fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    try_kubectl(cluster, arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
}

/// Runs kubectl; the error is what it said.
pub fn try_kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String, String> {
    let program = cluster.binary("kubernetes", "kubectl").unwrap();
    let output = Command::new(program)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .args(arguments)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Creates an object.
pub fn create(cluster: &Cluster, object: &Value) {
    let file = std::env::temp_dir()
        .join(format!("{}-{}.json", cluster.name(), object["metadata"]["name"]).replace('"', ""));
    std::fs::write(&file, object.to_string()).unwrap();
    kubectl(cluster, &["create", "-f", &file.to_string_lossy()]);
    std::fs::remove_file(file).unwrap();
}

/// Reads an object.
pub fn get(cluster: &Cluster, arguments: &[&str]) -> Value {
    let text = kubectl(cluster, &[&["get", "-o", "json"], arguments].concat());
    serde_json::from_str(&text).unwrap()
}

/// Waits until something holds; panics with what it saw last.
pub fn eventually<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > end => panic!("{what}: not within {deadline:?}; last seen: {seen}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
