//! A cluster leaves nothing behind, however it ends: an empty difference of processes, network namespaces, mounts,
//! cgroups, links and iptables of this machine before and after.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::eventually;
use vitrine_devcluster::{Cluster, ClusterConfig, Error, Level, Lifetime, host, progress};

/// How long the kernel may take to end a namespace full of processes.
const KERNEL: Duration = Duration::from_secs(10);

/// What a cluster could leave on this machine. Other clusters may come and go meanwhile (these tests run beside each
/// other), so what bears another cluster's name is left out; everything else counts, whoever made it.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    network_namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    links: BTreeSet<String>,
    iptables: Vec<String>,
    state: bool,
}

fn state_folder(name: &str) -> PathBuf {
    let home = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".local/state"));
    home.join("vitrine/clusters").join(name)
}

fn lines_of(program: &str, arguments: &[&str]) -> Vec<String> {
    let program = host::find_program(program).unwrap_or_else(|| panic!("{program} is missing"));
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect()
}

fn machine(name: &str) -> Machine {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The fifth field is the mount point; ids before it are reused.
    let mounts = mountinfo
        .lines()
        .map(|line| line.split(' ').skip(3).collect::<Vec<_>>().join(" "))
        .collect();
    let mut cgroups = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let of_another = entry.file_name().to_string_lossy().starts_with("vitrine-")
                && entry.file_name().to_string_lossy() != format!("vitrine-{name}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !of_another {
                cgroups.insert(entry.path().display().to_string());
                folders.push(entry.path());
            }
        }
    }
    let iptables = lines_of("iptables-save", &[])
        .into_iter()
        .filter(|line| !line.starts_with('#'));
    Machine {
        network_namespaces: lines_of("ip", &["netns", "list"]).into_iter().collect(),
        mounts,
        cgroups,
        links: lines_of("ip", &["-brief", "link"]).into_iter().collect(),
        iptables: iptables.collect(),
        state: state_folder(name).exists(),
    }
}

/// The processes of a cluster: those of its pid namespace, and those that name its state folder.
struct Processes {
    pid_namespace: String,
    // The kernel gives the number of a namespace that is gone to the next one: while this is open, no other cluster can get it.
    _held: fs::File,
    state: String,
}

impl Processes {
    fn of(cluster: &Cluster) -> Self {
        let supervisor = cluster.supervisor_pid().unwrap();
        let namespace = format!("/proc/{supervisor}/ns/pid");
        let held = fs::File::open(&namespace).unwrap();
        let pid_namespace = fs::read_link(&namespace).unwrap().display().to_string();
        let own = fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
        assert_ne!(
            pid_namespace, own,
            "the cluster lives in a pid namespace of its own"
        );
        Self {
            pid_namespace,
            _held: held,
            state: state_folder(cluster.name()).display().to_string(),
        }
    }

    fn alive(&self) -> Vec<String> {
        let mut alive = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .unwrap_or_default()
                .replace('\0', " ");
            let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"))
                .unwrap_or_default()
                .display()
                .to_string();
            // A zombie runs no more: whoever started it has to bury it, and that may be this very test.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat
                .rsplit_once(") ")
                .is_none_or(|(_, rest)| rest.starts_with('Z'))
            {
                continue;
            }
            if namespace == self.pid_namespace || line.contains(&self.state) {
                alive.push(format!("{pid} {line}"));
            }
        }
        alive
    }

    fn assert_gone(&self, within: Duration) {
        eventually("the cluster's processes are gone", within, || {
            let alive = self.alive();
            if alive.is_empty() {
                Ok(())
            } else {
                Err(format!("{alive:#?}"))
            }
        });
    }
}

fn assert_same(before: &Machine, name: &str) {
    let after = machine(name);
    assert_eq!(*before, after);
}

/// Makes sure that everything is installed and built, so that neither is part of the difference.
fn prepare(level: Level) {
    host::ensure(host::for_level(level), &*progress::for_stderr(true)).unwrap();
    host::ensure(host::for_level(Level::Full), &*progress::for_stderr(true)).unwrap();
}

