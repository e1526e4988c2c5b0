//! The cluster of the demo: one of its own, or one that is there already. Starts and ends clusters and relays of its own.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kube::Client;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, image::Image, progress::Progress, tools};
use vitrine_kit::{
    Error, Result,
    install::{Options, Target},
    market::{Lead, Network},
    program,
};

use super::Args;

/// kubectl listens within a second, or does not.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// Where the demo happens.
pub enum Ground {
    /// A cluster of the demo's own. It ends when this is dropped.
    Own(Box<Cluster>),
    /// A cluster of somebody else's.
    Foreign {
        /// How it is reached.
        target: Target,
        /// How images are brought to it.
        load: String,
    },
}

impl Ground {
    /// Brings a cluster up, or takes the one that is named.
    ///
    /// # Errors
    /// If it does not come up, or the images of an existing cluster have no place.
    pub fn prepare(args: &Args, progress: &dyn Progress) -> Result<Self> {
        if args.kubeconfig.is_none() && args.context.is_none() {
            let config = ClusterConfig::new(format!("demo-{}", std::process::id()), Level::Full);
            return Ok(Self::Own(Box::new(Cluster::up(
                &config,
                Lifetime::Owned,
                progress,
            )?)));
        }
        let (Some(_), Some(load)) = (&args.image_repo, &args.image_load) else {
            return Err(Error::Other(
                "an existing cluster needs --image-repo and --image-load: where it finds the images, and how they get there, \
                 as --image-repo example.com/demo --image-load 'kind load image-archive {tar}'"
                    .to_owned(),
            ));
        };
        let kubeconfig = args.kubeconfig.clone().or_else(default_kubeconfig);
        let kubeconfig =
            kubeconfig.ok_or_else(|| Error::Other("no kubeconfig: set --kubeconfig".to_owned()))?;
        let target = Target {
            kubeconfig,
            context: args.context.clone(),
        };
        Ok(Self::Foreign {
            target,
            load: load.clone(),
        })
    }

    /// How it is reached.
    pub fn target(&self) -> Target {
        match self {
            Self::Own(cluster) => Target {
                kubeconfig: cluster.kubeconfig().to_owned(),
                context: None,
            },
            Self::Foreign { target, .. } => target.clone(),
        }
    }

    /// Brings an image into the cluster.
    ///
    /// # Errors
    /// If the cluster or the given command refuses.
    pub fn load(&self, image: &Image) -> Result<()> {
        match self {
            Self::Own(cluster) => Ok(cluster.import_image(image)?),
            Self::Foreign { load, .. } => {
                let command = load
                    .replace("{tar}", &image.tar.display().to_string())
                    .replace("{name}", &image.name);
                program::run_with(Command::new("sh").args(["-c", &command])).map(|_| ())
            }
        }
    }

    /// What a shop's chart has to be told of this network.
    ///
    /// # Errors
    /// If the API server does not say.
    pub async fn network(&self, client: &Client) -> Result<Network> {
        match self {
            Self::Own(_) => Ok(Network::of_devcluster()),
            Self::Foreign { .. } => Network::of(client).await,
        }
    }

    /// What the installer decides here.
    pub fn options(&self, args: &Args, image: &Image, preview_url: &str) -> Options {
        let mut options = Options::for_devcluster(image, preview_url);
        if matches!(self, Self::Foreign { .. }) {
            options.set = vec![
                format!("previewPolicy.isolation.internet={{{}}}", args.internet),
                // Off-cloud nothing answers at the metadata address, and what does not answer cannot be proven shut.
                "previewPolicy.isolation.metadataTarget=Reported".to_owned(),
            ];
        }
        options
    }

    /// Makes a Service reachable at a port of this machine, for as long as the result lives.
    ///
    /// # Errors
    /// If it cannot be.
    pub async fn relay(&self, lead: &Lead, client: &Client, progress: &dyn Progress) -> Result<Relay> {
        let service = lead.target(client).await?;
        match self {
            Self::Own(cluster) => {
                cluster.forward(lead.port, service)?;
                Ok(Relay(None))
            }
            Self::Foreign { target, .. } => {
                let kubectl = tools::ensure(&["kubernetes"], progress)?.binary("kubernetes", "kubectl")?;
                let mut command = Command::new(&kubectl);
                command.args(target.kubectl_flags());
                command.args(["port-forward", "-n", lead.namespace]);
                command.arg(format!("service/{}", lead.service));
                command.arg(format!("{}:{}", lead.port, service.port()));
                let child = command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn();
                let child = child.map_err(|source| Error::File {
                    path: kubectl,
                    source,
                })?;
                let relay = Relay(Some(child));
                listens(lead.port).await?;
                Ok(relay)
            }
        }
    }
}

/// Waits until somebody listens at a port of this machine.
async fn listens(port: u16) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        if begun.elapsed() > PATIENCE {
            return Err(Error::Late {
                what: format!("a relay at port {port}"),
                seconds: PATIENCE.as_secs(),
                last: "nobody listens there".to_owned(),
            });
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// A relay to a Service; ends when dropped.
pub struct Relay(Option<Child>);

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn default_kubeconfig() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("KUBECONFIG") {
        return Some(PathBuf::from(path));
    }
    Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"))
}
