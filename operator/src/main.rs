//! Command line of the operator's programs. Parses, sets logging up, hands over.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vitrine_operator::{drain, egress, gateway, probe, responder, run};
use vitrine_program::logging;

/// glibc's allocator gave back little of what lists and bursts of requests took: with 2,000 live previews the operator had 33 MiB where it
/// used 14. How this one is set stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(
    name = "vitrine-operator",
    version,
    about = "Previews of a software marketplace, isolated and short-lived"
)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// The controllers.
    Run(Box<run::Arguments>),
    /// Carries preview traffic in.
    Gateway(gateway::Arguments),
    /// Carries previews' traffic out, to allowed names only.
    Egress(egress::Arguments),
    /// Answers the probes' canary, and tells from outside whether targets are up.
    Responder(responder::Arguments),
    /// A neighbour with open ingress that no preview may reach.
    Decoy(responder::DecoyArguments),
    /// Runs inside a preview.
    #[command(subcommand)]
    Probe(probe::Program),
    /// Ends every preview, and waits until each end is proven.
    Drain(drain::Arguments),
}

fn main() -> ExitCode {
    let program = Arguments::parse().program;
    logging();
    // Two crypto providers in one process would make rustls panic at the first connection: choose before anything connects.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("a TLS provider is already installed: this is a defect");
        return ExitCode::FAILURE;
    }
    // A preview has a sidecar of this binary: one thread is enough inside, and cheap.
    let mut builder = match program {
        Program::Run(_) | Program::Gateway(_) | Program::Egress(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match program {
            Program::Run(arguments) => run::run(*arguments).await,
            Program::Gateway(arguments) => gateway::run(arguments).await,
            Program::Egress(arguments) => egress::run(arguments).await,
            Program::Responder(arguments) => responder::run(arguments).await,
            Program::Decoy(arguments) => responder::decoy(arguments).await,
            Program::Probe(program) => probe::run(program).await,
            Program::Drain(arguments) => drain::run(arguments).await,
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(category = error.category(), "{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Arguments;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
