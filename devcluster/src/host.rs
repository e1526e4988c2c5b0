//! What a cluster needs of the machine: found out before work starts, installed where that is possible, named
//! exactly where it is not. Reads the system; runs `apt-get` and `modprobe`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::cgroup;
use crate::config::Level;
use crate::error::{Error, Result, last_lines};
use crate::progress::{self, Progress, Step};

/// Something a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prerequisite {
    /// Root, with the capabilities to make namespaces, mounts and networks.
    Privileges,
    /// The Go toolchain, which builds all parts of the cluster.
    Go,
    /// A program, and the Debian package that has it.
    Program {
        /// Its name in PATH.
        name: &'static str,
        /// The Debian package.
        package: &'static str,
    },
    /// The file system of container images.
    Overlay,
    /// The cgroup controllers that kubelet needs.
    Cgroups,
    /// That packets between two pods on one bridge pass iptables.
    BridgeFilter,
}

const fn program(name: &'static str, package: &'static str) -> Prerequisite {
    Prerequisite::Program { name, package }
}

const CONTROL_PLANE: &[Prerequisite] = &[
    Prerequisite::Privileges,
    Prerequisite::Go,
    program("unshare", "util-linux"),
    program("nsenter", "util-linux"),
    program("setsid", "util-linux"),
    program("ip", "iproute2"),
];

const FULL: &[Prerequisite] = &[
    Prerequisite::Privileges,
    Prerequisite::Go,
    program("unshare", "util-linux"),
    program("nsenter", "util-linux"),
    program("setsid", "util-linux"),
    program("ip", "iproute2"),
    program("mount", "mount"),
    program("runc", "runc"),
    program("iptables", "iptables"),
    program("ipset", "ipset"),
    program("conntrack", "conntrack"),
    Prerequisite::Overlay,
    Prerequisite::Cgroups,
    Prerequisite::BridgeFilter,
];

/// A static busybox, of which test images are made.
pub const BUSYBOX: &[Prerequisite] = &[program("busybox", "busybox-static")];

/// What checks a signature that Vitrine made and had no part in making it.
pub const OPENSSL: &[Prerequisite] = &[program("openssl", "openssl")];

/// A browser that can be driven without a screen.
pub const BROWSER: &[Prerequisite] = &[
    program("chromium", "chromium"),
    program("chromedriver", "chromium-driver"),
];

/// What a cluster of that level needs.
#[must_use]
pub fn for_level(level: Level) -> &'static [Prerequisite] {
    match level {
        Level::ControlPlane | Level::Scale => CONTROL_PLANE,
        Level::Full => FULL,
    }
}

/// Checks everything, installs the Debian packages that are missing, and fails with all that is still missing.
pub fn ensure(wanted: &[Prerequisite], progress: &dyn Progress) -> Result<()> {
    let mut packages: Vec<&str> = wanted
        .iter()
        .filter(|item| !is_met(item))
        .filter_map(package_of)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    let mut remark = None;
    if !packages.is_empty() {
        if nix::unistd::geteuid().is_root() && find_program("apt-get").is_some() {
            let step = Step::new(format!("install {}", packages.join(", ")), 1, 1);
            // What apt could not do is named below, with its own words.
            remark = progress::run(progress, &step, || apt_install(&packages)).err();
        } else {
            remark = Some(Error::Other(
                "not root on a Debian system, so nothing was installed".to_owned(),
            ));
        }
    }
    let mut missing: Vec<String> = wanted.iter().filter_map(explain_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    missing.extend(remark.map(|error| error.to_string()));
    Err(Error::Missing { missing })
}

fn package_of(item: &Prerequisite) -> Option<&'static str> {
    match item {
        Prerequisite::Program { package, .. } => Some(package),
        _ => None,
    }
}

fn is_met(item: &Prerequisite) -> bool {
    explain_missing(item).is_none()
}

/// What is missing and how to get it; nothing when it is there.
fn explain_missing(item: &Prerequisite) -> Option<String> {
    match item {
        Prerequisite::Privileges => explain_privileges(),
        Prerequisite::Go => find_program("go")
            .is_none()
            .then(|| "the Go toolchain in PATH, 1.26 or later: get it from https://go.dev/dl/".to_owned()),
        Prerequisite::Program { name, package } => find_program(name).is_none().then(|| {
            format!("the program `{name}`: install the Debian package {package}, or what has it elsewhere")
        }),
        Prerequisite::Overlay => has_filesystem("overlay")
            .then_some(())
            .or_else(|| modprobe("overlay").then_some(()))
            .is_none()
            .then(|| "overlayfs: a kernel with CONFIG_OVERLAY_FS".to_owned()),
        Prerequisite::Cgroups => {
            let missing = cgroup::missing_controllers();
            (!missing.is_empty()).then(|| {
                format!(
                    "the cgroup controllers {} below /sys/fs/cgroup: mount or enable them",
                    missing.join(", ")
                )
            })
        }
        Prerequisite::BridgeFilter => {
            let there = || Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
            let met = there() || (modprobe("br_netfilter") && there());
            (!met).then(|| {
                "the bridge netfilter hook: a kernel with CONFIG_BRIDGE_NETFILTER (module br_netfilter)"
                    .to_owned()
            })
        }
    }
}

/// CAP_NET_ADMIN and CAP_SYS_ADMIN, by their numbers in `linux/capability.h`.
const NEEDED_CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
const CAP_SYS_RESOURCE: u32 = 24;

fn explain_privileges() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("root: namespaces, mounts and pod networks need it (run it with sudo)".to_owned());
    }
    let effective = effective_capabilities();
    let missing: Vec<&str> = NEEDED_CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "{}: this root is confined (a container without them?)",
            missing.join(" and ")
        )
    })
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether processes may be made less likely to be killed on memory pressure, as containerd and kubelet try to.
pub(crate) fn may_lower_oom_score() -> bool {
    effective_capabilities() & (1 << CAP_SYS_RESOURCE) != 0
}

fn has_filesystem(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
}

fn modprobe(module: &str) -> bool {
    let Some(program) = find_program("modprobe") else {
        return false;
    };
    Command::new(program)
        .arg(module)
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A program in PATH or in one of the folders that root's PATH sometimes lacks.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let install = || {
        let mut arguments = vec![
            "install",
            "-y",
            "--no-install-recommends",
            "-o",
            "DPkg::Lock::Timeout=300",
        ];
        arguments.extend(packages);
        apt_get(&arguments)
    };
    if install()?.status.success() {
        return Ok(());
    }
    // Most often the package lists are missing or old.
    apt_get(&["update", "-o", "DPkg::Lock::Timeout=300"])?;
    let output = install()?;
    if output.status.success() {
        return Ok(());
    }
    let said = last_lines(&String::from_utf8_lossy(&output.stderr), 8);
    Err(Error::Command {
        command: format!("apt-get install {}", packages.join(" ")),
        detail: said,
    })
}

fn apt_get(arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    command.output().map_err(|error| Error::Command {
        command: "apt-get".to_owned(),
        detail: error.to_string(),
    })
}
