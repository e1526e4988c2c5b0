//! Real parts that a test or a step of the build starts for itself: Postgres, programs in Go and for Node, ports that stay theirs. Whatever is started ends with
//! what it was started for, and leaves nothing behind.

mod go;
mod node;
mod people;
mod port;
mod postgres;
mod soak;

use std::{
    process::Child,
    time::{Duration, Instant},
};

pub use go::Helper;
pub use node::{Node, packages};
pub use people::People;
pub use port::Port;
pub use postgres::{OWNER, Server, program as postgres_program};
pub use soak::{seeds, soak};

/// Why a part is not there.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// It is not installed.
    #[error("there is no {program}; install {package}")]
    Missing {
        /// What was looked for.
        program: String,
        /// What has it.
        package: &'static str,
    },
    /// It cannot be started, or a file of it cannot be written.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// It says no.
    #[error("{what} failed: {said}")]
    Failed {
        /// What was tried.
        what: String,
        /// What it said.
        said: String,
    },
}

/// A process that ends with this, if it has not before.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A part is there within a second, or does not come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until a part is so far, or else says what it has said.
pub(crate) fn wait(
    what: &str,
    said: impl Fn() -> String,
    mut so: impl FnMut() -> Result<bool, PartError>,
) -> Result<(), PartError> {
    let begun = Instant::now();
    while !so()? {
        if begun.elapsed() > PATIENCE {
            return Err(PartError::Failed {
                what: what.to_owned(),
                said: said(),
            });
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> PartError {
    let what = what.into();
    move |source| PartError::Io { what, source }
}

pub(crate) fn ran(what: impl Into<String>, output: &std::process::Output) -> Result<(), PartError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PartError::Failed {
        what: what.into(),
        said,
    })
}
