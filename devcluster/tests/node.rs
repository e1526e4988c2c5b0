//! A full cluster is a real one: pods run by digest, policies hold, services and names resolve, and the outside world
//! counts what reaches it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};
use support::{create, eventually, get, kubectl};
use vitrine_devcluster::image::{self, FileEntry, Image};
use vitrine_devcluster::{
    Action, Cluster, ComponentState, INTERNET_ADDRESS, Level, METADATA_ADDRESS, NODE_ADDRESS, Place, host,
    progress,
};

const SOON: Duration = Duration::from_secs(30);

struct Stage {
    cluster: Cluster,
    busybox: Image,
}

/// One cluster for all tests of this file: it is never dropped, and ends when this process does.
fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        host::ensure(host::BUSYBOX, &*progress::for_stderr(true)).unwrap();
        let cluster = support::up("node", Level::Full);
        let mut contents = image::busybox("vitrine.local/busybox:1").unwrap();
        contents.config.volumes.push("/declared".to_owned());
        contents.files.push(FileEntry::text("/www/index.html", "hello\n"));
        let busybox = Image::build(&contents, &image::cache_folder().unwrap()).unwrap();
        cluster.import_image(&busybox).unwrap();
        Stage { cluster, busybox }
    })
}

/// Runs a script in a pod of a namespace; it may leave a text in /dev/termination-log.
fn pod(stage: &Stage, namespace: &str, name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": stage.busybox.by_digest(),
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", script],
            }],
        },
    })
}

fn namespace(cluster: &Cluster, name: &str) {
    kubectl(cluster, &["create", "namespace", name]);
    eventually("the namespace has its ServiceAccount", SOON, || {
        support::try_kubectl(cluster, &["-n", name, "get", "serviceaccount", "default"])
    });
}

/// Runs a script to its end and returns what it left in /dev/termination-log.
fn run(stage: &Stage, namespace: &str, name: &str, script: &str) -> String {
    create(&stage.cluster, &pod(stage, namespace, name, script));
    eventually("the pod ends", SOON, || {
        let status = get(&stage.cluster, &["-n", namespace, "pod", name])["status"].clone();
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        if ended.is_null() {
            return Err(status.to_string());
        }
        assert_eq!(ended["exitCode"], 0, "{status}");
        Ok(ended["message"].as_str().unwrap_or_default().to_owned())
    })
}

fn ready(stage: &Stage, namespace: &str, name: &str) -> Value {
    eventually("the pod is ready", SOON, || {
        let pod = get(&stage.cluster, &["-n", namespace, "pod", name]);
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let ready = conditions
            .iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        if ready {
            Ok(pod)
        } else {
            Err(pod["status"].to_string())
        }
    })
}

#[test]
fn a_pod_runs_by_digest_without_ipv6_and_without_image_volumes() {
    let stage = stage();
    namespace(&stage.cluster, "plain");
    let script =
        "{ cat /proc/net/if_inet6; grep declared /proc/mounts; id -u; ulimit -n; } > /dev/termination-log";
    let said = run(stage, "plain", "plain", script);
    let mut lines = said.lines();
    assert_eq!(
        lines.next(),
        Some("65532"),
        "no IPv6 address, no volume, the image's user: {said}"
    );
    let node = stage
        .cluster
        .exec(Place::Node, &["cat", "/proc/net/if_inet6"])
        .unwrap();
    assert_eq!(node.stdout, "", "no IPv6 address on the node");
}

