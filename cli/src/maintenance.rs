//! Switches and nodes. Writes the PreviewPolicy's `maintenance`, and ends previews.

use clap::Args;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use vitrine_crds::{POLICY_NAME, PreviewPolicy, PreviewSandbox, TimeSpan};

use crate::{
    error::{Error, Result},
    previews,
};

/// A switch of the PreviewPolicy.
#[derive(Args, Clone, Debug)]
pub struct Switch {}

/// A node whose previews are to end.
#[derive(Args, Clone, Debug)]
pub struct DrainNode {
    /// Its name.
    node: String,
    /// How long to wait for the proof of all ends.
    #[arg(long, default_value = "120s")]
    timeout: TimeSpan,
}

/// Lets nobody new in.
///
/// # Errors
/// If the API server refuses.
pub async fn pause(client: &Client, _: &Switch) -> Result<String> {
    admission(client, "Suspended").await?;
    Ok(
        "no new previews are let in; those that live are not touched. `resume` lets them in again\n"
            .to_owned(),
    )
}

/// Lets them in again.
///
/// # Errors
/// If the API server refuses.
pub async fn resume(client: &Client, _: &Switch) -> Result<String> {
    admission(client, "Open").await?;
    Ok("new previews are let in\n".to_owned())
}

async fn admission(client: &Client, admission: &str) -> Result<()> {
    let api: Api<PreviewPolicy> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {"maintenance": {"admission": admission}}}));
    let patched = api.patch(POLICY_NAME, &PatchParams::default(), &patch).await;
    patched
        .map(drop)
        .map_err(Error::kube("change", "PreviewPolicy", POLICY_NAME))
}

/// Makes a node take no new pods, and ends the previews on it.
///
/// # Errors
/// If there is no such node, or an end is not proven in time.
pub async fn drain_node(client: &Client, drain: &DrainNode) -> Result<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .cordon(&drain.node)
        .await
        .map_err(Error::kube("cordon", "Node", &drain.node))?;
    let all: Api<PreviewSandbox> = Api::all(client.clone());
    let previews =
        all.list(&ListParams::default())
            .await
            .map_err(Error::kube("list", "PreviewSandbox", "all"))?;
    let there = |preview: &PreviewSandbox| {
        let status = preview.status.as_ref();
        status.is_some_and(|status| !status.phase.is_terminal() && status.node.as_ref() == Some(&drain.node))
    };
    let ending = previews.items.iter().filter(|preview| there(preview));
    let ended = try_join_all(ending.map(|preview| async {
        let api: Api<PreviewSandbox> =
            Api::namespaced(client.clone(), &preview.namespace().unwrap_or_default());
        previews::delete(&api, preview).await?;
        previews::gone(&api, preview, drain.timeout).await
    }))
    .await?;
    Ok(format!(
        "node {} takes no new pods, and {} previews on it have ended; `kubectl uncordon {}` takes it into service again\n",
        drain.node,
        ended.len(),
        drain.node
    ))
}
