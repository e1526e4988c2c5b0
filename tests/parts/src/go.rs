//! A program in Go that stands beside a test: built by Go's own cache, run for as long as the test.

use std::{fs, path::Path, process::Command};

use crate::{PartError, Running, io, ran};

/// A running program; it ends with this.
pub struct Helper {
    /// It.
    pub process: Running,
}

impl Helper {
    /// Builds a package of a module and starts it, as `prepare` says.
    ///
    /// # Errors
    /// If Go is not there, or the package is none.
    pub fn start(
        module: &Path,
        package: &str,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, PartError> {
        let name = package
            .rsplit('/')
            .next()
            .unwrap_or(package)
            .replace('.', "helper");
        let program = std::env::temp_dir().join(format!("vitrine-{name}-{}", std::process::id()));
        let mut build = Command::new("go");
        build
            .args(["build", "-trimpath", "-o"])
            .arg(&program)
            .arg(package)
            .current_dir(module);
        let what = format!("go build {package}");
        ran(&what, &build.output().map_err(io(&what))?)?;
        let mut command = Command::new(&program);
        prepare(&mut command);
        let started = command.spawn().map_err(io(format!("start {name}")));
        // It runs, or never will: its file is not needed any more.
        let _ = fs::remove_file(&program);
        started.map(|child| Self {
            process: Running(child),
        })
    }
}
