//! A program for Node that stands beside a test. Its packages are fetched once for each content of its folder, and kept where caches are.

use std::{
    env, fs,
    io::ErrorKind,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use sha2::{Digest, Sha256};

use crate::{PartError, Port, Running, io, ran, wait};

/// A running program that listens on a port of loopback; it ends with this.
pub struct Node {
    /// Where it listens.
    pub port: Port,
    process: Running,
}

fn asked(what: &str, command: &mut Command) -> Result<Output, PartError> {
    command.output().map_err(|error| missing(what, error))
}

fn missing(what: &str, error: std::io::Error) -> PartError {
    if error.kind() == ErrorKind::NotFound {
        return PartError::Missing {
            program: what.to_owned(),
            package: "Node 18 or later with npm (Debian: nodejs, npm)",
        };
    }
    io(format!("start {what}"))(error)
}

/// Of its own user, by the XDG base directories.
fn cache() -> PathBuf {
    let home = || env::var_os("HOME").map_or_else(env::temp_dir, |home| PathBuf::from(home).join(".cache"));
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    cache.join("vitrine/node")
}

/// The folder with all that is in this one, and the packages that its lock file names.
///
/// # Errors
/// If there is no npm, or it cannot get them.
pub fn packages(folder: &Path) -> Result<PathBuf, PartError> {
    let shown = folder.display();
    let mut files: Vec<_> = fs::read_dir(folder)
        .map_err(io(format!("read {shown}")))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut digest = Sha256::new();
    let mut contents = vec![];
    for file in files {
        let bytes = fs::read(&file).map_err(io(format!("read {}", file.display())))?;
        let name = file.file_name().unwrap_or_default().to_owned();
        digest.update(name.as_encoded_bytes());
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(&bytes);
        contents.push((name, bytes));
    }
    let digest: String = digest
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = cache().join(digest);
    if place.is_dir() {
        return Ok(place);
    }
    // Whole or not there: another one may install the same now.
    let unfinished = place.with_extension(std::process::id().to_string());
    let making = || io(format!("make {}", unfinished.display()));
    fs::create_dir_all(&unfinished).map_err(making())?;
    for (name, bytes) in contents {
        fs::write(unfinished.join(name), bytes).map_err(making())?;
    }
    let fetched = asked(
        "npm",
        Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&unfinished),
    )?;
    ran("npm ci", &fetched)?;
    if fs::rename(&unfinished, &place).is_err() {
        // The other one was first.
        let _ = fs::remove_dir_all(&unfinished);
    }
    Ok(place)
}

impl Node {
    /// Starts a script of a folder with a port, and waits until it listens there.
    ///
    /// # Errors
    /// If Node is not there, its packages cannot be had, or it does not listen.
    pub fn start(folder: &Path, script: &str) -> Result<Self, PartError> {
        let place = packages(folder)?;
        let port = Port::take();
        let child = Command::new("node")
            .arg(place.join(script))
            .arg(port.address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| missing("node", error))?;
        let mut node = Self {
            port,
            process: Running(child),
        };
        let (address, child) = (node.port.address, &mut node.process.0);
        let said = || "it does not listen".to_owned();
        wait(script, said, || {
            match child.try_wait().map_err(io(format!("look after {script}")))? {
                Some(ended) => Err(PartError::Failed {
                    what: script.to_owned(),
                    said: ended.to_string(),
                }),
                None => Ok(TcpStream::connect(address).is_ok()),
            }
        })?;
        Ok(node)
    }
}
