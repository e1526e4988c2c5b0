//! `cargo xtask cluster …`: forwards to the launcher's own command line; does nothing itself.

use std::process::ExitCode;

use vitrine_devcluster::cli::{self, ClusterCommand};

use crate::error::Error;

/// Runs it; the exit code is the launcher's.
pub fn run(command: ClusterCommand) -> Result<ExitCode, Error> {
    let code = cli::run(command)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