/// Something that holds mounts, cgroups, network namespaces and a shim: a pod.
fn start_a_pod(cluster: &Cluster) {
    let listed = cluster
        .exec(
            vitrine_devcluster::Place::HostMounts,
            &["ctr", "images", "list", "-q"],
        )
        .unwrap();
    let image = listed
        .stdout
        .lines()
        .find(|line| line.contains("@sha256:"))
        .unwrap()
        .to_owned();
    support::create(
        cluster,
        &serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "holder" },
            "spec": {
                "containers": [{
                    "name": "main",
                    "image": image,
                    "volumeMounts": [{ "name": "memory", "mountPath": "/memory" }],
                }],
                "volumes": [{ "name": "memory", "emptyDir": { "medium": "Memory" } }],
            },
        }),
    );
    support::kubectl(
        cluster,
        &["wait", "--for=condition=Ready", "pod/holder", "--timeout=30s"],
    );
}

fn nothing_is_left_after_down(level: Level) {
    prepare(level);
    let name = support::name(&format!("down-{level}"));
    let before = machine(&name);
    let cluster = support::up_with(ClusterConfig::new(&name, level));
    if level == Level::Full {
        start_a_pod(&cluster);
    }
    let processes = Processes::of(&cluster);
    assert!(!processes.alive().is_empty());
    cluster.down().unwrap();
    assert_eq!(processes.alive(), Vec::<String>::new());
    assert_same(&before, &name);
}

fn nothing_is_left_after_the_supervisor_is_killed(level: Level) {
    prepare(level);
    let name = support::name(&format!("kill-{level}"));
    let before = machine(&name);
    let cluster = support::up_with(ClusterConfig::new(&name, level));
    if level == Level::Full {
        start_a_pod(&cluster);
    }
    let processes = Processes::of(&cluster);
    kill(Pid::from_raw(cluster.supervisor_pid().unwrap()), Signal::SIGKILL).unwrap();
    // The kernel alone: no command of ours has run yet.
    processes.assert_gone(KERNEL);
    assert!(!Cluster::list().unwrap().contains(&name));
    drop(cluster);
    processes.assert_gone(Duration::ZERO);
    assert_same(&before, &name);
}

