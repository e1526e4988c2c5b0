//! The cgroup under which all pods of a cluster live. Touches /sys/fs/cgroup below our own name only, and on a
//! pure version 2 host the root's list of delegated controllers.
//!
//! Two shapes of host are known:
//! - *version 1* (also "hybrid"): one hierarchy a controller. The cluster's folder is made in each, and
//!   `cpuset.cpus` and `cpuset.mems` are copied down, since an empty cpuset admits no process.
//! - *version 2*: one hierarchy. The controllers that kubelet needs are delegated to our folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const ROOT: &str = "/sys/fs/cgroup";

/// What kubelet needs on version 2.
const NEEDED_V2: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// What kubelet needs on version 1.
const NEEDED_V1: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "devices"];

/// How long dying processes may keep their cgroup busy.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(15);

/// Which of the two shapes a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Finds out by the file that only a version 2 root has.
pub(crate) fn version() -> Version {
    if Path::new(ROOT).join("cgroup.controllers").is_file() {
        Version::V2
    } else {
        Version::V1
    }
}

/// The cgroup's name for a cluster, as kubelet's `cgroupRoot` wants it after a slash.
pub(crate) fn name(cluster: &str) -> String {
    format!("vitrine-{cluster}")
}

/// The controllers that this host lacks.
pub(crate) fn missing_controllers() -> Vec<String> {
    let missing = |needed: &[&str], has: &dyn Fn(&str) -> bool| -> Vec<String> {
        needed
            .iter()
            .filter(|controller| !has(controller))
            .map(|controller| (*controller).to_owned())
            .collect()
    };
    match version() {
        Version::V2 => {
            let text = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
            missing(&NEEDED_V2, &|controller| {
                text.split_whitespace().any(|word| word == controller)
            })
        }
        Version::V1 => missing(&NEEDED_V1, &|controller| {
            Path::new(ROOT).join(controller).is_dir()
        }),
    }
}

/// Makes the cluster's cgroup in every hierarchy.
pub(crate) fn create(cluster: &str) -> Result<()> {
    let name = name(cluster);
    match version() {
        Version::V2 => {
            let folder = Path::new(ROOT).join(&name);
            delegate(Path::new(ROOT))?;
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
            delegate(&folder)
        }
        Version::V1 => {
            for hierarchy in hierarchies() {
                let folder = hierarchy.join(&name);
                fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    let (from, to) = (hierarchy.join(file), folder.join(file));
                    if from.is_file() {
                        let value = fs::read(&from).map_err(Error::file("read", &from))?;
                        fs::write(&to, value).map_err(Error::file("write", &to))?;
                    }
                }
            }
            Ok(())
        }
    }
}

fn delegate(folder: &Path) -> Result<()> {
    let control = folder.join("cgroup.subtree_control");
    for controller in NEEDED_V2 {
        fs::write(&control, format!("+{controller}")).map_err(|source| Error::File {
            action: "delegate cpu, cpuset, memory and pids in (in a container: it must own its cgroup root)",
            path: control.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Every hierarchy of a version 1 host, the version 2 part of a hybrid one included.
fn hierarchies() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Vec::new();
    };
    let is_hierarchy = |path: &PathBuf| !path.is_symlink() && path.join("cgroup.procs").is_file();
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_hierarchy)
        .collect();
    found.sort();
    found
}

/// The folders of a cluster that exist now.
pub(crate) fn existing(cluster: &str) -> Vec<PathBuf> {
    let name = name(cluster);
    let roots = match version() {
        Version::V2 => vec![PathBuf::from(ROOT)],
        Version::V1 => hierarchies(),
    };
    roots
        .into_iter()
        .map(|root| root.join(&name))
        .filter(|folder| folder.is_dir())
        .collect()
}

/// Whether any process lives in the cluster's cgroup.
pub(crate) fn is_inhabited(cluster: &str) -> bool {
    fn inhabited(folder: &Path) -> bool {
        let own = fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty());
        own || children(folder).iter().any(|child| inhabited(child))
    }
    existing(cluster).iter().any(|folder| inhabited(folder))
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes the cluster's cgroup everywhere; waits for processes that are dying.
pub(crate) fn remove(cluster: &str) -> Result<()> {
    fn remove_below(folder: &Path) -> std::io::Result<()> {
        for child in children(folder) {
            remove_below(&child)?;
        }
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
    let deadline = Instant::now() + REMOVAL_DEADLINE;
    for folder in existing(cluster) {
        while let Err(error) = remove_below(&folder) {
            if Instant::now() > deadline {
                let detail = format!("cgroup `{}` cannot be removed: {error}", folder.display());
                return Err(Error::Leftover {
                    name: cluster.to_owned(),
                    detail,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}
