//! What previews use, as their nodes count it: the last sample of each is kept, for the receipt. Reads kubelets.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use tokio::time::Instant;
use vitrine_crds::{PreviewSandbox, preview_sandbox::Cost};

use crate::{
    kubelet::{self, PodStats},
    preview::Context,
};

/// How often nodes are asked. A kubelet counts a pod anew every 10 to 30 seconds (cAdvisor's housekeeping with its jitter): the
/// receipt says when it did.
const PERIOD: Duration = Duration::from_secs(5);
/// A sample that is older than this at the end misses a good part of the preview.
const FRESH: SignedDuration = SignedDuration::from_secs(15);
/// A kubelet that takes longer is busy or away.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a node that did not answer is left alone.
const SET_ASIDE: Duration = Duration::from_secs(60);
/// Nodes asked at once.
const AT_ONCE: usize = 8;

/// The last samples, by pod uid. Its copies share one table.
#[derive(Clone, Debug, Default)]
pub struct Costs(Arc<Mutex<HashMap<String, Used>>>);

/// What a pod had used when its node counted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    cpu_nanoseconds: u64,
    memory_peak_bytes: u64,
    at: Timestamp,
}

impl Used {
    /// As it stands in the receipt of a preview that ended at a time.
    pub fn cost(&self, ended: Timestamp) -> Cost {
        Cost {
            cpu_milliseconds: i64::try_from(self.cpu_nanoseconds / 1_000_000).unwrap_or(i64::MAX),
            memory_peak_bytes: i64::try_from(self.memory_peak_bytes).unwrap_or(i64::MAX),
            sampled_at: Time(self.at),
            partial: ended.duration_since(self.at) > FRESH,
        }
    }
}

impl Costs {
    /// What a pod has used; `None` if no node has told.
    pub fn of(&self, pod_uid: &str) -> Option<Used> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(pod_uid)
            .copied()
    }

    /// Takes the samples of one node; of pods that are nobody's it keeps none.
    fn take(&self, pods: Vec<PodStats>, ours: &HashSet<String>) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for pod in pods.into_iter().filter(|pod| ours.contains(&pod.pod_ref.uid)) {
            let Some((at, cpu)) = pod
                .cpu
                .and_then(|cpu| Some((cpu.time, cpu.usage_core_nano_seconds?)))
            else {
                continue;
            };
            let memory = pod
                .memory
                .and_then(|memory| memory.working_set_bytes)
                .unwrap_or_default();
            let used = table.entry(pod.pod_ref.uid).or_insert(Used {
                cpu_nanoseconds: 0,
                memory_peak_bytes: 0,
                at,
            });
            // Counters only grow; a container that ended takes its part out of the sum.
            used.cpu_nanoseconds = used.cpu_nanoseconds.max(cpu);
            used.memory_peak_bytes = used.memory_peak_bytes.max(memory);
            used.at = used.at.max(at);
        }
    }

    fn forget_all_but(&self, ours: &HashSet<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| ours.contains(uid));
    }
}

/// Asks for ever.
pub async fn run(context: &Context) {
    let mut away: HashMap<String, Instant> = HashMap::new();
    loop {
        let (nodes, pods) = living(context);
        context.costs.forget_all_but(&pods);
        away.retain(|_, until| *until > Instant::now());
        let known = context.watched.nodes.state();
        let asked: Vec<_> = known
            .iter()
            .filter(|node| nodes.contains(&node.name_any()) && !away.contains_key(&node.name_any()))
            .cloned()
            .collect();
        let silent: Vec<_> = stream::iter(asked)
            .map(|node| ask(context, node, &pods))
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        for node in silent {
            away.insert(node, Instant::now() + SET_ASIDE);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Asks one node; its name if it does not answer.
async fn ask(context: &Context, node: Arc<Node>, pods: &HashSet<String>) -> Option<String> {
    let answer = tokio::time::timeout(PATIENCE, kubelet::pods(&node)).await;
    match answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
        Ok(stats) => {
            context.costs.take(stats, pods);
            None
        }
        Err(error) => {
            tracing::info!(
                node = node.name_any(),
                error,
                "the node does not say what previews use"
            );
            Some(node.name_any())
        }
    }
}

/// The nodes and pods of previews that have a pod and whose end is not recorded.
fn living(context: &Context) -> (HashSet<String>, HashSet<String>) {
    let (mut nodes, mut pods) = (HashSet::new(), HashSet::new());
    for guarded in context.watched.previews.state() {
        let Ok(preview) = &guarded.0 else { continue };
        if let Some((node, pod)) = place(preview) {
            nodes.insert(node);
            pods.insert(pod);
        }
    }
    (nodes, pods)
}

fn place(preview: &PreviewSandbox) -> Option<(String, String)> {
    let status = preview
        .status
        .as_ref()
        .filter(|status| status.receipt.is_none())?;
    Some((status.node.clone()?, status.pod.as_ref()?.uid.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(uid: &str, at: &str, cpu: u64, memory: u64) -> PodStats {
        serde_json::from_value(serde_json::json!({
            "podRef": {"name": "preview", "namespace": "cell", "uid": uid},
            "cpu": {"time": at, "usageNanoCores": 1, "usageCoreNanoSeconds": cpu},
            "memory": {"time": at, "workingSetBytes": memory},
        }))
        .unwrap()
    }

    #[test]
    fn the_last_sample_is_kept_with_the_largest_memory() {
        let costs = Costs::default();
        let ours = HashSet::from(["p".to_owned()]);
        costs.take(
            vec![
                stats("p", "2026-11-22T10:00:00Z", 5_000_000_000, 900),
                stats("q", "2026-11-22T10:00:00Z", 1, 1),
            ],
            &ours,
        );
        costs.take(
            vec![stats("p", "2026-11-22T10:00:10Z", 7_500_000_000, 300)],
            &ours,
        );
        let cost = costs
            .of("p")
            .unwrap()
            .cost("2026-11-22T10:00:25Z".parse().unwrap());
        assert_eq!(
            (cost.cpu_milliseconds, cost.memory_peak_bytes, cost.partial),
            (7500, 900, false)
        );
        let late = costs
            .of("p")
            .unwrap()
            .cost("2026-11-22T10:00:26Z".parse().unwrap());
        assert!(late.partial);
        assert_eq!(costs.of("q"), None);
        costs.forget_all_but(&HashSet::new());
        assert_eq!(costs.of("p"), None);
    }

    #[test]
    fn a_pod_without_counters_has_no_sample() {
        let costs = Costs::default();
        let bare: PodStats = serde_json::from_value(serde_json::json!({"podRef": {"uid": "p"}})).unwrap();
        costs.take(vec![bare], &HashSet::from(["p".to_owned()]));
        assert_eq!(costs.of("p"), None);
    }
}
