//! Cleans up after clusters whose supervisor is dead. Touches state folders and cgroups of dead clusters only.
//!
//! A supervisor holds a lock (flock) on its state folder's `lock` file as long as it lives. The kernel lets go of it
//! when the process dies, however it dies, so no pid is ever guessed. After kill -9 the kernel also ends the
//! cluster's processes (they live in a pid namespace of their own) and its mounts and network namespaces (they live
//! in a mount namespace of their own). What is left is the state folder and empty cgroups.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cgroup;
use crate::error::{Error, Result};
use crate::paths::{self, StateDir};

/// How long a dying cluster may still write into its state folder.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(15);

/// Held while clusters are created and reaped, so that nobody reaps a folder whose supervisor is just starting.
pub(crate) struct Exclusive(#[expect(dead_code, reason = "held for its lock")] File);

impl Exclusive {
    pub(crate) fn take() -> Result<Self> {
        let dir = paths::clusters_dir()?;
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let path = dir.join(".lock");
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(Self(file))
    }
}

/// What a state folder says about its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its supervisor holds the lock.
    Alive,
    /// Nobody does.
    Dead,
    /// There is no such folder.
    Absent,
}

/// Whether a cluster's supervisor lives.
pub(crate) fn life(state: &StateDir) -> Result<Life> {
    if !state.path().is_dir() {
        return Ok(Life::Absent);
    }
    let path = state.lock();
    match File::open(&path) {
        Ok(file) => Ok(if file.try_lock_shared().is_ok() {
            Life::Dead
        } else {
            Life::Alive
        }),
        // A folder without a lock file: whoever made it died before it started a supervisor.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Life::Dead),
        Err(error) => Err(Error::file("open", path)(error)),
    }
}

/// The names of all clusters that have a state folder.
pub(crate) fn names() -> Result<Vec<String>> {
    let dir = paths::clusters_dir()?;
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::file("read", dir)(error)),
    };
    let folders = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = folders
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Reaps every dead cluster. One that resists does not stop the others: the errors come back.
pub(crate) fn dead_clusters(_: &Exclusive) -> Result<Vec<Error>> {
    let mut errors = Vec::new();
    for name in names()? {
        let state = StateDir::of(&name)?;
        if life(&state)? == Life::Dead {
            errors.extend(remains(&name, &state).err());
        }
    }
    Ok(errors)
}

/// Removes what a dead cluster left.
pub(crate) fn remains(name: &str, state: &StateDir) -> Result<()> {
    cgroup::remove(name)?;
    remove_state(name, state.path())
}

/// Removes a state folder; waits for processes that are dying in it.
pub(crate) fn remove_state(name: &str, folder: &Path) -> Result<()> {
    // Through a mount the removal would reach files that are not the cluster's.
    if let Some(mount) = mounts_below(folder).first() {
        let detail = format!(
            "`{mount}` is still mounted: unmount it, then remove `{}`",
            folder.display()
        );
        return Err(Error::Leftover {
            name: name.to_owned(),
            detail,
        });
    }
    let deadline = Instant::now() + REMOVAL_DEADLINE;
    loop {
        match fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                let detail = format!("`{}` cannot be removed: {error}", folder.display());
                return Err(Error::Leftover {
                    name: name.to_owned(),
                    detail,
                });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The mount points at or below a folder, as this process sees them.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&text)
        .into_iter()
        .filter(|point| Path::new(point).starts_with(folder))
        .collect()
}

/// The mount points of a mountinfo text (its fifth field, octal escapes undone).
pub(crate) fn mount_points(mountinfo: &str) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> StateDir {
        let path = std::env::temp_dir().join(format!("vitrine-reap-test-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        StateDir::at(path)
    }

    #[test]
    fn a_cluster_lives_as_long_as_its_lock_is_held() {
        let state = folder("life");
        assert_eq!(life(&state).unwrap(), Life::Absent);
        fs::create_dir_all(state.path()).unwrap();
        assert_eq!(
            life(&state).unwrap(),
            Life::Dead,
            "a folder that no supervisor took"
        );
        let held = File::create(state.lock()).unwrap();
        held.lock().unwrap();
        assert_eq!(life(&state).unwrap(), Life::Alive);
        drop(held);
        assert_eq!(life(&state).unwrap(), Life::Dead);
        remove_state("life", state.path()).unwrap();
        assert_eq!(life(&state).unwrap(), Life::Absent);
    }

    #[test]
    fn mount_points_are_unescaped() {
        let text = "36 35 98:0 / /a\\040b rw - ext4 /dev/x rw\n37 35 0:5 / /c rw - tmpfs t rw\n";
        assert_eq!(mount_points(text), ["/a b", "/c"]);
    }
}
