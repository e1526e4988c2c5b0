//! `cargo xtask demo --once --pristine`: the demo in a fresh Debian root with empty caches, as a new user's machine would be.
//!
//! Makes a folder with debootstrap, runs in mount namespaces of its own there, and removes it. Needs root on Debian.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use vitrine_devcluster::host::{self, Prerequisite};
use vitrine_kit::{Error, Result, images, program};

/// What README asks a new user to have, beside the toolchains: a C linker, Postgres and Node. Everything else the demo installs itself.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev,nodejs,npm,postgresql-15";

/// Runs it.
///
/// # Errors
/// If the root cannot be made; a demo that fails is an exit code.
pub fn run() -> Result<ExitCode> {
    let progress = vitrine_devcluster::progress::for_stderr(true);
    let debootstrap = Prerequisite::Program {
        name: "debootstrap",
        package: "debootstrap",
    };
    host::ensure(&[Prerequisite::Privileges, debootstrap], &*progress)?;
    let root = std::env::temp_dir().join(format!("vitrine-pristine-{}", std::process::id()));
    remove_stale();
    let begun = Instant::now();
    let outcome = inside(&root);
    // Nothing is mounted there any more: the mounts ended with their namespace.
    let removed = remove(&root);
    let code = outcome?;
    removed?;
    println!(
        "in a fresh Debian root, root and all: {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(code)
}

/// Removes what a run that was killed has left: its folder is named by a process that is no more.
fn remove_stale() {
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("vitrine-pristine-") else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            // If it cannot be removed now, it can be the next time.
            let _ = remove(&entry.path());
        }
    }
}

fn remove(root: &Path) -> Result<()> {
    let text = root.display().to_string();
    program::run(
        Path::new("rm"),
        &["-rf".to_owned(), "--one-file-system".to_owned(), text],
    )
    .map(|_| ())
}

fn inside(root: &Path) -> Result<ExitCode> {
    let text = |path: &Path| path.display().to_string();
    eprintln!("making a fresh Debian root in {} ...", root.display());
    let (suite, mirror) = mirror()?;
    let arguments = [
        "--variant=minbase",
        &format!("--include={PACKAGES}"),
        &suite,
        &text(root),
        &mirror,
    ]
    .map(str::to_owned);
    program::run(Path::new("debootstrap"), &arguments)?;
    // How this machine reaches registries is the machine's business: names, certificates and package sources come along.
    for path in [
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/apt/sources.list.d/debian.sources",
        "/etc/ssl/certs/ca-certificates.crt",
    ] {
        if Path::new(path).exists() {
            let target = root.join(path.trim_start_matches('/'));
            program::run(
                Path::new("cp"),
                &["-L".to_owned(), path.to_owned(), text(&target)],
            )?;
        }
    }
    if root.join("etc/apt/sources.list.d/debian.sources").exists() {
        let list = root.join("etc/apt/sources.list");
        std::fs::write(&list, "").map_err(|source| Error::File { path: list, source })?;
    }
    let source = root.join("src");
    std::fs::create_dir_all(&source).map_err(|error| Error::File {
        path: source.clone(),
        source: error,
    })?;
    let clone = [
        "clone",
        "--quiet",
        "--no-hardlinks",
        &text(&images::workspace()),
        &text(&source.join("vitrine")),
    ];
    program::run(Path::new("git"), &clone)?;

    let rust = program::run(Path::new("rustc"), &["--print", "sysroot"])?;
    let go = program::run(Path::new("go"), &["env", "GOROOT"])?;
    let script = images::workspace().join("xtask/src/demo/pristine.sh");
    eprintln!("running `cargo xtask demo --once` in it, with empty caches ...");
    let mut command = Command::new("unshare");
    command
        // A process tree of its own: it ends with this process, however that ends.
        .args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            "bash",
        ])
        .arg(&script)
        .arg(root)
        .arg(rust.trim())
        .arg(go.trim());
    let status = command.status().map_err(|error| Error::Program {
        command: "unshare".to_owned(),
        detail: error.to_string(),
    })?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The suite and the mirror that this machine's own package sources name.
fn mirror() -> Result<(String, String)> {
    let mut files = vec![
        PathBuf::from("/etc/apt/sources.list"),
        PathBuf::from("/etc/apt/sources.list.d/debian.sources"),
    ];
    files.retain(|path| path.exists());
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|source| Error::File {
            path: file.clone(),
            source,
        })?;
        if let Some(found) = first_source(&text) {
            return Ok(found);
        }
    }
    Err(Error::Other(
        "no Debian package source in /etc/apt: --pristine runs on Debian only".to_owned(),
    ))
}

/// The first source of a file in either of apt's forms (sources.list(5)).
fn first_source(text: &str) -> Option<(String, String)> {
    let (mut uri, mut suite) = (None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("deb ") {
            let mut words = rest
                .split_whitespace()
                .filter(|word| !word.starts_with('[') && !word.ends_with(']'));
            return Some((
                words.nth(1)?.to_owned(),
                rest.split_whitespace().find(|w| w.contains("://"))?.to_owned(),
            ));
        }
        if let Some(rest) = line.strip_prefix("URIs:") {
            uri = uri.or_else(|| rest.split_whitespace().next().map(str::to_owned));
        }
        if let Some(rest) = line.strip_prefix("Suites:") {
            suite = suite.or_else(|| rest.split_whitespace().next().map(str::to_owned));
        }
    }
    Some((suite?, uri?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_source_is_read_in_both_of_apts_forms() {
        let wanted = Some(("bookworm".to_owned(), "http://deb.example/debian".to_owned()));
        assert_eq!(
            first_source("# c\ndeb http://deb.example/debian bookworm main\n"),
            wanted
        );
        assert_eq!(
            first_source("deb [signed-by=/k] http://deb.example/debian bookworm main\n"),
            wanted
        );
        assert_eq!(
            first_source("Types: deb\nURIs: http://deb.example/debian\nSuites: bookworm bookworm-updates\n"),
            wanted
        );
        assert_eq!(first_source("# nothing\n"), None);
    }
}
