//! The order in which a cluster comes up. Starts parts and waits for them; every wait has a deadline and ends early
//! when the part it waits for ends.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::plan::{self, Plan};
use super::{Cluster, files, namespaces, node, outside, say, scale};
use crate::config::{API_PORT, GVISOR, Level, NODE_ADDRESS, NODE_NAME};
use crate::control::{Event, Timings};
use crate::error::{Error, Result};
use crate::paths::StateDir;
use crate::progress::Step;
use crate::tools::Tools;

/// A slow or busy machine may need several times the usual three seconds.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(25);

/// Reports a numbered step.
struct Steps {
    index: usize,
    of: usize,
}

impl Steps {
    async fn run<T>(&mut self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.index += 1;
        let step = Step::new(what, self.index, self.of);
        let begun = Instant::now();
        say(&Event::Started {
            what: step.what.clone(),
            index: step.index,
            of: step.of,
        });
        let result = work.await?;
        let seconds = begun.elapsed().as_secs_f64();
        say(&Event::Finished {
            what: step.what,
            index: step.index,
            of: step.of,
            seconds,
        });
        Ok(result)
    }
}

fn step_count(level: Level) -> usize {
    match level {
        Level::ControlPlane => 4,
        Level::Scale => 5,
        Level::Full => 6,
    }
}

/// Brings all parts of the level up.
pub(crate) async fn all(cluster: &Cluster) -> Result<()> {
    let level = cluster.orders.level;
    let mut steps = Steps {
        index: 0,
        of: step_count(level),
    };
    let plan = Plan {
        unthrottled: cluster.orders.unthrottled,
        tools: cluster.tools.clone(),
        env: environment(&cluster.tools),
    };
    let parts = &cluster.parts;

    let node = steps.run("network", network(cluster)).await?;
    steps
        .run("etcd", async {
            parts.start(plan.etcd()?)?;
            if level == Level::Full {
                node::start_runtime(cluster, &plan, &node).await?;
            }
            let at: SocketAddr = plan::ETCD_ADDRESS
                .parse()
                .map_err(|_| Error::Other("etcd's address".to_owned()))?;
            until(cluster, plan::ETCD, async || {
                node.connect(at)
                    .await
                    .map(drop)
                    .map_err(|error| error.to_string())
            })
            .await
        })
        .await?;
    let client = steps
        .run("API server", async {
            parts.start(plan.api_server()?)?;
            let client = client().await?;
            let at = SocketAddr::from((NODE_ADDRESS, API_PORT));
            until(cluster, plan::API_SERVER, async || {
                node.connect(at).await.map_err(|error| error.to_string())?;
                readyz(&client).await
            })
            .await?;
            Ok(client)
        })
        .await?;
    note_time(cluster, |timings, seconds| {
        timings.api_ready_seconds = Some(seconds)
    });

    // What only needs the API server starts now; the steps below wait for it in turn.
    parts.start(plan.controller_manager()?)?;
    if level != Level::ControlPlane {
        parts.start(plan.scheduler()?)?;
    }
    match level {
        Level::ControlPlane => {}
        Level::Scale => scale::start(cluster, &plan, &client).await?,
        Level::Full => node::start_node(cluster, &plan).await?,
    }
    steps
        .run("controller-manager", controllers_work(cluster, &client))
        .await?;
    match level {
        Level::ControlPlane => {}
        Level::Scale => {
            steps
                .run("fake nodes", scale::nodes_ready(cluster, &client))
                .await?
        }
        Level::Full => {
            steps.run("node", node_ready(cluster, &client)).await?;
            note_time(cluster, |timings, seconds| {
                timings.node_ready_seconds = Some(seconds)
            });
            steps
                .run(
                    "policies and services",
                    node::finish(cluster, &plan, &client, &node),
                )
                .await?;
        }
    }
    note_time(cluster, |timings, seconds| timings.ready_seconds = Some(seconds));
    Ok(())
}

