//! `cargo xtask bench NAME`: measures; never judges. Each bench is a program with a cluster of its own.

mod click;
mod cold;
mod ground;
mod histories;
mod numbers;
mod shop;

use std::{path::PathBuf, process::ExitCode};

use vitrine_devcluster::cargo;
use vitrine_kit::{images, program};

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
    /// From the click to the first byte of a real product through the gateway: warm, and cold in both kinds of cells
    Click {
        /// How many clicks each way
        #[arg(long, default_value_t = 20)]
        clicks: usize,
    },
    /// Previews with live WebSockets whose time is over in the same second: from then to the cut, and to the free slot
    End {
        /// How many
        #[arg(long, default_value_t = 500)]
        previews: usize,
    },
    /// Warm previews beside agent-sandbox on one control plane: latencies, rates, writes, processor time, memory
    Previews {
        /// How often, in alternating order
        #[arg(long, default_value_t = 2)]
        rounds: usize,
        /// How long a rate lasts
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// How many are ready at the beginning
        #[arg(long, default_value_t = 1050)]
        pool: usize,
        /// Claims a second that stay
        #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "5,10,20")]
        rates: Vec<f64>,
        /// Claims a second of which each is deleted soon
        #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "5,10,20")]
        deletes: Vec<f64>,
        /// Other sizes of the pool, at the first of the rates
        #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "50,5000")]
        pools: Vec<usize>,
        /// So many live previews, at which Vitrine alone is measured at the first of the rates, and started anew
        #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "100,10000")]
        live: Vec<usize>,
        /// Claims a second of which each is deleted soon, where every preview gets a namespace that is made for it; of Vitrine alone
        #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "5,10")]
        fresh: Vec<f64>,
        /// Leave out a pool that is emptied faster than it is filled
        #[arg(long)]
        no_drained: bool,
        /// Leave out 750 claims at 75/s, and 300 at once
        #[arg(long)]
        no_gate: bool,
        /// Leave out looking for the highest rate
        #[arg(long)]
        no_highest: bool,
    },
    /// Histories of the shop in which all goes wrong, each decided by its seed
    Histories {
        /// The first seed
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// How many
        #[arg(long, default_value_t = 100_000)]
        count: u64,
    },
    /// The shop's process on Postgres and a Stripe without limits: checkouts, webhooks and licences at a rate, and as fast as it goes
    Shop {
        /// Checkouts a second, and then webhooks
        #[arg(long, default_value_t = 200.0)]
        rate: f64,
        /// How long each measurement lasts
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Orders in the database at which it is measured
        #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000")]
        orders: Vec<u64>,
        /// Instead of all that: so many orders that are paid at once, at a Stripe with its usual limits
        #[arg(long, default_value_t = 0)]
        limited: u64,
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

/// Compiles programs for speed; where they are then.
fn released(what: &[&str]) -> vitrine_kit::Result<PathBuf> {
    let mut build = cargo::command();
    build
        .current_dir(images::workspace())
        .args(["build", "--locked", "--release"])
        .args(what);
    program::run_with(&mut build)?;
    Ok(images::target().join("release"))
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
        Command::Click { clicks } => runtime.block_on(click::measure(*clicks))?,
        Command::End { previews } => numbers::measure(&["end", &previews.to_string()], numbers::Nodes::FEW)?,
        Command::Histories { first, count } => histories::measure(*first, *count)?,
        Command::Shop {
            rate,
            seconds,
            orders,
            limited,
        } => shop::measure(*rate, *seconds, orders, *limited)?,
        Command::Gateway { previews, seconds } => {
            let words = ["gateway", &previews.to_string(), &seconds.to_string()];
            numbers::measure(&words, numbers::Nodes::FEW)?
        }
        Command::Previews {
            rounds,
            seconds,
            pool,
            rates,
            deletes,
            pools,
            live,
            fresh,
            no_drained,
            no_gate,
            no_highest,
        } => {
            let choice = serde_json::json!({
                "rounds": rounds, "seconds": seconds, "pool": pool, "rates": rates, "deletes": deletes, "pools": pools, "live": live,
                "fresh": fresh, "drained": !no_drained, "gate": !no_gate, "highest": !no_highest
            });
            numbers::measure(&["previews", &choice.to_string()], numbers::Nodes::MANY)?
        }
    };
    println!("{report}");
    Ok(ExitCode::SUCCESS)
}
