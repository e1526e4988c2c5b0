//! The front door, `cargo xtask COMMAND`: reads the command line and hands over; does nothing itself.
//!
//! One file a subcommand (`test`, `trace`, …), each with `Args` and `run`. A new subcommand is a new file, a
//! variant of [`Command`] and a line in `main`.

#[cfg(test)]
mod architecture;
mod bench;
mod cluster;
mod clusters;
mod command;
mod crdgen;
mod demo;
mod error;
mod install;
mod libtest;
mod progress;
mod queries;
mod requirements;
mod results;
mod soak;
mod test;
mod threats;
mod tools;
mod trace;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The front door of Vitrine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Preview a real product in a real Kubernetes, from nothing to the receipt
    Demo(demo::Args),
    /// Run every test of the workspace, or those whose name contains FILTER
    Test(test::Args),
    /// Build Vitrine and install it into a running development cluster
    Install(install::Args),
    /// Measure: API writes, seconds, ratios
    #[command(subcommand)]
    Bench(bench::Command),
    /// Write the CRD files of charts/vitrine-crds from crds/src
    Crdgen,
    /// Write .sqlx/ of the shop's services from a real Postgres
    Queries,
    /// Run tests of tests/e2e with full counts and write docs/evidence/NAME.md
    Soak(soak::Args),
    /// Check docs/requirements.md and docs/threat-model.md against the tests that ran, and print what is done
    Trace(trace::Args),
    /// Bring a real Kubernetes up on this machine, look at it, end it
    #[command(subcommand)]
    Cluster(vitrine_devcluster::cli::ClusterCommand),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Crdgen => crdgen::run(),
        Command::Queries => queries::run(),
        Command::Test(args) => test::run(&args).map(verdict),
        Command::Soak(args) => soak::run(&args).map(verdict),
        Command::Trace(args) => trace::run(&args).map(verdict),
        Command::Cluster(command) => cluster::run(command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// Prints nothing: the subcommand has said what is wrong, and another line would hide its last one.
fn verdict(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
