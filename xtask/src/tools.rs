//! Tools of other people that the tests call. Installs them under the user's cache, keyed by version and outside
//! the checkout, so that a fresh clone on a used machine installs nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vitrine_devcluster::cargo;

use crate::command::Job;
use crate::error::Error;
use crate::progress::Progress;

const CARGO_DENY_VERSION: &str = "0.20.2";
/// 3 to 4 minutes on two idle cores; the rest is for busy ones.
const CARGO_DENY_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The path of a cargo-deny of the pinned version, installed if there is none.
pub fn cargo_deny(logs: &Path, progress: &Progress) -> Result<PathBuf, Error> {
    let name = format!("cargo-deny-{CARGO_DENY_VERSION}");
    let root = cache()?.join("tools").join(&name);
    let binary = root.join("bin/cargo-deny");
    if is_pinned(&binary, logs, progress) {
        return Ok(binary);
    }
    progress.line(&format!(
        "      installing {name} into {} (once, some minutes)",
        root.display()
    ));
    let job = Job::new(format!("cargo install {name}"), cargo::program(), Path::new("/"))
        // It runs for seconds, and an optimised build of it takes minutes.
        .args(["install", "--locked", "--force", "--debug"])
        .env("CARGO_PROFILE_DEV_DEBUG", "none")
        .args([format!("cargo-deny@{CARGO_DENY_VERSION}"), "--root".to_owned()])
        .args([&root])
        .log(logs.join("install-cargo-deny.log"))
        .limit(CARGO_DENY_LIMIT);
    let finished = job.run(progress)?;
    if finished.success && is_pinned(&binary, logs, progress) {
        return Ok(binary);
    }
    Err(Error::Failed {
        what: format!("failed to install {name}"),
        how: finished.how,
        log: job.log,
    })
}

/// Whether it runs here and is what its path says: a cache can be copied from another machine or half written.
fn is_pinned(binary: &Path, logs: &Path, progress: &Progress) -> bool {
    let job = Job::new("cargo-deny --version", binary, Path::new("/"))
        .args(["--version"])
        .log(logs.join("cargo-deny-version.log"))
        .limit(Duration::from_secs(30));
    let version = format!("cargo-deny {CARGO_DENY_VERSION}");
    job.run(progress)
        .is_ok_and(|finished| finished.success && finished.stdout.trim() == version)
}

/// `$XDG_CACHE_HOME/vitrine`, by default `~/.cache/vitrine`.
fn cache() -> Result<PathBuf, Error> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("vitrine"))
        .ok_or_else(|| Error::shape("the environment", "neither XDG_CACHE_HOME nor HOME is set"))
}