pub(super) fn environment(tools: &Tools) -> Vec<(String, String)> {
    let temporary = StateDir::inside().join("tmp");
    // Failing to make it shows in the first program that needs it.
    let _ = std::fs::create_dir_all(&temporary);
    let pairs = [
        ("PATH", plan::search_path(tools)),
        ("TMPDIR", temporary.to_string_lossy().into_owned()),
        ("HOME", "/root".to_owned()),
        (
            "KUBECONFIG",
            StateDir::inside()
                .join("kubeconfigs/admin")
                .to_string_lossy()
                .into_owned(),
        ),
        ("CONTAINERD_ADDRESS", files::CONTAINERD_SOCKET.to_owned()),
        ("CONTAINERD_NAMESPACE", "k8s.io".to_owned()),
        // Of what the API server does under tests an eighth is marking garbage (its own profile, at the default of 100).
        ("GOGC", "300".to_owned()),
        // After how long client-go asks whether a silent connection still lives, and for how long it waits for the answer. The node's
        // chains can swallow the end of a connection as the API server restarts; with the defaults (30 and 15) whoever enforces
        // NetworkPolicies then hears of no new pod for longer than a preview's network probe is patient.
        ("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "5".to_owned()),
        ("HTTP2_PING_TIMEOUT_SECONDS", "3".to_owned()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Namespaces, the outside world, the relay to the API server, and all files that need its port.
async fn network(cluster: &Cluster) -> Result<namespaces::Namespace> {
    namespaces::set_up().await?;
    let node = namespaces::Namespace::open(namespaces::NODE)?;
    let _ = cluster.node.set(node.clone());
    if cluster.orders.level == Level::Full {
        namespaces::filter_bridges(&node).await?;
        let record = outside::serve(&namespaces::Namespace::open(namespaces::OUTSIDE)?).await?;
        let _ = cluster.outside.set(record);
    }
    let api = SocketAddr::from((NODE_ADDRESS, API_PORT));
    let api_port = cluster.relays.open(cluster.orders.api_port, api, &node).await?;
    let _ = cluster.api_port.set(api_port);
    let cni_plugins = cluster.tools.folder("cni").ok();
    files::write_all(&files::Inputs {
        cluster: &cluster.orders.name,
        level: cluster.orders.level,
        api_port,
        cni_plugins,
        gvisor: cluster.tools.folder(GVISOR).is_ok(),
        unthrottled: cluster.orders.unthrottled,
    })?;
    Ok(node)
}

/// A client by the relay, as everybody on this machine.
async fn client() -> Result<Client> {
    let path = StateDir::inside().kubeconfig();
    let kubeconfig = Kubeconfig::read_from(&path);
    let unreadable =
        |error: kube::config::KubeconfigError| Error::Other(format!("`{}`: {error}", path.display()));
    let kubeconfig = kubeconfig.map_err(unreadable)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(unreadable)?;
    // We wait on conditions ourselves, and more often.
    config.default_retry = false;
    Client::try_from(config).map_err(Error::kube("make a client"))
}

async fn readyz(client: &Client) -> std::result::Result<(), String> {
    let request = http::Request::get("/readyz")
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client
        .request_text(request)
        .await
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Waits until something about a part holds; says what it was waiting for when it does not.
pub(super) async fn until<T>(
    cluster: &Cluster,
    part: &'static str,
    mut condition: impl AsyncFnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        cluster.parts.check(part)?;
        match condition().await {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() > deadline => {
                let what = format!("was not ready after {} s ({why})", DEADLINE.as_secs());
                return Err(cluster.parts.error(part, what));
            }
            Err(_) => tokio::time::sleep(PERIOD).await,
        }
    }
}

fn note_time(cluster: &Cluster, set: impl FnOnce(&mut Timings, f64)) {
    let seconds = cluster.begun.elapsed().as_secs_f64();
    set(
        &mut cluster.timings.lock().unwrap_or_else(PoisonError::into_inner),
        seconds,
    );
}

/// The controllers work when they made what no pod can be created without.
async fn controllers_work(cluster: &Cluster, client: &Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    until(cluster, plan::CONTROLLER_MANAGER, async || {
        match accounts.get_opt("default").await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("no ServiceAccount default/default yet".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

async fn node_ready(cluster: &Cluster, client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    until(cluster, plan::KUBELET, async || {
        let node = nodes
            .get_opt(NODE_NAME)
            .await
            .map_err(|error| error.to_string())?;
        let node = node.ok_or("it has not registered")?;
        if is_usable(&node) {
            Ok(())
        } else {
            Err(why_not_ready(node))
        }
    })
    .await
}

/// Ready, and without a taint that keeps pods away: the controller removes the last one a moment later.
pub(super) fn is_usable(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|one| one.type_ == "Ready" && one.status == "True");
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    ready && taints.is_none_or(Vec::is_empty)
}

fn why_not_ready(node: Node) -> String {
    let conditions = node
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready");
    ready.map_or("it has no condition Ready".to_owned(), |one| {
        format!("Ready={}: {:?}", one.status, one.message)
    })
}
