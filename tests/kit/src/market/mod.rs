//! A whole market in a cluster: the shop by its chart, and around it what a shop has and Vitrine does not bring: a Postgres, a Stripe, an identity
//! provider. Nobody's cards, nobody's money. Runs helm and kubectl; talks to one cluster.

pub mod around;
pub mod buyer;
pub mod images;
mod secrets;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::ListParams};
use serde_json::{Value, json};
use vitrine_devcluster::{API_SERVICE_ADDRESS, DNS_NODE_PORT, NODE_ADDRESS, progress::Progress};

use crate::{
    error::{Error, Result},
    install::{self, Target},
    objects,
};

pub use images::Images;
pub use secrets::Secrets;

/// The namespace that the shop is installed into.
pub const NAMESPACE: &str = "vitrine-shop";
/// The namespace of what is around it.
pub const AROUND: &str = "market-around";
/// What the names of its keys begin with.
pub const NAME: &str = "shop.example";
/// Whom tokens are for (`tests/oidc/provider.mjs`).
const AUDIENCE: &str = "vitrine";
/// Postgres sets itself up, and images are large; on two busy cores.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Ports of this machine by which people reach the market.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The shop.
    pub shop: u16,
    /// Where people pay.
    pub pages: u16,
    /// Where they sign in; the same port in the cluster, for an issuer has one address.
    pub identity: u16,
}

/// What has to be led to this machine.
#[derive(Clone, Debug)]
pub struct Lead {
    /// To this port.
    pub port: u16,
    /// A Service's namespace, …
    pub namespace: &'static str,
    /// … and its name.
    pub service: &'static str,
}

impl Ports {
    /// The identity provider's address, for the shop and for people.
    pub fn issuer(&self) -> String {
        format!("http://identity.{AROUND}.svc:{}", self.identity)
    }

    /// The shop's address for people.
    pub fn public_url(&self) -> String {
        format!("http://localhost:{}", self.shop)
    }

    /// What has to be led to this machine for that.
    pub fn leads(&self) -> [Lead; 3] {
        [
            (self.shop, NAMESPACE, "vitrine-api"),
            (self.pages, AROUND, "stripe"),
            (self.identity, AROUND, "identity"),
        ]
        .map(|(port, namespace, service)| Lead {
            port,
            namespace,
            service,
        })
    }
}

impl Lead {
    /// Where the Service is in the cluster.
    ///
    /// # Errors
    /// If there is none.
    pub async fn target(&self, client: &Client) -> Result<SocketAddr> {
        install::service_address(client, self.namespace, self.service).await
    }
}

/// Values of the chart that only the cluster decides.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Addresses of API servers (CIDRs); any if empty.
    pub api_servers: Vec<String>,
    /// Ports of the cluster's DNS.
    pub dns_ports: Vec<u16>,
}

impl Network {
    /// Of the development cluster.
    pub fn of_devcluster() -> Self {
        Self {
            api_servers: [API_SERVICE_ADDRESS, NODE_ADDRESS]
                .map(|address| format!("{address}/32"))
                .into(),
            dns_ports: vec![53, DNS_NODE_PORT],
        }
    }

    /// Of any other one: its DNS may listen elsewhere behind its Service, and an enforcing network may judge by that.
    ///
    /// # Errors
    /// If the API server refuses.
    pub async fn of(client: &Client) -> Result<Self> {
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "kube-system");
        let of_dns = ListParams::default().labels("kubernetes.io/service-name=kube-dns");
        let found = slices.list(&of_dns).await;
        let found = found.map_err(Error::kube("list the endpoints of the cluster's DNS"))?;
        let ports = found.items.into_iter().filter_map(|slice| slice.ports).flatten();
        let ports = ports.filter_map(|port| u16::try_from(port.port?).ok());
        let ports: BTreeSet<u16> = ports.chain([53]).collect();
        Ok(Self {
            api_servers: vec![],
            dns_ports: ports.into_iter().collect(),
        })
    }
}

/// A shop and what is around it, as it is to be installed.
pub struct Market<'a> {
    /// The cluster.
    pub target: &'a Target,
    /// For files that it is made from.
    pub folder: &'a Path,
    /// Its images.
    pub images: &'a Images,
    /// Its ports.
    pub ports: Ports,
    /// Its network.
    pub network: Network,
    /// Its secrets.
    pub secrets: &'a Secrets,
}

