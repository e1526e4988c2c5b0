//! `cargo xtask bench NAME`: measures; never judges. Each bench is a program with a cluster of its own.

mod cold;
mod numbers;

use std::process::ExitCode;

use crate::error::Error;

/// The benches.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// A cold preview: seconds to Ready beside a bare pod of the same image, API writes and reconciliations
    Cold {
        /// How many previews, one after the other
        #[arg(long, default_value_t = 10)]
        previews: usize,
    },
    /// Previews with live WebSockets whose time is over in the same second: from then to the cut, and to the free slot
    End {
        /// How many
        #[arg(long, default_value_t = 500)]
        previews: usize,
    },
    /// The gateway beside a bare proxy and a direct connection: requests a second, latencies, memory
    Gateway {
        /// Live previews in its table
        #[arg(long, default_value_t = 10_000)]
        previews: usize,
        /// How long each measurement lasts
        #[arg(long, default_value_t = 5)]
        seconds: usize,
    },
}

/// Runs one.
///
/// # Errors
/// If the cluster does not come up or a preview does not become ready.
pub fn run(command: &Command) -> Result<ExitCode, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Start {
            program: "the bench's runtime".to_owned(),
            source,
        })?;
    let report = match command {
        Command::Cold { previews } => runtime.block_on(cold::measure(*previews))?,
        Command::End { previews } => numbers::measure(&["end", &previews.to_string()])?,
        Command::Gateway { previews, seconds } => {
            numbers::measure(&["gateway", &previews.to_string(), &seconds.to_string()])?
        }
    };
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
