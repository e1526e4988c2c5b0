//! What a measurement cost: writes by the audit log, processor time and memory by /proc. Reads files.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use vitrine_devcluster::Cluster;
use vitrine_kit::audit::{self, Write};

/// Clock ticks a second in /proc/PID/stat (proc(5): `USER_HZ`, 100 on every Linux of these machines).
const TICKS: f64 = 100.0;

/// Parts of the control plane, by the name that the kernel has of them: 15 characters at most (proc(5), `comm`).
const PARTS: [(&str, &str); 5] = [
    ("kube-apiserver", "API server"),
    ("etcd", "etcd"),
    ("kube-controller", "controller-manager"),
    ("kube-scheduler", "scheduler"),
    ("kwok", "KWOK"),
];

/// The processes that are measured, by what they are.
#[derive(Clone)]
pub struct Processes(Vec<(&'static str, u32)>);

impl Processes {
    /// The cluster's, and the controller that is measured.
    pub fn of(cluster: &Cluster, controller: u32) -> Self {
        let supervisor = u32::try_from(cluster.supervisor_pid().unwrap()).unwrap();
        let all = parents();
        let below = |mut pid: u32| {
            while let Some((parent, _)) = all.get(&pid) {
                if *parent == supervisor {
                    return true;
                }
                pid = *parent;
            }
            false
        };
        let mut found = vec![("controller", controller)];
        for (comm, what) in PARTS {
            let one = all.iter().find(|(pid, (_, name))| name == comm && below(**pid));
            found.push((
                what,
                *one.unwrap_or_else(|| panic!("the cluster has no {comm}")).0,
            ));
        }
        Self(found)
    }

    /// Seconds of processor time of each since its start.
    pub fn cpu(&self) -> BTreeMap<&'static str, f64> {
        self.0
            .iter()
            .map(|(what, pid)| (*what, cpu_seconds(*pid)))
            .collect()
    }

    /// Of the controller alone, in MiB.
    pub fn resident_mib(&self) -> f64 {
        crate::stats::resident_mib(self.0[0].1)
    }
}

/// Parent and name of every process.
fn parents() -> BTreeMap<u32, (u32, String)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let (comm, rest) = stat(pid)?;
        Some((pid, (rest.get(1)?.parse().ok()?, comm)))
    })
    .collect()
}

/// The name, and what follows it: state, parent and so on (proc(5), /proc/PID/stat).
fn stat(pid: u32) -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let comm = head.split_once('(')?.1.to_owned();
    Some((comm, rest.split_whitespace().map(str::to_owned).collect()))
}

fn cpu_seconds(pid: u32) -> f64 {
    let Some((_, fields)) = stat(pid) else { return 0.0 };
    // utime and stime are the 14th and 15th field of the whole line; pid and comm come before these.
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok());
    (ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default()) / TICKS
}

/// Begins to count.
pub struct Meter<'a> {
    cluster: &'a Cluster,
    processes: Processes,
    mark: audit::Mark,
    cpu: BTreeMap<&'static str, f64>,
    begun: Instant,
}

/// What was counted.
pub struct Costs {
    pub writes: Vec<Write>,
    /// Seconds of processor time, by process.
    pub cpu: BTreeMap<&'static str, f64>,
    pub resident_mib: f64,
    pub lasted: Duration,
}

impl<'a> Meter<'a> {
    pub fn begin(cluster: &'a Cluster, processes: &Processes) -> Self {
        Self {
            cluster,
            processes: processes.clone(),
            mark: audit::mark(&cluster.audit_log()).unwrap(),
            cpu: processes.cpu(),
            begun: Instant::now(),
        }
    }

    pub fn end(self) -> Costs {
        let mut cpu = self.processes.cpu();
        for (what, seconds) in &mut cpu {
            *seconds -= self.cpu.get(what).copied().unwrap_or_default();
        }
        Costs {
            writes: audit::read(&self.cluster.audit_log(), self.mark).unwrap(),
            cpu,
            resident_mib: self.processes.resident_mib(),
            lasted: self.begun.elapsed(),
        }
    }
}