impl Market<'_> {
    /// Makes all that is around the shop, and waits until it answers.
    ///
    /// # Errors
    /// If the cluster refuses, or something does not start.
    pub async fn surround(&self, client: &Client, progress: &dyn Progress) -> Result<()> {
        for namespace in [AROUND, NAMESPACE] {
            objects::shop(client, namespace).await?;
        }
        let objects = around::objects(self.images, self.secrets, &self.ports);
        self.apply(
            "around.json",
            &json!({"apiVersion": "v1", "kind": "List", "items": objects}),
            progress,
        )?;
        self.apply("secrets.json", &self.secrets.objects(), progress)?;
        for part in around::PARTS {
            let patience = format!("--timeout={}s", PATIENCE.as_secs());
            let deployment = format!("deployment/{part}");
            self.target.kubectl(
                &["-n", AROUND, "rollout", "status", &deployment, &patience],
                progress,
            )?;
        }
        Ok(())
    }

    /// Installs the shop as its chart's README says it, and waits until it is ready.
    ///
    /// # Errors
    /// If Helm refuses, or something does not become ready.
    pub fn install(&self, progress: &dyn Progress) -> Result<()> {
        let values = self.folder.join("shop-values.json");
        write(&values, &self.values()?)?;
        let mut arguments = install::upgrade("vitrine-shop", NAMESPACE);
        arguments.extend([
            "--wait".to_owned(),
            format!("--timeout={}s", PATIENCE.as_secs()),
            "--values".to_owned(),
            values.display().to_string(),
        ]);
        self.target.helm(arguments, progress).map(drop)
    }

    /// Has the books compared now and not only at night, by the chart's own job; its report.
    ///
    /// # Errors
    /// If they differ.
    pub fn reconcile(&self, progress: &dyn Progress) -> Result<String> {
        const JOB: &str = "reconcile-now";
        let within = |arguments: &[&str]| {
            self.target
                .kubectl(&[&["-n", NAMESPACE], arguments].concat(), progress)
        };
        within(&["delete", "job", JOB, "--ignore-not-found"])?;
        within(&["create", "job", JOB, "--from=cronjob/vitrine-reconcile"])?;
        let job = format!("job/{JOB}");
        let ends = "jsonpath={.status.succeeded},{.status.failed}";
        let begun = Instant::now();
        let ended = loop {
            let ended = within(&["get", &job, "-o", ends])?;
            if ended != "," {
                break ended;
            }
            if begun.elapsed() > PATIENCE {
                return Err(Error::Late {
                    what: "the end of the comparison of the books".to_owned(),
                    seconds: PATIENCE.as_secs(),
                    last: within(&["describe", &job])?,
                });
            }
            std::thread::sleep(LOOK);
        };
        let report = within(&["logs", &job])?;
        if ended == "1," {
            Ok(report)
        } else {
            Err(Error::Other(format!("the books differ: {report}")))
        }
    }

    fn values(&self) -> Result<Value> {
        let (repository, digest) = images::parted(&self.images.shop)?;
        let around = |part: &str, port: u16| {
            json!({
                "to": [{
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": AROUND}},
                    "podSelector": {"matchLabels": {"app": part}},
                }],
                "ports": [{"protocol": "TCP", "port": port}],
            })
        };
        Ok(json!({
            "image": {"repository": repository, "digest": digest},
            "shop": NAME,
            "storefront": self.ports.public_url(),
            "publicUrl": self.ports.public_url(),
            "keys": self.secrets.public,
            "identity": {"issuer": self.ports.issuer(), "audience": AUDIENCE},
            // Nobody's limits: this Stripe has none.
            "stripe": {"url": format!("http://stripe.{AROUND}.svc:8080"), "secret": "stripe", "rate": 1000},
            "caConfigMap": "authorities",
            "databases": {
                "owner": "database-owner", "api": "database-api", "catalogue": "database-catalogue", "signer": "database-signer",
                "finance": "database-finance",
            },
            "finance": {"tokenSecret": "finance-token", "keySecret": "finance-key"},
            "signer": {"tokenSecret": "signer-token", "keySecret": "signer-keys"},
            "networkPolicy": {
                "database": [around("postgres", around::POSTGRES_PORT)],
                "outside": [around("stripe", 8080), around("identity", self.ports.identity)],
                "apiServerCidrs": self.network.api_servers,
                "dnsPorts": self.network.dns_ports,
            },
        }))
    }

    fn apply(&self, file: &str, objects: &Value, progress: &dyn Progress) -> Result<()> {
        let path = self.folder.join(file);
        write(&path, objects)?;
        let applied = self
            .target
            .kubectl(&["apply", "-f", &path.display().to_string()], progress);
        // Some are secret.
        let removed = std::fs::remove_file(&path);
        applied?;
        removed.map_err(|source| Error::File { path, source })
    }
}

/// Takes a market out of a cluster, if there is one, with all that it has sold, and waits until it is gone.
///
/// # Errors
/// If the cluster refuses.
pub fn remove(target: &Target, progress: &dyn Progress) -> Result<()> {
    let uninstall = [
        "uninstall",
        "vitrine-shop",
        "-n",
        NAMESPACE,
        "--wait",
        "--ignore-not-found",
    ];
    target.helm(uninstall.map(str::to_owned).into(), progress)?;
    let delete = [
        "delete",
        "namespace",
        NAMESPACE,
        AROUND,
        "--wait",
        "--ignore-not-found",
    ];
    target.kubectl(&delete, progress).map(drop)
}

fn write(path: &Path, value: &Value) -> Result<()> {
    secrets::write(path, &value.to_string())
}
