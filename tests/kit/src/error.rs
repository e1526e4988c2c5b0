//! What can go wrong while a cluster is prepared or waited for.

use std::path::PathBuf;

/// An error of the kit; its text says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program could not be run, or said no.
    #[error("{command}: {detail}")]
    Program {
        /// What was run.
        command: String,
        /// What it said.
        detail: String,
    },
    /// A file could not be used.
    #[error("failed to use {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The launcher refused.
    #[error(transparent)]
    Cluster(#[from] vitrine_devcluster::Error),
    /// The API server refused.
    #[error("failed to {what}: {source}")]
    Kube {
        /// What was tried.
        what: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// Something did not come true in time.
    #[error("{what} did not come true within {seconds} s; last seen: {last}")]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What was seen last.
        last: String,
    },
    /// Something else is not as it must be.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// Wraps an error of the API server.
    pub fn kube(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube {
            what,
            source: Box::new(source),
        }
    }
}

/// The result of the kit's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
