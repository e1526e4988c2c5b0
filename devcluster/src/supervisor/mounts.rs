//! The cluster's own view of the file system. Mounts and unmounts in the supervisor's private mount namespace only.
//!
//! What the parts of Kubernetes insist on writing to (/run, /var/lib, /var/log) is replaced by folders of the state
//! folder, so that nothing of it is ever seen by this machine, and nothing of this machine is seen or changed.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config::DNS_SERVICE_ADDRESS;
use crate::error::{Error, Result};
use crate::paths::{INSIDE, StateDir};
use crate::reap;
use crate::tools::Tools;

/// Where the tools' folders are seen.
const TOOLS: &str = "/run/vitrine-tools";
/// Where the folder for kept logs is seen.
pub(crate) const KEPT_LOGS: &str = "/run/vitrine-kept-logs";
/// Where programs look for their DNS server (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// What is replaced by a folder of the state folder.
const REPLACED: [&str; 2] = ["/var/lib", "/var/log"];

/// Sets the view up. Every path outside is opened before anything is covered, since any of them may lie below
/// what is covered.
pub(crate) fn set_up(state: &StateDir, tools: &Tools, keep_logs: Option<&Path>) -> Result<Tools> {
    let open = |path: &Path| File::open(path).map_err(Error::file("open", path));
    let state_folder = open(state.path())?;
    let kept_folder = keep_logs.map(open).transpose()?;
    let mut tool_folders = Vec::new();
    for (group, folder) in tools.folders() {
        tool_folders.push((PathBuf::from(TOOLS).join(group), open(folder)?));
    }

    tmpfs("/run")?;
    bind(&state_folder, Path::new(INSIDE))?;
    if let Some(folder) = kept_folder {
        bind(&folder, Path::new(KEPT_LOGS))?;
    }
    for (place, folder) in tool_folders {
        bind(&folder, &place)?;
    }
    for place in REPLACED {
        let folder = StateDir::inside().join(place.trim_start_matches('/'));
        create(&folder)?;
        bind(
            &File::open(&folder).map_err(Error::file("open", &folder))?,
            Path::new(place),
        )?;
    }
    resolver()?;
    // containerd and kubelet expect mounts to spread between the pods' namespaces and theirs. This machine's own
    // namespace is no peer: `unshare --propagation private` cut that before.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|error| Error::Other(format!("failed to make the cluster's mounts shared: {error}")))?;
    Ok(tools.relocated(|group| PathBuf::from(TOOLS).join(group)))
}

/// The node asks the cluster's own DNS. With this machine's resolver, to which no route leads, containerd gave an unknown
/// registry up only after 50 s. Where no DNS is (level scale and below), there is no route to its address either.
fn resolver() -> Result<()> {
    let mut place = PathBuf::from(RESOLV_CONF);
    if let (Ok(target), Some(folder)) = (fs::read_link(&place), place.parent()) {
        place = folder.join(target);
    }
    if !place.exists() {
        // Dangling, where systemd-resolved has it below /run, which is ours by now; or none, and then nobody is asked.
        let Some(folder) = place.parent().filter(|folder| folder.starts_with("/run")) else {
            return Ok(());
        };
        create(folder)?;
        File::create(&place).map_err(Error::file("create", &place))?;
    }
    let file = StateDir::inside().join("resolv.conf");
    let text = format!("nameserver {DNS_SERVICE_ADDRESS}\n");
    fs::write(&file, text).map_err(Error::file("write", &file))?;
    mount_over(&File::open(&file).map_err(Error::file("open", &file))?, &place)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::file("create", folder))
}

fn tmpfs(place: &str) -> Result<()> {
    mount(
        Some("tmpfs"),
        place,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .map_err(|error| Error::Other(format!("failed to mount a tmpfs on `{place}`: {error}")))
}

fn bind(folder: &File, place: &Path) -> Result<()> {
    create(place)?;
    mount_over(folder, place)
}

fn mount_over(what: &File, place: &Path) -> Result<()> {
    let source = format!("/proc/self/fd/{}", what.as_raw_fd());
    mount(
        Some(source.as_str()),
        place,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|error| Error::Other(format!("failed to bind mount on `{}`: {error}", place.display())))
}

/// Detaches every mount that the cluster's parts made below the state folder, so that removing the folder cannot
/// reach through one of them. The mounts of [`set_up`] stay: they die with the namespace.
pub(crate) fn detach_all(state: &StateDir) {
    let roots: Vec<PathBuf> = [INSIDE]
        .iter()
        .chain(&REPLACED)
        .map(PathBuf::from)
        .chain([state.path().to_owned()])
        .collect();
    let mut points: Vec<String> = roots.iter().flat_map(|root| reap::mounts_below(root)).collect();
    // The deepest first. A mount shows up under several names; detaching it once detaches all (they are shared).
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    points.dedup();
    for point in points {
        if !roots.iter().any(|root| root == Path::new(&point)) {
            let _ = umount2(point.as_str(), MntFlags::MNT_DETACH);
        }
    }
}

/// What is still mounted below the state folder after [`detach_all`].
pub(crate) fn remaining(state: &StateDir) -> Vec<String> {
    let mut points = reap::mounts_below(state.path());
    points.extend(
        reap::mounts_below(Path::new(INSIDE))
            .into_iter()
            .filter(|point| point != INSIDE),
    );
    points
}
