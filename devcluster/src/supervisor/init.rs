//! The first process of a cluster's pid namespace. Starts the supervisor, buries orphans, and ends when the
//! supervisor does; with it the kernel ends every process of the namespace. Deliberately knows nothing else: a
//! supervisor that also had to bury orphans could not use the ordinary ways to run and await its own children.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, wait};

use crate::error::{Error, Result};

/// Runs until the supervisor ends; the answer is its exit code.
pub(crate) fn run(state: &Path) -> Result<i32> {
    let own = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let child = Command::new(&own)
        .arg("supervise")
        .arg("--state")
        .arg(state)
        .spawn();
    let child = child.map_err(|error| Error::Command {
        command: own.display().to_string(),
        detail: error.to_string(),
    })?;
    let supervisor = i32::try_from(child.id()).map_err(|error| Error::Other(error.to_string()))?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == supervisor => return Ok(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == supervisor => {
                return Ok(128
                    + std::process::ExitStatus::from_raw(signal as i32)
                        .signal()
                        .unwrap_or(0));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                return Err(Error::Other(format!(
                    "failed to wait for the supervisor: {error}"
                )));
            }
        }
    }
}
