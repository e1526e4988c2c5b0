//! Asks a node's kubelet which pods it still runs, and what they use. Reads `GET /stats/summary` with the right `nodes/stats`
//! (never `nodes/proxy`, which is a way into every container).

use jiff::Timestamp;
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

/// What a kubelet says of a pod (its stats API, `k8s.io/kubelet/pkg/apis/stats/v1alpha1`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStats {
    /// Which.
    pub pod_ref: PodRef,
    /// Processor time of all its containers; absent for a pod that has just begun.
    #[serde(default)]
    pub cpu: Option<CpuStats>,
    /// Memory of all its containers.
    #[serde(default)]
    pub memory: Option<MemoryStats>,
    /// Each container that runs.
    #[serde(default)]
    pub containers: Vec<ContainerStats>,
    /// Its processes; absent from the short form.
    #[serde(default, rename = "process_stats")]
    pub processes: Option<ProcessStats>,
}

/// What it says of a container.
#[derive(Clone, Debug, Deserialize)]
pub struct ContainerStats {
    /// Its name in the pod.
    pub name: String,
    /// Processor time.
    #[serde(default)]
    pub cpu: Option<CpuStats>,
}

/// Names a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodRef {
    /// Its uid.
    pub uid: String,
}

/// Processor time.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CpuStats {
    /// When it was counted.
    pub time: Timestamp,
    /// Since the pod began, in nanoseconds of one core.
    #[serde(default)]
    pub usage_core_nano_seconds: Option<u64>,
}

/// Memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStats {
    /// What cannot be given back under pressure, in bytes.
    #[serde(default)]
    pub working_set_bytes: Option<u64>,
}

/// Processes.
#[derive(Clone, Debug, Deserialize)]
pub struct ProcessStats {
    /// How many there are.
    #[serde(default)]
    pub process_count: Option<u64>,
}

/// How much a kubelet is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Processor time and memory: cheap.
    Short,
    /// Everything that it counts, volumes and network among it.
    Whole,
}

/// The pods of which something runs on a node.
///
/// # Errors
/// In words, if the kubelet cannot be asked.
pub async fn pods(node: &Node, form: Form) -> Result<Vec<PodStats>, String> {
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
    let page = match form {
        Form::Short => "/stats/summary?only_cpu_and_memory=true",
        Form::Whole => "/stats/summary",
    };
    let request = axum::http::Request::get(page)
        .body(vec![])
        .map_err(|e| e.to_string())?;
    let summary: Summary = client.request(request).await.map_err(|e| e.to_string())?;
    Ok(summary.pods)
}
