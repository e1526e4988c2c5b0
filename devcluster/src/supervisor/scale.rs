//! What only a cluster of level "scale" has: KWOK and its fake nodes. Starts KWOK and creates Nodes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use super::files::KWOK_USER;
use super::plan::{self, FAKE_NODE_LABEL, Plan};
use super::start::{is_usable, until};
use super::{Cluster, namespaces, process};
use crate::config::POD_CIDR;
use crate::error::{Error, Result};

/// Nodes whose creation the API server may shed when many are asked for at once are tried again after this.
const RETRY: Duration = Duration::from_millis(200);

/// Starts KWOK, and creates the nodes that it plays.
pub(super) async fn start(cluster: &Cluster, plan: &Plan, client: &Client) -> Result<()> {
    // Every pod address is the node's own: a server on the node's wildcard address answers for all fake pods.
    let route = format!("route add local {POD_CIDR} dev lo\n");
    process::run(&["ip", "-netns", namespaces::NODE, "-batch", "-"], Some(&route)).await?;
    may_do_everything(client).await?;
    cluster.parts.start(plan.kwok()?)?;
    let nodes: Api<Node> = Api::all(client.clone());
    for index in 1..=cluster.orders.fake_nodes {
        create(&nodes, &node(index)?).await?;
    }
    Ok(())
}

/// KWOK plays kubelets, and is of their group, so that whoever lets those write lets it. Beyond that it needs rights that no kubelet
/// has, over all nodes and pods; a certificate has room for one group.
async fn may_do_everything(client: &Client) -> Result<()> {
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    let binding = json!({
        "metadata": {"name": KWOK_USER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KWOK_USER}],
    });
    let binding = serde_json::from_value(binding)
        .map_err(|error| Error::Other(format!("the rights of KWOK: {error}")))?;
    let created = bindings.create(&PostParams::default(), &binding).await;
    created.map(drop).map_err(Error::kube("give KWOK its rights"))
}

async fn create(nodes: &Api<Node>, node: &Node) -> Result<()> {
    for _ in 0..10 {
        match nodes.create(&PostParams::default(), node).await {
            Err(kube::Error::Api(status)) if status.code == 429 => tokio::time::sleep(RETRY).await,
            other => return other.map(drop).map_err(Error::kube("create a fake node")),
        }
    }
    Err(Error::Other(
        "the API server sheds the creation of fake nodes".to_owned(),
    ))
}

fn node(index: u32) -> Result<Node> {
    let name = format!("fake-{index}");
    let object = json!({
        "metadata": {
            "name": name,
            "labels": {
                FAKE_NODE_LABEL: "true",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
    });
    serde_json::from_value(object).map_err(|error| Error::Other(format!("fake node: {error}")))
}

/// Waits until pods can be placed on every fake node.
pub(super) async fn nodes_ready(cluster: &Cluster, client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    until(cluster, plan::KWOK, async || {
        let list = nodes
            .list(&ListParams::default())
            .await
            .map_err(|error| error.to_string())?;
        let usable = list.items.iter().filter(|node| is_usable(node)).count();
        let wanted = usize::try_from(cluster.orders.fake_nodes).unwrap_or(usize::MAX);
        if usable == wanted {
            Ok(())
        } else {
            Err(format!("{usable} of {wanted} fake nodes are usable"))
        }
    })
    .await
}
