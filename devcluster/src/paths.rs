//! Where things are on the disk. Reads the environment; creates nothing.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// `$XDG_STATE_HOME/vitrine`, by default `~/.local/state/vitrine`.
pub(crate) fn state_home() -> Result<PathBuf> {
    xdg("XDG_STATE_HOME", ".local/state")
}

/// `$XDG_CACHE_HOME/vitrine`, by default `~/.cache/vitrine`.
pub(crate) fn cache_home() -> Result<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

fn xdg(variable: &str, below_home: &str) -> Result<PathBuf> {
    // The XDG specification: a relative path in these variables is to be ignored.
    if let Some(set) = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
    {
        return Ok(set.join("vitrine"));
    }
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    home.map(|home| home.join(below_home).join("vitrine"))
        .ok_or_else(|| {
            Error::Other(format!(
                "neither {variable} nor HOME is set to an absolute path: set one of them"
            ))
        })
}

/// The folder that holds one folder a cluster.
pub(crate) fn clusters_dir() -> Result<PathBuf> {
    Ok(state_home()?.join("clusters"))
}

/// Where the logs of a cluster that did not come up are kept.
pub(crate) fn failed_logs_dir(name: &str) -> Result<PathBuf> {
    Ok(state_home()?.join("failed").join(name))
}

/// The files of one cluster. The supervisor sees the same layout below [`INSIDE`].
#[derive(Debug, Clone)]
pub(crate) struct StateDir(PathBuf);

/// Where the supervisor's mount namespace shows the state folder: a short path that is the same for every
/// cluster, so that sockets stay below the kernel's 108 bytes however deep the real folder lies.
pub(crate) const INSIDE: &str = "/run/vitrine";

impl StateDir {
    pub(crate) fn of(name: &str) -> Result<Self> {
        Ok(Self(clusters_dir()?.join(name)))
    }

    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn inside() -> Self {
        Self::at(INSIDE)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, below: impl AsRef<Path>) -> PathBuf {
        self.0.join(below)
    }

    /// Held by the supervisor as long as it lives (flock): the only sign of life that is believed.
    pub(crate) fn lock(&self) -> PathBuf {
        self.join("lock")
    }

    /// What the owner asked for, as the supervisor reads it.
    pub(crate) fn config(&self) -> PathBuf {
        self.join("config.json")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.join("control.sock")
    }

    /// The administrator's kubeconfig for this machine.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.join("kubeconfig")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.join("logs")
    }

    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    pub(crate) fn audit_log(&self) -> PathBuf {
        self.logs().join("audit.log")
    }
}
