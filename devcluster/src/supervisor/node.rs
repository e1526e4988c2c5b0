//! What only a full cluster has: the container runtime, kubelet, the service proxy, the policy controller and the
//! cluster's DNS. Starts parts, imports images, and creates the objects of the DNS service.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::namespaces::Namespace;
use super::plan::{self, Plan};
use super::start::until;
use super::{Cluster, dns, files, process};
use crate::config::{DNS_NODE_PORT, DNS_SERVICE_ADDRESS, GVISOR, NODE_ADDRESS};
use crate::control::Output;
use crate::error::{Error, Result};
use crate::paths::StateDir;
use crate::{cgroup, image};

/// How long containerd's Kubernetes side may take to hear of an image.
const CRI_DEADLINE: Duration = Duration::from_secs(10);
/// kube-proxy's health port, by default.
const PROXY_HEALTH: &str = "127.0.0.1:10249";

/// Starts containerd and gives it the pause image; neither needs the API server.
pub(super) async fn start_runtime(cluster: &Cluster, plan: &Plan, _: &Namespace) -> Result<()> {
    cgroup::create(&cluster.orders.name)?;
    cluster.parts.start(plan.containerd()?)
}

/// Starts kubelet as soon as containerd answers and knows the pause image.
pub(super) async fn start_node(cluster: &Cluster, plan: &Plan) -> Result<()> {
    until(cluster, plan::CONTAINERD, async || {
        let output = ctr(cluster, &["version"])
            .await
            .map_err(|error| error.to_string())?;
        if output.code == 0 {
            Ok(())
        } else {
            Err(output.stderr)
        }
    })
    .await?;
    let program = cluster.tools.binary("pause", "pause")?;
    let pause = image::Image::build(
        &image::Contents {
            name: files::PAUSE_IMAGE.to_owned(),
            files: vec![image::FileEntry::program("/pause", program)],
            config: image::ImageConfig {
                entrypoint: vec!["/pause".to_owned()],
                ..image::ImageConfig::default()
            },
        },
        &StateDir::inside().join("images"),
    )?;
    import_image(cluster, &pause.tar, &pause.name, Some(&pause.digest)).await?;
    cluster.parts.start(plan.kubelet()?)
}

