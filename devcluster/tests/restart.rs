//! Parts of a cluster can be restarted and killed under a running pod: it runs on, and new ones start.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{create, eventually, get, try_kubectl};
use vitrine_devcluster::{Action, Cluster, Level, Place};

const SOON: Duration = Duration::from_secs(60);

/// A pod of the pause image, the one that every node has.
fn pod(cluster: &Cluster, name: &str) -> Value {
    let listed = cluster
        .exec(Place::HostMounts, &["ctr", "images", "list", "-q"])
        .unwrap();
    let image = listed
        .stdout
        .lines()
        .find(|line| line.contains("@sha256:"))
        .unwrap()
        .to_owned();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "main", "image": image }] },
    })
}

fn wait_until_ready(cluster: &Cluster, name: &str) -> Value {
    eventually("the pod is ready", SOON, || {
        try_kubectl(
            cluster,
            &[
                "wait",
                "--for=condition=Ready",
                &format!("pod/{name}"),
                "--timeout=1s",
            ],
        )?;
        Ok(get(cluster, &["pod", name]))
    })
}

#[test]
fn a_pod_survives_restarts_and_kills_of_every_part() {
    let cluster = support::up("restart", Level::Full);
    create(&cluster, &pod(&cluster, "before"));
    let before = wait_until_ready(&cluster, "before");
    for part in [
        "containerd",
        "kubelet",
        "apiserver",
        "etcd",
        "controller-manager",
        "scheduler",
        "proxy",
        "netpol",
    ] {
        cluster.component(part, Action::Restart).unwrap();
    }
    for part in ["containerd", "apiserver", "kubelet"] {
        cluster.component(part, Action::Kill).unwrap();
        cluster.component(part, Action::Start).unwrap();
    }
    eventually("the API server is back", SOON, || {
        try_kubectl(&cluster, &["get", "--raw", "/readyz"])
    });
    create(&cluster, &pod(&cluster, "after"));
    wait_until_ready(&cluster, "after");
    let after = wait_until_ready(&cluster, "before");
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    let container = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(container(&before), container(&after));
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    cluster.down().unwrap();
}
