//! `cargo xtask demo`: a real product previewed in a real Kubernetes and then bought there, from nothing to the licence, with the time of each stage.
//!
//! Brings up a cluster of its own that ends with this process, or uses one that is named. Writes below `target/vitrine/demo`.

mod cluster;
mod pristine;
mod sale;
mod stages;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::error::Error;

/// The options of `demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// End after the story instead of staying up to be played with
    #[arg(long)]
    pub once: bool,
    /// Run in a fresh Debian root with empty caches, as on a new machine
    #[arg(long, requires = "once", conflicts_with_all = ["kubeconfig", "context"])]
    pub pristine: bool,
    /// Use the cluster of this kubeconfig instead of bringing one up
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Use this context of the kubeconfig (of $KUBECONFIG or ~/.kube/config without --kubeconfig)
    #[arg(long)]
    pub context: Option<String>,
    /// Where an existing cluster finds the images, as REGISTRY/PATH
    #[arg(long, requires = "image_load")]
    pub image_repo: Option<String>,
    /// The command that brings an image to an existing cluster; {tar} is an OCI layout and {name} its name, as
    /// `kind load image-archive {tar}`
    #[arg(long, requires = "image_repo")]
    pub image_load: Option<String>,
    /// An address that answers on the internet, for the isolation probe; needed with an existing cluster
    #[arg(long, default_value = "1.1.1.1:443")]
    pub internet: String,
    /// How long the preview of the demo lives
    #[arg(long, default_value = "20s")]
    pub ttl: String,
    /// Plain lines for logs
    #[arg(long)]
    pub quiet: bool,
}

/// Runs it; a stage that fails makes the exit code 1.
///
/// # Errors
/// If the runtime of the demo itself does not start.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.pristine {
        return Ok(pristine::run()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Start {
            program: "the demo's runtime".to_owned(),
            source,
        })?;
    let told = runtime.block_on(async {
        tokio::select! {
            told = story::tell(args) => told,
            _ = tokio::signal::ctrl_c() => Err(vitrine_kit::Error::Other("interrupted".to_owned())),
        }
    });
    match told {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("\nthe demo failed: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}
