//! Histories of the shop, by the hundred thousand: compiles `tests/shop/examples/simulate` for speed and runs it.

use std::process::{Command, Stdio};

use vitrine_devcluster::cargo;
use vitrine_kit::{Result, images, program};

/// Runs so many from a seed on; the result is its report in Markdown.
pub fn measure(first: u64, count: u64) -> Result<String> {
    let mut build = cargo::command();
    build.current_dir(images::workspace()).args([
        "build",
        "--locked",
        "--release",
        "--package=vitrine-shop-tests",
        "--example=simulate",
    ]);
    program::run_with(&mut build)?;
    let mut simulate = Command::new(images::target().join("release/examples/simulate"));
    simulate
        .args([first.to_string(), count.to_string()])
        .stderr(Stdio::inherit());
    program::run_with(&mut simulate)
}