#[test]
fn the_outside_world_counts_what_a_policy_then_stops() {
    let stage = stage();
    namespace(&stage.cluster, "outside");
    // Asks both addresses again and again, for as long as the pod lives.
    let script = "while true; do for a in 203.0.113.10 169.254.169.254; do timeout 1 wget -q -O /tmp/$a http://$a/; done; sleep 0.1; done";
    create(&stage.cluster, &pod(stage, "outside", "asker", script));
    let address = ready(stage, "outside", "asker")["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let seen = |to: std::net::Ipv4Addr| {
        let hits = stage.cluster.hits().unwrap().recent;
        let from_pod = hits.iter().filter(|hit| hit.source.ip().to_string() == address);
        from_pod
            .filter(|hit| hit.destination.ip() == to && hit.bytes > 0)
            .map(|hit| hit.at_ms)
            .max()
    };
    for to in [INTERNET_ADDRESS, METADATA_ADDRESS] {
        eventually("the outside world is reached", SOON, || {
            seen(to).ok_or_else(|| format!("{to} was not reached"))
        });
    }
    create(
        &stage.cluster,
        &json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": "deny", "namespace": "outside" },
            "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] },
        }),
    );
    eventually("the policy holds", SOON, || {
        let before = stage.cluster.hits().unwrap().total;
        // Longer than the pod's slowest round, two time-outs and a pause.
        std::thread::sleep(Duration::from_millis(2600));
        let after = stage.cluster.hits().unwrap();
        let late = after
            .recent
            .iter()
            .filter(|hit| hit.id > before && hit.source.ip().to_string() == address);
        let late = late.count();
        if late == 0 {
            Ok(())
        } else {
            Err(format!("{late} connections after the policy"))
        }
    });
    kubectl(
        &stage.cluster,
        &["delete", "namespace", "outside", "--wait=false"],
    );
}

#[test]
fn names_and_services_resolve() {
    let stage = stage();
    namespace(&stage.cluster, "names");
    create(
        &stage.cluster,
        &pod(stage, "names", "server", "httpd -f -p 8080 -h /www"),
    );
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "server", "namespace": "names" },
        "spec": { "selector": { "app": "server" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
    });
    create(&stage.cluster, &service);
    ready(stage, "names", "server");
    let script = "nslookup kubernetes.default.svc.cluster.local > /dev/termination-log; \
                  nslookup no-such.default.svc.cluster.local >> /dev/termination-log; \
                  for i in 1 2 3 4 5 6 7 8 9 10; do timeout 1 wget -q -O - http://server.names.svc.cluster.local/ \
                  >> /dev/termination-log && exit 0; sleep 0.5; done; exit 1";
    let said = run(stage, "names", "client", script);
    assert!(said.contains("10.96.0.1\n"), "{said}");
    assert!(said.contains("NXDOMAIN"), "{said}");
    assert!(said.ends_with("hello\n"), "{said}");
}

#[test]
fn an_unknown_registry_is_given_up_at_once() {
    let stage = stage();
    namespace(&stage.cluster, "unknown");
    let mut unknown = pod(stage, "unknown", "unknown", "true");
    unknown["spec"]["containers"][0]["image"] = json!("registry.nowhere.example/none:1");
    create(&stage.cluster, &unknown);
    // The machine's own resolver, which the node cannot reach, would take a minute.
    eventually("the pull is given up", SOON, || {
        let status = get(&stage.cluster, &["-n", "unknown", "pod", "unknown"])["status"].clone();
        let waiting = status["containerStatuses"][0]["state"]["waiting"].clone();
        if waiting["message"]
            .as_str()
            .unwrap_or_default()
            .contains("no such host")
        {
            Ok(())
        } else {
            Err(waiting.to_string())
        }
    });
}

#[test]
fn logs_exec_and_forwards_reach_a_pod() {
    let stage = stage();
    namespace(&stage.cluster, "reach");
    create(
        &stage.cluster,
        &pod(stage, "reach", "web", "echo started; httpd -f -p 8080 -h /www"),
    );
    let pod = ready(stage, "reach", "web");
    eventually("its log is read", SOON, || {
        let log = kubectl(&stage.cluster, &["-n", "reach", "logs", "web"]);
        if log == "started\n" { Ok(()) } else { Err(log) }
    });
    let said = kubectl(
        &stage.cluster,
        &["-n", "reach", "exec", "web", "--", "cat", "/www/index.html"],
    );
    assert_eq!(said, "hello\n");

    let address: SocketAddr = format!("{}:8080", pod["status"]["podIP"].as_str().unwrap())
        .parse()
        .unwrap();
    let port = stage.cluster.forward(0, address).unwrap();
    let fetch = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    assert!(fetch().unwrap().ends_with("hello\n"));
    // A port that was given back can be had again at once.
    for _ in 0..50 {
        stage.cluster.unforward(port).unwrap();
        assert!(fetch().is_err(), "the forward is closed");
        assert_eq!(stage.cluster.forward(port, address).unwrap(), port);
    }
    assert!(fetch().unwrap().ends_with("hello\n"));
    stage.cluster.unforward(port).unwrap();
    assert!(stage.cluster.unforward(port).is_err());
}

