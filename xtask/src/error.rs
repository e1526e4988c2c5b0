//! What can go wrong in the front door itself; a failing test is a result, not an error.

use std::path::{Path, PathBuf};

/// An error of a subcommand. Its text stands after `error: ` and says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, written or made.
    #[error("failed to {action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it did not work.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("failed to start {program:?}: {source}")]
    Start {
        /// The program's name or path.
        program: String,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// A program ran and said no.
    #[error("{what}: {how}; its output is in {}", log.display())]
    Failed {
        /// What was tried.
        what: String,
        /// How it ended.
        how: String,
        /// Where its whole output is.
        log: PathBuf,
    },
    /// The launcher could not do what it was asked.
    #[error(transparent)]
    Cluster(#[from] vitrine_devcluster::Error),
    /// The cluster could not be prepared.
    #[error(transparent)]
    Kit(#[from] vitrine_kit::Error),
    /// A part that a command needs is not there.
    #[error(transparent)]
    Part(#[from] vitrine_parts::PartError),
    /// Something was read that has another shape than it should.
    #[error("failed to read {what}: {why}")]
    Shape {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// For `map_err` on an operation on a file.
    pub fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Something was read that has another shape than it should.
    pub fn shape(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Shape {
            what: what.into(),
            why: why.to_string(),
        }
    }
}
