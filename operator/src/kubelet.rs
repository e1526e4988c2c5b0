//! Asks a node's kubelet which pods it still runs. Reads `GET /stats/summary` with the right `nodes/stats` (never
//! `nodes/proxy`, which is a way into every container).

use k8s_openapi::api::core::v1::Node;
use kube::Config;
use serde::Deserialize;

use crate::api;

/// The kubelet's default port where the Node does not say.
const DEFAULT_PORT: i32 = 10250;

#[derive(Deserialize)]
struct Summary {
    pods: Vec<PodStats>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
}

#[derive(Deserialize)]
struct PodRef {
    uid: String,
}

/// The uids of the pods of which something runs on a node.
///
/// # Errors
/// In words, if the kubelet cannot be asked.
pub async fn pods(node: &Node) -> Result<Vec<String>, String> {
    let status = node.status.as_ref().ok_or("the node has no status")?;
    let address = status
        .addresses
        .iter()
        .flatten()
        .find(|a| a.type_ == "InternalIP")
        .map(|a| a.address.clone())
        .ok_or("the node has no internal address")?;
    let port = status
        .daemon_endpoints
        .as_ref()
        .and_then(|d| d.kubelet_endpoint.as_ref())
        .map_or(DEFAULT_PORT, |endpoint| endpoint.port);
    let mut config = Config::infer().await.map_err(|e| e.to_string())?;
    config.cluster_url = format!("https://{address}:{port}")
        .parse()
        .map_err(|e| format!("{address}: {e}"))?;
    config.tls_server_name = None;
    let client = api::connect(config).map_err(|e| e.to_string())?;
    let request = axum::http::Request::get("/stats/summary?only_cpu_and_memory=true")
        .body(vec![])
        .map_err(|e| e.to_string())?;
    let summary: Summary = client.request(request).await.map_err(|e| e.to_string())?;
    Ok(summary.pods.into_iter().map(|p| p.pod_ref.uid).collect())
}