/// The owner is a process of its own, and is killed.
fn nothing_is_left_after_the_owner_is_killed(level: Level) {
    prepare(level);
    let name = support::name(&format!("owner-{level}"));
    let before = machine(&name);
    let mut owner = Command::new(env!("CARGO_BIN_EXE_vitrine-devcluster"))
        .args([
            "up",
            "--foreground",
            "--quiet",
            "--name",
            &name,
            "--level",
            &level.to_string(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let up = lines
        .map_while(Result::ok)
        .any(|line| line.contains("ends with this command"));
    assert!(up, "the cluster did not come up");
    let cluster = Cluster::attach(&name).unwrap();
    let processes = Processes::of(&cluster);
    owner.kill().unwrap();
    owner.wait().unwrap();
    // An orderly shutdown by the supervisor itself: no command of ours runs.
    processes.assert_gone(Duration::from_secs(20));
    assert_same(&before, &name);
    assert!(matches!(Cluster::attach(&name), Err(Error::NotRunning { .. })));
}

#[test]
fn a_control_plane_leaves_nothing_after_down() {
    nothing_is_left_after_down(Level::ControlPlane);
}

#[test]
fn a_control_plane_leaves_nothing_after_its_supervisor_is_killed() {
    nothing_is_left_after_the_supervisor_is_killed(Level::ControlPlane);
}

#[test]
fn a_control_plane_leaves_nothing_after_its_owner_is_killed() {
    nothing_is_left_after_the_owner_is_killed(Level::ControlPlane);
}

#[test]
fn a_full_cluster_leaves_nothing_after_down() {
    nothing_is_left_after_down(Level::Full);
}

#[test]
fn a_full_cluster_leaves_nothing_after_its_supervisor_is_killed() {
    nothing_is_left_after_the_supervisor_is_killed(Level::Full);
}

#[test]
fn a_full_cluster_leaves_nothing_after_its_owner_is_killed() {
    nothing_is_left_after_the_owner_is_killed(Level::Full);
}

#[test]
fn a_panic_of_the_owner_ends_the_cluster() {
    let name = support::name("panic");
    let before = machine(&name);
    let config = ClusterConfig::new(&name, Level::ControlPlane);
    let thread = std::thread::spawn(move || {
        let _cluster = support::up_with(config);
        panic!("on purpose");
    });
    assert!(thread.join().is_err());
    assert_same(&before, &name);
}

#[test]
fn two_clusters_live_side_by_side() {
    let first = support::up("side-a", Level::ControlPlane);
    let second = support::up("side-b", Level::ControlPlane);
    support::kubectl(&first, &["create", "namespace", "only-in-a"]);
    assert!(support::try_kubectl(&second, &["get", "namespace", "only-in-a"]).is_err());
    let (first_port, second_port) = (
        first.status().unwrap().api_port,
        second.status().unwrap().api_port,
    );
    assert_ne!(first_port, second_port);
    let running = Cluster::list().unwrap();
    assert!(running.contains(&first.name().to_owned()) && running.contains(&second.name().to_owned()));
    first.down().unwrap();
    support::kubectl(&second, &["get", "namespaces"]);
    second.down().unwrap();
}

#[test]
fn a_name_that_is_taken_is_refused_and_the_first_lives_on() {
    let first = support::up("taken", Level::ControlPlane);
    let again = ClusterConfig::new(first.name(), Level::ControlPlane);
    let error = Cluster::up(&again, Lifetime::Owned, &progress::Silent).unwrap_err();
    assert!(matches!(error, Error::AlreadyRunning { .. }), "{error}");
    assert!(first.status().unwrap().ready);
    first.down().unwrap();
}

#[test]
fn a_detached_cluster_outlives_its_owner_and_ends_by_name() {
    let name = support::name("detached");
    let before = machine(&name);
    let up = Command::new(env!("CARGO_BIN_EXE_vitrine-devcluster"))
        .args(["up", "--quiet", "--name", &name, "--level", "control-plane"])
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    let cluster = Cluster::attach(&name).unwrap();
    support::kubectl(&cluster, &["get", "namespaces"]);
    let processes = Processes::of(&cluster);
    cluster.down().unwrap();
    processes.assert_gone(Duration::from_secs(1));
    assert_same(&before, &name);
}

#[test]
fn an_owner_that_ends_while_the_cluster_starts_takes_it_along() {
    let name = support::name("early");
    let before = machine(&name);
    let mut owner = Command::new(env!("CARGO_BIN_EXE_vitrine-devcluster"))
        .args(["up", "--quiet", "--name", &name, "--level", "control-plane"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let socket = state_folder(&name).join("logs/apiserver.log");
    eventually("the start began", Duration::from_secs(120), || {
        if socket.exists() {
            Ok(())
        } else {
            Err("no API server yet".to_owned())
        }
    });
    owner.kill().unwrap();
    owner.wait().unwrap();
    let begun = Instant::now();
    eventually("the cluster is gone", Duration::from_secs(20), || {
        if state_folder(&name).exists() {
            Err(format!("after {:?}", begun.elapsed()))
        } else {
            Ok(())
        }
    });
    eventually("the machine is as before", Duration::from_secs(5), || {
        let after = machine(&name);
        if after == before {
            Ok(())
        } else {
            Err(format!("{after:#?}"))
        }
    });
}

#[test]
fn a_start_that_fails_says_why_keeps_the_logs_and_leaves_nothing_else() {
    let name = support::name("fails");
    let before = machine(&name);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api_port = taken.local_addr().unwrap().port();
    let config = ClusterConfig {
        api_port,
        ..ClusterConfig::new(&name, Level::ControlPlane)
    };
    let error = Cluster::up(&config, Lifetime::Owned, &progress::Silent).unwrap_err();
    let Error::BringUp { detail, logs, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        detail.contains(&format!("failed to listen on 127.0.0.1:{api_port}")),
        "{detail}"
    );
    assert!(logs.join("supervisor.log").is_file(), "{}", logs.display());
    fs::remove_dir_all(logs).unwrap();
    assert_same(&before, &name);
}

#[test]
fn logs_are_kept_where_that_is_asked() {
    let kept = std::env::temp_dir().join(support::name("kept-logs"));
    let config = ClusterConfig {
        keep_logs: Some(kept.clone()),
        ..ClusterConfig::new(support::name("kept"), Level::ControlPlane)
    };
    support::up_with(config).down().unwrap();
    for log in ["apiserver.log", "audit.log", "supervisor.log"] {
        assert!(
            kept.join(log)
                .metadata()
                .is_ok_and(|meta| meta.len() > 0 || log == "supervisor.log"),
            "{log}"
        );
    }
    fs::remove_dir_all(kept).unwrap();
}
