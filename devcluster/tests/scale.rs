//! The scale level plays nodes and pods by our own stages: the same states, in the same order, as a real kubelet.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use support::{create, eventually, get, kubectl};
use vitrine_devcluster::{Cluster, ClusterConfig, Level, Place};

const SOON: Duration = Duration::from_secs(20);

fn pod(name: &str, outcome: &str) -> Value {
    let orders = json!({
        "nonce": format!("nonce-of-{name}"),
        "targets": [
            { "name": "internet", "address": "203.0.113.10:80", "required": true },
            { "name": "kubelet", "address": "{node}:10250", "required": false },
        ],
    });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "finalizers": ["vitrine.dev/test"],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "initContainers": [
                {
                    "name": "prove",
                    "image": "vitrine.local/probe:1",
                    "env": [{ "name": "VITRINE_PROBE", "value": orders.to_string() }],
                },
                { "name": "watch", "image": "vitrine.local/probe:1", "restartPolicy": "Always" },
            ],
            "containers": [{
                "name": "main",
                "image": "vitrine.local/goods:1",
                "env": [{ "name": "KWOK_OUTCOME", "value": outcome }],
            }],
        },
    })
}

/// The pod's status once a condition on it holds.
fn status(cluster: &Cluster, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    eventually(what, SOON, || {
        let pod = get(cluster, &["pod", name]);
        if holds(&pod) {
            Ok(pod["status"].clone())
        } else {
            Err(pod["status"].to_string())
        }
    })
}

fn verdict(status: &Value) -> Value {
    let message = status["initContainerStatuses"][0]["state"]["terminated"]["message"]
        .as_str()
        .unwrap_or_default();
    serde_json::from_str(message).unwrap()
}

#[test]
fn pods_get_ready_fail_crash_and_hang_as_told_and_end_like_real_ones() {
    let cluster = support::up_with(ClusterConfig {
        fake_nodes: 2,
        ..ClusterConfig::new(support::name("scale"), Level::Scale)
    });
    for (name, outcome) in [
        ("fine", ""),
        ("leaky", "fail-proof"),
        ("crashy", "crash"),
        ("stuck", "hang"),
    ] {
        create(&cluster, &pod(name, outcome));
    }

    let fine = status(&cluster, "fine", "it runs", |pod| {
        pod["status"]["phase"] == "Running"
    });
    let kubelet = format!("{}:10250", fine["hostIP"].as_str().unwrap());
    assert_eq!(
        verdict(&fine),
        json!({
            "nonce": "nonce-of-fine", "judgement": "isolated", "rounds": 1, "elapsedMs": 1, "canary": true,
            "targets": [
                { "name": "internet", "address": "203.0.113.10:80", "required": true, "outcome": "shut", "how": "simulated" },
                { "name": "kubelet", "address": kubelet, "required": false, "outcome": "shut", "how": "simulated" },
            ],
        })
    );
    assert_eq!(fine["initContainerStatuses"][1]["started"], true);
    assert_eq!(fine["containerStatuses"][0]["ready"], true);
    assert!(fine["podIP"].as_str().unwrap().starts_with("127.244."), "{fine}");
    let conditions = fine["conditions"].as_array().unwrap();
    for wanted in ["Initialized", "ContainersReady", "Ready"] {
        assert!(
            conditions
                .iter()
                .any(|one| one["type"] == wanted && one["status"] == "True"),
            "{wanted}: {fine}"
        );
    }

    // Every fake address is the node's own, so a test's server can stand in for what runs in a pod.
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 8090));
    cluster
        .expose(Place::Node, everywhere, server.local_addr().unwrap())
        .unwrap();
    let at_pod = SocketAddr::new(fine["podIP"].as_str().unwrap().parse().unwrap(), 8090);
    let port = cluster.forward(0, at_pod).unwrap();
    let mut visitor = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    visitor.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    server.accept().unwrap().0.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");

    let leaky = status(&cluster, "leaky", "it fails", |pod| {
        pod["status"]["phase"] == "Failed"
    });
    assert_eq!(verdict(&leaky)["judgement"], "leaking");
    let internet = &verdict(&leaky)["targets"][0];
    assert_eq!(
        (&internet["outcome"], &internet["how"]),
        (&json!("reached"), &Value::Null)
    );
    assert_eq!(
        leaky["initContainerStatuses"][0]["state"]["terminated"]["exitCode"],
        1
    );
    assert_eq!(
        leaky["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );

    let crashy = status(&cluster, "crashy", "it crashes", |pod| {
        pod["status"]["phase"] == "Failed"
    });
    assert_eq!(
        crashy["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        1
    );
    assert_eq!(
        verdict(&crashy)["judgement"],
        "isolated",
        "what ended before keeps its verdict"
    );

    let stuck = get(&cluster, &["pod", "stuck"]);
    assert_eq!(
        (&stuck["status"]["phase"], &stuck["status"]["podIP"]),
        (&json!("Pending"), &Value::Null)
    );

    kubectl(&cluster, &["delete", "pod", "fine", "stuck", "--wait=false"]);
    for name in ["fine", "stuck"] {
        let ended = status(
            &cluster,
            name,
            "it has ended and waits for its finalizer",
            |pod| {
                pod["metadata"]["deletionGracePeriodSeconds"] == 0
                    && pod["metadata"]["finalizers"] == json!(["vitrine.dev/test"])
                    && pod["status"]["phase"] == "Failed"
            },
        );
        let containers = ended["containerStatuses"].as_array().into_iter().flatten();
        let all = containers.chain(ended["initContainerStatuses"].as_array().into_iter().flatten());
        assert_eq!(all.clone().count(), 3, "{ended}");
        assert!(
            all.into_iter().all(|one| one["state"]["terminated"].is_object()),
            "{ended}"
        );
    }
    kubectl(
        &cluster,
        &[
            "patch",
            "pod",
            "fine",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ],
    );
    eventually("it is gone", SOON, || {
        support::try_kubectl(&cluster, &["get", "pod", "fine"]).map_or(Ok(()), Err)
    });
    cluster.down().unwrap();
}
