//! Command line of the simulator: a Stripe for a demo, which takes no cards and moves no money. Listens on one port, sends webhooks.

use std::{net::SocketAddr, process::ExitCode};

use clap::Parser;
use vitrine_stripe::{
    server::{Server, Webhooks},
    sim::Account,
};

#[derive(Parser)]
#[command(
    name = "vitrine-stripe",
    version,
    about = "Stands for Stripe: takes no cards, moves no money"
)]
struct Arguments {
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// Where its pages are, as buyers reach them.
    #[arg(long)]
    pages: String,
    /// The secret key of its one account.
    #[arg(long)]
    key: String,
    /// Where its events go.
    #[arg(long)]
    webhook_url: String,
    /// The secret that they are signed with.
    #[arg(long)]
    webhook_secret: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let account = Account {
        key: arguments.key,
        livemode: false,
        refunds_wait: false,
        pages: arguments.pages,
    };
    let webhooks = Webhooks {
        url: arguments.webhook_url,
        secrets: vec![arguments.webhook_secret],
    };
    let _server = match Server::start(arguments.listen, account, Some(webhooks)).await {
        Ok(server) => server,
        Err(error) => {
            eprintln!("failed to listen on {}: {error}", arguments.listen);
            return ExitCode::FAILURE;
        }
    };
    std::future::pending().await
}
