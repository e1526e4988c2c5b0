//! The one error of this crate. Messages say what failed, on what, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a cluster, a tool or an image is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that cannot be a folder and a cgroup.
    #[error(
        "cluster name {name:?} is not usable: take lower case letters, digits and dashes, at most {} of them",
        crate::config::MAX_NAME
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// A file operation failed.
    #[error("failed to {action} `{path}`: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The machine lacks something that could not be installed.
    #[error("this machine lacks:{}", list(.missing))]
    Missing {
        /// One line each: what, and how to get it.
        missing: Vec<String>,
    },
    /// A program failed.
    #[error("failed to run `{command}`: {detail}")]
    Command {
        /// Its command line.
        command: String,
        /// Exit status and the end of what it said.
        detail: String,
    },
    /// A tool could not be built.
    #[error("failed to build {binary} of tool group {group}: {detail}")]
    Tool {
        /// Its group in `groups.json`.
        group: String,
        /// The binary.
        binary: String,
        /// The end of the compiler's output, and what to do.
        detail: String,
    },
    /// The name is taken.
    #[error(
        "cluster {name:?} is already running: end it with `cluster down --name {name}` or take another name"
    )]
    AlreadyRunning {
        /// The name.
        name: String,
    },
    /// There is no such cluster.
    #[error("no cluster {name:?} is running: start it with `cluster up --name {name}`")]
    NotRunning {
        /// The name.
        name: String,
    },
    /// A part of the cluster failed or did not get ready in time.
    #[error("{component} {what}{}", log_tail(.log, .tail))]
    Component {
        /// Which part.
        component: String,
        /// What is wrong with it.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The cluster did not come up.
    #[error("cluster {name:?} did not come up: {detail}\nits logs are kept in `{}`", .logs.display())]
    BringUp {
        /// Its name.
        name: String,
        /// The supervisor's own words.
        detail: String,
        /// Where the logs of all its parts are.
        logs: PathBuf,
    },
    /// The supervisor could not be talked to.
    #[error("failed to talk to the supervisor of cluster {name:?}: {detail}")]
    Control {
        /// The cluster.
        name: String,
        /// Why not.
        detail: String,
    },
    /// The supervisor refused or failed a request.
    #[error("cluster {name:?}: {message}")]
    Refused {
        /// The cluster.
        name: String,
        /// Its words.
        message: String,
    },
    /// Something of a dead or ending cluster does not go away.
    #[error("failed to clean up after cluster {name:?}: {detail}")]
    Leftover {
        /// The cluster.
        name: String,
        /// What stays, and why.
        detail: String,
    },
    /// Certificates could not be made.
    #[error("failed to make the certificate {name:?}: {source}")]
    Pki {
        /// Whose certificate.
        name: String,
        /// Why not.
        source: rcgen::Error,
    },
    /// An image could not be built.
    #[error("failed to build image {image:?}: {detail}")]
    Image {
        /// Its name.
        image: String,
        /// Why not.
        detail: String,
    },
    /// The API server answered with an error.
    #[error("failed to {action}: {source}")]
    Kube {
        /// What was tried.
        action: String,
        /// The client's words.
        source: Box<kube::Error>,
    },
    /// Something else, said in full.
    #[error("{0}")]
    Other(String),
}

fn list(items: &[String]) -> String {
    items.iter().map(|item| format!("\n  - {item}")).collect()
}

fn log_tail(log: &Path, tail: &str) -> String {
    if tail.is_empty() {
        return format!("; its log `{}` is empty", log.display());
    }
    format!("; the end of its log `{}`:\n{}", log.display(), tail.trim_end())
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::File { action, path, source }
    }

    /// For `map_err` on calls to the API server.
    pub(crate) fn kube(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Error::Kube {
            action,
            source: Box::new(source),
        }
    }
}

/// The last `lines` lines of a file; empty when it cannot be read, since this only serves messages.
pub(crate) fn tail_of(path: &Path, lines: usize) -> String {
    let Ok(bytes) = std::fs::read(path) else {
        return String::new();
    };
    last_lines(&String::from_utf8_lossy(&bytes), lines)
}

/// The last `lines` lines of a text, each cut at a length that fits a terminal's screen.
pub(crate) fn last_lines(text: &str, lines: usize) -> String {
    const WIDTH: usize = 400;
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    let mut out = String::new();
    for line in &all[from..] {
        out.extend(line.chars().take(WIDTH));
        out.push('\n');
    }
    out
}
