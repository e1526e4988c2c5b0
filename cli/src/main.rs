//! `vitrine`, and `kubectl vitrine` where the same file is called `kubectl-vitrine`. Parses, connects, hands over, prints.

mod error;
mod licence;
mod maintenance;
mod previews;
mod receipts;
mod table;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::error::{Error, Result};

#[derive(Parser)]
#[command(
    name = "vitrine",
    version,
    about = "Previews of a software marketplace: look at them, end them, prove what they were"
)]
struct Arguments {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

/// Which cluster, as kubectl takes it.
#[derive(Args, Clone, Debug)]
struct Cluster {
    /// The kubeconfig; KUBECONFIG or ~/.kube/config if absent.
    #[arg(long, global = true)]
    kubeconfig: Option<std::path::PathBuf>,
    /// The context in it, if not the current one.
    #[arg(long, global = true)]
    context: Option<String>,
    /// The namespace of the shop; that of the context if absent.
    #[arg(long, short, global = true)]
    namespace: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Lists previews: how they are, why, where and until when.
    List(previews::List),
    /// Prints the link of a preview. It opens it to whoever has it.
    Open(previews::Named),
    /// Says why a preview is as it is: conditions, place in the queue, what happened.
    Why(previews::Named),
    /// Lets a preview live longer.
    Extend(previews::Extend),
    /// Ends a preview and waits until its end is proven.
    End(previews::End),
    /// Ends a preview and waits only until its link is dead.
    Cut(previews::End),
    /// Ends all previews on a node that takes no new ones any more.
    DrainNode(maintenance::DrainNode),
    /// Lets no new previews in.
    Pause(maintenance::Switch),
    /// Lets new previews in again.
    Resume(maintenance::Switch),
    /// Lists the receipts that the cluster still holds.
    Receipts(receipts::List),
    /// Prints one receipt, as it was signed.
    Receipt(receipts::One),
    /// Checks a receipt, with the cluster's keys or with keys in files.
    Verify(receipts::Verify),
    /// Licences: whether one holds.
    #[command(subcommand)]
    Licence(licence::Licence),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("a TLS provider is already installed: this is a defect");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("failed to start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments)) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<String> {
    match &arguments.command {
        // Licences need no cluster.
        Command::Licence(licence) => return licence::run(licence),
        // Nor does whoever has keys in files, and perhaps there is none any more.
        Command::Verify(verify) if !verify.keys.is_empty() => return receipts::verify_offline(verify),
        _ => {}
    }
    let client = connect(&arguments.cluster).await?;
    match arguments.command {
        Command::List(list) => previews::list(&client, &list).await,
        Command::Open(named) => previews::open(&client, &named).await,
        Command::Why(named) => previews::why(&client, &named).await,
        Command::Extend(extend) => previews::extend(&client, &extend).await,
        Command::End(end) => previews::end(&client, &end).await,
        Command::Cut(cut) => previews::cut(&client, &cut).await,
        Command::DrainNode(drain) => maintenance::drain_node(&client, &drain).await,
        Command::Pause(switch) => maintenance::pause(&client, &switch).await,
        Command::Resume(switch) => maintenance::resume(&client, &switch).await,
        Command::Receipts(list) => receipts::list(&client, &list).await,
        Command::Receipt(one) => receipts::one(&client, &one).await,
        Command::Verify(verify) => receipts::verify(&client, &verify).await,
        Command::Licence(licence) => licence::run(&licence),
    }
}

async fn connect(cluster: &Cluster) -> Result<Client> {
    let unusable = |error: String| Error::Cluster(error);
    let options = KubeConfigOptions {
        context: cluster.context.clone(),
        ..KubeConfigOptions::default()
    };
    let mut config = match &cluster.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unusable(error.to_string()))?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .map_err(|error| unusable(error.to_string()))?
        }
        None => Config::from_kubeconfig(&options)
            .await
            .map_err(|error| unusable(error.to_string()))?,
    };
    if let Some(namespace) = &cluster.namespace {
        config.default_namespace.clone_from(namespace);
    }
    Client::try_from(config).map_err(|error| unusable(error.to_string()))
}
