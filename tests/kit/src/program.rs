//! Runs a program to its end and returns what it printed. Starts processes.

use std::{ffi::OsStr, path::Path, process::Command};

use crate::error::{Error, Result};

/// Runs a program; its standard output is the result.
///
/// # Errors
/// If it cannot be started or ends with another code than 0: with what it wrote to standard error.
pub fn run<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Result<String> {
    run_with(Command::new(program).args(arguments))
}

/// Runs a prepared command.
///
/// # Errors
/// As [`run`].
pub fn run_with(command: &mut Command) -> Result<String> {
    let shown = || {
        let arguments: Vec<_> = command
            .get_args()
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        format!(
            "{} {}",
            command.get_program().to_string_lossy(),
            arguments.join(" ")
        )
    };
    let text = shown();
    let failed = |detail: String| Error::Program {
        command: text.clone(),
        detail,
    };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