/// Starts what needs a registered node, and waits until services and policies work.
pub(super) async fn finish(cluster: &Cluster, plan: &Plan, client: &Client, node: &Namespace) -> Result<()> {
    cluster.parts.start(plan.proxy()?)?;
    cluster.parts.start(plan.netpol()?)?;
    dns::serve(node, client.clone()).await?;
    create_dns_service(client).await?;
    if cluster.tools.folder(GVISOR).is_ok() {
        create_runtime_class(client).await?;
    }
    let at: SocketAddr = PROXY_HEALTH
        .parse()
        .map_err(|_| Error::Other("the proxy's address".to_owned()))?;
    until(cluster, plan::PROXY, async || {
        node.connect(at)
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .await?;
    until(cluster, plan::NETPOL, async || policies_enforced(plan).await).await
}

/// gVisor, for pods that ask for it; `runsc` is its name in containerd's configuration.
async fn create_runtime_class(client: &Client) -> Result<()> {
    let class = RuntimeClass {
        handler: "runsc".to_owned(),
        metadata: ObjectMeta {
            name: Some(GVISOR.to_owned()),
            ..ObjectMeta::default()
        },
        ..RuntimeClass::default()
    };
    let api: Api<RuntimeClass> = Api::all(client.clone());
    let made = api.create(&PostParams::default(), &class).await;
    made.map(drop)
        .map_err(Error::kube(format!("create the RuntimeClass {GVISOR}")))
}

/// The policy controller works when its chains are in the kernel.
async fn policies_enforced(plan: &Plan) -> std::result::Result<(), String> {
    let mut argv = super::namespaces::enter(super::namespaces::NODE);
    argv.extend(["iptables", "-w", "-S", "FORWARD"].map(str::to_owned));
    let output = process::output(&argv, None, &plan.env)
        .await
        .map_err(|error| error.to_string())?;
    if output.stdout.contains("KUBE-ROUTER-FORWARD") {
        Ok(())
    } else {
        Err(format!(
            "its chain is not in FORWARD: {}{}",
            output.stdout, output.stderr
        ))
    }
}

async fn ctr(cluster: &Cluster, arguments: &[&str]) -> Result<Output> {
    let program = cluster.tools.binary("containerd", "ctr")?;
    let mut argv = vec![program.to_string_lossy().into_owned()];
    argv.extend(["--address", files::CONTAINERD_SOCKET, "--namespace", "k8s.io"].map(str::to_owned));
    argv.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    process::output(&argv, None, &[]).await
}

/// Imports an image, unless the one with this digest is there, and waits until kubelet can find it by name and by digest.
pub(super) async fn import_image(
    cluster: &Cluster,
    tar: &Path,
    name: &str,
    digest: Option<&str>,
) -> Result<()> {
    let fail = |detail: String| Error::Image {
        image: name.to_owned(),
        detail,
    };
    if let Some(digest) = digest
        && is_known(cluster, name, name, digest).await?
        && is_known(cluster, name, &by_digest(name, digest), digest).await?
    {
        return Ok(());
    }
    ctr_done(
        cluster,
        name,
        &["images", "import", "--local", &tar.to_string_lossy()],
    )
    .await?;
    let listed = ctr_done(cluster, name, &["images", "list", &format!("name=={name}")]).await?;
    let digest = listed
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"));
    let digest = digest.ok_or_else(|| fail("containerd does not list it after its import".to_owned()))?;
    let by_digest = by_digest(name, digest);
    ctr_done(cluster, name, &["images", "tag", "--force", name, &by_digest]).await?;
    // containerd's Kubernetes side learns of images by events.
    let deadline = Instant::now() + CRI_DEADLINE;
    for reference in [name, &by_digest] {
        while !is_known(cluster, name, reference, digest).await? {
            if Instant::now() > deadline {
                return Err(fail(format!("containerd's CRI side does not know {reference}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

fn by_digest(name: &str, digest: &str) -> String {
    format!("{}@{digest}", image::repository(name))
}

/// Whether containerd's Kubernetes side has an image with this digest under a reference: its label marks what it has seen.
async fn is_known(cluster: &Cluster, name: &str, reference: &str, digest: &str) -> Result<bool> {
    let filter =
        format!("name=={reference},target.digest=={digest},labels.\"io.cri-containerd.image\"==managed");
    let listed = ctr_done(cluster, name, &["images", "list", "--quiet", &filter]).await?;
    Ok(!listed.stdout.trim().is_empty())
}

async fn ctr_done(cluster: &Cluster, image: &str, arguments: &[&str]) -> Result<Output> {
    let output = ctr(cluster, arguments).await?;
    if output.code == 0 {
        return Ok(output);
    }
    let detail = format!("`ctr {}`: {}", arguments.join(" "), output.stderr.trim());
    Err(Error::Image {
        image: image.to_owned(),
        detail,
    })
}

/// The DNS service at its usual name and address, with our stub on the node behind it.
async fn create_dns_service(client: &Client) -> Result<()> {
    let ports = |number: u16| {
        json!([
            { "name": "dns", "protocol": "UDP", "port": number },
            { "name": "dns-tcp", "protocol": "TCP", "port": number },
        ])
    };
    let service = json!({
        "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns" } },
        "spec": { "clusterIP": DNS_SERVICE_ADDRESS, "ports": ports(53) },
    });
    create::<Service>(client, &service).await?;
    let endpoints = json!({
        "metadata": { "name": "kube-dns-node", "labels": { "kubernetes.io/service-name": "kube-dns" } },
        "addressType": "IPv4",
        "ports": ports(DNS_NODE_PORT),
        "endpoints": [{ "addresses": [NODE_ADDRESS], "conditions": { "ready": true } }],
    });
    create::<EndpointSlice>(client, &endpoints).await
}

async fn create<K>(client: &Client, object: &serde_json::Value) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let action = format!("create the DNS {}", K::kind(&()));
    let object: K =
        serde_json::from_value(object.clone()).map_err(|error| Error::Other(format!("{action}: {error}")))?;
    let api: Api<K> = Api::namespaced(client.clone(), "kube-system");
    api.create(&PostParams::default(), &object)
        .await
        .map(drop)
        .map_err(Error::kube(action))
}
