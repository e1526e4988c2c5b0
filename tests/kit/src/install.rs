//! Installs Vitrine into a cluster with Helm, as a platform engineer would. Runs helm; talks to one cluster.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use vitrine_devcluster::{
    API_SERVICE_ADDRESS, DNS_NODE_PORT, NODE_ADDRESS, image::Image, progress::Progress, tools,
};

use crate::{
    error::{Error, Result},
    images, program,
};

/// The namespace that Vitrine is installed into.
pub const NAMESPACE: &str = "vitrine-system";
/// Longer than a pod of ours ever takes to be ready, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster that Vitrine is installed into.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    /// The context in it, if not the current one.
    pub context: Option<String>,
}

/// What the installer decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// Vitrine's image, by digest.
    pub image: String,
    /// The form of a preview's address.
    pub preview_url: String,
    /// The shortest, the longest and the default time to live.
    pub ttl: (String, String, String),
    /// Further values, `path=value` as Helm's `--set` takes them.
    pub set: Vec<String>,
}

impl Options {
    /// Options for the development cluster, whose outside world is at 203.0.113.10.
    pub fn for_devcluster(image: &Image, preview_url: &str) -> Self {
        Self {
            image: image.by_digest(),
            preview_url: preview_url.to_owned(),
            ttl: ("5s".to_owned(), "30m".to_owned(), "20m".to_owned()),
            set: vec![
                "previewPolicy.isolation.internet={203.0.113.10:80}".to_owned(),
                format!("networkPolicy.apiServerCidrs={{{API_SERVICE_ADDRESS}/32,{NODE_ADDRESS}/32}}"),
                format!("networkPolicy.dnsPorts={{53,{DNS_NODE_PORT}}}"),
            ],
        }
    }
}

impl Target {
    /// A client for it.
    ///
    /// # Errors
    /// If the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        let wrong = |detail: String| Error::Other(format!("{}: {detail}", self.kubeconfig.display()));
        let file = Kubeconfig::read_from(&self.kubeconfig).map_err(|e| wrong(e.to_string()))?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = Config::from_custom_kubeconfig(file, &options)
            .await
            .map_err(|e| wrong(e.to_string()))?;
        Client::try_from(config).map_err(Error::kube("connect"))
    }

    /// Has Helm do something there; what it says.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub(crate) fn helm(&self, mut arguments: Vec<String>, progress: &dyn Progress) -> Result<String> {
        let helm = tools::ensure(&["helm"], progress)?.binary("helm", "helm")?;
        arguments.extend(self.flags("--kube-context"));
        program::run(&helm, &arguments)
    }

    /// Has kubectl do something there, as a person would call it; what it says.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub fn kubectl(&self, arguments: &[&str], progress: &dyn Progress) -> Result<String> {
        let kubectl = tools::ensure(&["kubernetes"], progress)?.binary("kubernetes", "kubectl")?;
        let mut all = self.kubectl_flags();
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        program::run(&kubectl, &all)
    }

    /// What tells kubectl of it.
    pub fn kubectl_flags(&self) -> Vec<String> {
        self.flags("--context")
    }

    fn flags(&self, context_flag: &str) -> Vec<String> {
        let mut flags = vec!["--kubeconfig".to_owned(), self.kubeconfig.display().to_string()];
        if let Some(context) = &self.context {
            flags.extend([context_flag.to_owned(), context.clone()]);
        }
        flags
    }
}

/// Installs or upgrades both charts and waits until everything is ready.
///
/// # Errors
/// If Helm refuses or something does not become ready.
pub fn install(target: &Target, options: &Options, progress: &dyn Progress) -> Result<()> {
    install_crds(target, progress)?;
    let (repository, digest) = options
        .image
        .split_once('@')
        .ok_or_else(|| Error::Other(format!("the image {:?} is not by digest", options.image)))?;
    let (min, max, default) = &options.ttl;
    // What is tried is beside Vitrine's own image: previews run nothing else.
    let (folder, _) = repository
        .rsplit_once('/')
        .ok_or_else(|| Error::Other(format!("the image {:?} is in no folder", options.image)))?;
    let mut sets = vec![
        format!("previewPolicy.images.repositories={{{folder}}}"),
        format!("image.repository={repository}"),
        format!("image.digest={digest}"),
        // Whoever tries Vitrine brings no key for receipts.
        "profile=Development".to_owned(),
        format!("previewPolicy.ttl.min={min}"),
        format!("previewPolicy.ttl.max={max}"),
        format!("previewPolicy.ttl.default={default}"),
    ];
    sets.extend(options.set.clone());
    let mut arguments = upgrade("vitrine", NAMESPACE);
    arguments.extend(["--create-namespace".to_owned(), "--wait".to_owned()]);
    arguments.push(format!("--timeout={}s", PATIENCE.as_secs()));
    for set in sets {
        arguments.extend(["--set".to_owned(), set]);
    }
    // Braces would be read as a list by --set; the address template is text.
    arguments.extend([
        "--set-literal".to_owned(),
        format!("gateway.publicUrl={}", options.preview_url),
    ]);
    target.helm(arguments, progress).map(drop)
}

/// Installs the custom resources only.
///
/// # Errors
/// If Helm refuses.
pub fn install_crds(target: &Target, progress: &dyn Progress) -> Result<()> {
    let mut arguments = upgrade("vitrine-crds", NAMESPACE);
    arguments.extend(["--create-namespace".to_owned(), "--wait".to_owned()]);
    target.helm(arguments, progress).map(drop)
}

/// Uninstalls Vitrine, which ends every preview first.
///
/// # Errors
/// If Helm refuses, which it does when a preview does not end: with what remains.
pub fn uninstall(target: &Target, progress: &dyn Progress) -> Result<()> {
    let mut arguments: Vec<String> = ["uninstall", "vitrine", "-n", NAMESPACE, "--wait"]
        .map(str::to_owned)
        .to_vec();
    arguments.push(format!("--timeout={}s", PATIENCE.as_secs()));
    target.helm(arguments, progress).map(drop)
}

/// Installs or upgrades the release that is named as its chart is.
pub(crate) fn upgrade(release: &str, namespace: &str) -> Vec<String> {
    let chart = images::workspace().join("charts").join(release);
    let chart = chart.display().to_string();
    ["upgrade", "--install", release, &chart, "-n", namespace]
        .map(str::to_owned)
        .to_vec()
}

/// The cluster address of a Service.
///
/// # Errors
/// If it does not exist.
pub async fn service_address(client: &Client, namespace: &str, name: &str) -> Result<SocketAddr> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = services
        .get(name)
        .await
        .map_err(Error::kube(format!("get Service {name}")))?;
    let spec = service.spec.unwrap_or_default();
    let port = spec
        .ports
        .iter()
        .flatten()
        .next()
        .and_then(|p| u16::try_from(p.port).ok());
    let ip = spec.cluster_ip.and_then(|ip| ip.parse().ok());
    match (ip, port) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err(Error::Other(format!("Service {name} has no address"))),
    }
}
