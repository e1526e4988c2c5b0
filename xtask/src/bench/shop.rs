//! The shop under load: compiles its program and `tests/shop/examples/load` for speed and runs them.

use std::process::{Command, Stdio};

use vitrine_kit::{Result, program};

/// Runs it; the result is its report in Markdown.
pub fn measure(rate: f64, seconds: u64, orders: &[u64], limited: u64) -> Result<String> {
    let release = super::released(&[
        "--package=vitrine-api",
        "--package=vitrine-shop-tests",
        "--bin=vitrine-api",
        "--example=load",
    ])?;
    let sizes: Vec<_> = orders.iter().map(u64::to_string).collect();
    let mut load = Command::new(release.join("examples/load"));
    load.arg(release.join("vitrine-api"))
        .args([
            rate.to_string(),
            seconds.to_string(),
            sizes.join(","),
            limited.to_string(),
        ])
        .stderr(Stdio::inherit());
    program::run_with(&mut load)
}
