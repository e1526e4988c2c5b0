//! A real headless Chromium that opens a preview's link. Starts one process a visit; writes a profile, and a picture if asked.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vitrine_devcluster::host;

use crate::{Error, Result, program};

/// How long the page gets, in its own time, to load what it loads.
const VIRTUAL_TIME: Duration = Duration::from_secs(15);

/// Flags of a Chromium that runs as root, shows nothing and calls nobody but the page.
const FLAGS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,800",
];

/// Opens a page and waits for it; returns its text as the browser has built it, and takes a picture.
///
/// # Errors
/// If Chromium is missing or does not come to an end.
pub fn open(url: &str, picture: &Path, profile: &Path) -> Result<String> {
    // A picture and the text take two visits: Chromium does one thing at a time.
    chrome(profile, url, &format!("--screenshot={}", picture.display()))?;
    read(url, profile)
}

/// Opens a page and waits for it; returns its text as the browser has built it.
///
/// # Errors
/// If Chromium is missing or does not come to an end.
pub fn read(url: &str, profile: &Path) -> Result<String> {
    chrome(profile, url, "--dump-dom")
}

fn chrome(profile: &Path, url: &str, what: &str) -> Result<String> {
    let chromium = host::find_program("chromium")
        .ok_or_else(|| Error::Other("there is no chromium: apt-get install chromium".to_owned()))?;
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg("90")
        .arg(chromium)
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--virtual-time-budget={}", VIRTUAL_TIME.as_millis()))
        .arg(what)
        .arg(url);
    program::run_with(&mut command)
}
