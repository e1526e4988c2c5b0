//! Licences: whether one holds. Reads files and the clock, and no network; remembers what it has seen in a file, if it is told to.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use jiff::Timestamp;
use semver::Version;
use serde::{Deserialize, Serialize};
use vitrine_commerce::licence::{self, Asked, Code, Remembered, Trust, Verdict, Warning};

use crate::error::{Error, Result};

/// What can be done with licences.
#[derive(Subcommand, Clone, Debug)]
pub enum Licence {
    /// Says whether a licence holds, without a network.
    Verify(Verify),
}

/// A licence, and what it is judged by.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// The file with the licence; `-` for standard input.
    licence: PathBuf,
    /// A file with the shop's pinned keys: one a line, `licence` or `revocations` before it.
    #[arg(long)]
    keys: PathBuf,
    /// A file with the newest revocation list.
    #[arg(long)]
    revocations: Option<PathBuf>,
    /// Whose it should be: the identity provider's address and its name for the person.
    #[arg(long, num_args = 2, value_names = ["ISSUER", "SUBJECT"])]
    account: Option<Vec<String>>,
    /// For which product it should be.
    #[arg(long)]
    sku: Option<String>,
    /// For which version of it.
    #[arg(long)]
    product_version: Option<Version>,
    /// A file in which is kept what was seen: without it, an older list or a clock that was turned back is not noticed.
    #[arg(long)]
    memory: Option<PathBuf>,
    /// Judge it as of then, and not as of now.
    #[arg(long)]
    at: Option<Timestamp>,
}

/// What is kept from one time to the next.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    sequence: u64,
    latest: Option<Timestamp>,
}

/// Verifies.
///
/// # Errors
/// If it does not hold, or a file cannot be read.
pub fn run(command: &Licence) -> Result<String> {
    let Licence::Verify(verify) = command;
    let trust = Trust::read(&text(&verify.keys)?)
        .map_err(|error| Error::Other(format!("{}: {error}", verify.keys.display())))?;
    let note = bytes(&verify.licence)?;
    let list = verify.revocations.as_deref().map(bytes).transpose()?;
    let memory = verify
        .memory
        .as_deref()
        .map(remembered)
        .transpose()?
        .unwrap_or_default();
    let account = match verify.account.as_deref() {
        Some([issuer, subject]) => Some(licence::account(issuer, subject)),
        _ => None,
    };
    let verdict = licence::verify(
        &note,
        &trust,
        &Asked {
            revocations: list.as_deref(),
            now: verify.at.unwrap_or_else(Timestamp::now),
            remembered: Remembered {
                sequence: memory.sequence,
                latest: memory.latest,
            },
            account: account.as_deref(),
            sku: verify.sku.as_deref(),
            version: verify.product_version.as_ref(),
        },
    );
    if let Some(path) = &verify.memory {
        remember(path, verdict.remember)?;
    }
    told(&verdict)
}

/// What is said of it.
fn told(verdict: &Verdict) -> Result<String> {
    if verdict.code != Code::Valid {
        return Err(Error::Other(format!("{}: {}", verdict.code, verdict.why)));
    }
    let mut text = format!("{}: {}\n", verdict.code, verdict.why);
    for Warning::Grace(until) in &verdict.warnings {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "warning: the revocation list is too old, and is put up with until {until}"
        );
    }
    if let Some(licence) = &verdict.licence {
        let _ = writeln!(text, "licence  {}", licence.id);
        let _ = writeln!(text, "product  {} {}", licence.sku.id, licence.sku.versions);
        let expires = licence
            .expires
            .map_or_else(|| "never".to_owned(), |at| at.to_string());
        let _ = writeln!(text, "expires  {expires}");
    }
    Ok(text)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    let read = if path == Path::new("-") {
        let mut all = vec![];
        std::io::Read::read_to_end(&mut std::io::stdin(), &mut all).map(|_| all)
    } else {
        std::fs::read(path)
    };
    read.map_err(|error| Error::Other(format!("failed to read {}: {error}", path.display())))
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(bytes(path)?).map_err(|_| Error::Other(format!("{} is not UTF-8", path.display())))
}

fn remembered(path: &Path) -> Result<Memory> {
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|error| Error::Other(format!("{}: {error}", path.display()))),
        // The first time.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(Error::Other(format!(
            "failed to read {}: {error}",
            path.display()
        ))),
    }
}

fn remember(path: &Path, seen: Remembered) -> Result<()> {
    let failed = |error: String| Error::Other(format!("failed to write {}: {error}", path.display()));
    let memory = Memory {
        sequence: seen.sequence,
        latest: seen.latest,
    };
    let json = serde_json::to_vec(&memory).map_err(|error| failed(error.to_string()))?;
    // Whole or not at all: half of it would be as if nothing had been seen.
    let beside = path.with_extension("new");
    std::fs::write(&beside, json)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| failed(error.to_string()))
}
