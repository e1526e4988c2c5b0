//! The binary of the development cluster: its command line, and the processes that the library starts from it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vitrine_devcluster::cli::{self, ClusterCommand};
use vitrine_devcluster::internal;

/// A real Kubernetes on this machine
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Cluster(ClusterCommand),
    /// The first process of a cluster's pid namespace
    #[command(hide = true)]
    Init {
        #[arg(long)]
        state: PathBuf,
    },
    /// The process that holds a cluster together
    #[command(hide = true)]
    Supervise {
        #[arg(long)]
        state: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Cluster(command) => cli::run(command),
        Command::Init { state } => internal::init(&state),
        Command::Supervise { state } => internal::supervise(&state),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