#[test]
fn parts_stop_start_pause_and_are_started_again_when_they_die() {
    let stage = stage();
    let cluster = &stage.cluster;
    let state = |part: &str| cluster.status().unwrap().components[part].clone();
    cluster.component("scheduler", Action::Stop).unwrap();
    assert_eq!(state("scheduler").state, ComponentState::Stopped);
    cluster.component("scheduler", Action::Start).unwrap();
    assert_eq!(state("scheduler").state, ComponentState::Running);
    cluster.component("proxy", Action::Pause).unwrap();
    assert_eq!(state("proxy").state, ComponentState::Paused);
    cluster.component("proxy", Action::Resume).unwrap();
    assert_eq!(state("proxy").state, ComponentState::Running);

    let before = state("scheduler");
    let pid = before.pid.unwrap().to_string();
    cluster.exec(Place::HostMounts, &["kill", "-9", &pid]).unwrap();
    eventually("it is started again", SOON, || {
        let now = state("scheduler");
        if now.restarts == before.restarts + 1 && now.pid.is_some() {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    });
    let error = cluster
        .component("no-such-part", Action::Stop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("it has apiserver, containerd"), "{error}");
}

#[test]
fn this_machine_has_no_route_into_the_cluster() {
    let stage = stage();
    // A TLS server of Go's tells a plain HTTP client what is wrong. That answer must come by a forward, and must not
    // come by this machine's own routes (where a gateway may accept every connection, so that connecting says nothing).
    let api = SocketAddr::from((NODE_ADDRESS, vitrine_devcluster::API_PORT));
    let answer = |to: SocketAddr| -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let port = stage.cluster.forward(0, api).unwrap();
    let by_forward = answer(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    assert!(
        by_forward.contains("HTTP request to an HTTPS server"),
        "{by_forward}"
    );
    let direct = answer(api).unwrap_or_default();
    assert!(
        !direct.contains("HTTPS"),
        "the API server answers on this machine's own network: {direct}"
    );
    stage.cluster.unforward(port).unwrap();

    let inside = stage
        .cluster
        .exec(Place::Node, &["ip", "-brief", "address", "show", "eth0"])
        .unwrap();
    assert!(inside.stdout.contains(&NODE_ADDRESS.to_string()), "{inside:?}");
    let failing = stage
        .cluster
        .exec(Place::Outside, &["sh", "-c", "cat; exit 7"])
        .unwrap();
    assert_eq!(failing.code, 7);
    let fed = stage
        .cluster
        .exec_with_input(Place::Outside, &["cat"], Some("fed"))
        .unwrap();
    assert_eq!(fed.stdout, "fed");
}

#[test]
fn writes_are_audited_with_their_user_and_object() {
    let stage = stage();
    namespace(&stage.cluster, "audited");
    eventually("the write is in the audit log", SOON, || {
        let text = std::fs::read_to_string(stage.cluster.audit_log()).unwrap();
        let found = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|event| {
                event["verb"] == "create"
                    && event["objectRef"]["resource"] == "namespaces"
                    && event["objectRef"]["name"] == "audited"
            });
        let event = found.ok_or("not yet")?;
        assert_eq!(event["user"]["username"], "vitrine-devcluster:admin");
        assert!(!text.contains("\"verb\":\"watch\""), "reads are not logged");
        Ok(())
    });
}
