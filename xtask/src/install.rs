//! `cargo xtask install`: builds Vitrine and installs it into a running development cluster, for trying a change by hand.
//!
//! Writes to that cluster only.

use std::process::ExitCode;

use vitrine_devcluster::{Cluster, progress};
use vitrine_kit::{
    images::{self, Build},
    install::{self, Options, Target},
    objects,
};

use crate::error::Error;

/// The options of `install`.
#[derive(clap::Args)]
pub struct Args {
    /// The cluster's name, as in `cargo xtask cluster up --name NAME`
    #[arg(long, default_value = "vitrine")]
    name: String,
    /// The port on 127.0.0.1 that leads to previews
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Installs, and prints a listing of the demo's product.
///
/// # Errors
/// If something does not build, or the cluster refuses.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let progress = progress::for_stderr(false);
    let cluster = Cluster::attach(&args.name)?;
    let (operator, product) = (images::operator(Build::Quick)?, images::pocketbase(&*progress)?);
    cluster.import_image(&operator)?;
    cluster.import_image(&product)?;
    let target = Target {
        kubeconfig: cluster.kubeconfig().to_owned(),
        context: None,
    };
    let url = format!("http://{{label}}.previews.localhost:{}", args.port);
    install::install(&target, &Options::for_devcluster(&operator, &url), &*progress)?;
    let text = serde_yaml::to_string(&objects::pocketbase(&product));
    println!("{}", text.map_err(|error| Error::shape("the listing", error))?);
    Ok(ExitCode::SUCCESS)
}
