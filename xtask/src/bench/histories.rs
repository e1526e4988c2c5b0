//! Histories of the shop, by the hundred thousand: compiles `tests/shop/examples/simulate` for speed and runs it.

use std::process::{Command, Stdio};

use vitrine_kit::{Result, program};

/// Runs so many from a seed on; the result is its report in Markdown.
pub fn measure(first: u64, count: u64) -> Result<String> {
    let release = super::released(&["--package=vitrine-shop-tests", "--example=simulate"])?;
    let mut simulate = Command::new(release.join("examples/simulate"));
    simulate
        .args([first.to_string(), count.to_string()])
        .stderr(Stdio::inherit());
    program::run_with(&mut simulate)
}
