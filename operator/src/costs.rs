//! What previews use, as their nodes count it: the last sample of each is kept for the receipt, and those of the last minutes for
//! who judges abuse. Reads kubelets.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use serde::{Deserialize, de::IgnoredAny};
use tokio::time::Instant;
use vitrine_crds::{Amount, preview_sandbox::Cost};
use vitrine_policies::names;

use crate::{
    kubelet::{self, Form, PodStats},
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
/// In which of how many rounds a node is asked for its processes too, which costs it more.
const WHOLE: u64 = 3;
/// Nodes asked at once.
const AT_ONCE: usize = 8;

/// The last samples, by pod uid. Its copies share one table.
#[derive(Clone, Debug, Default)]
pub struct Costs(Arc<Mutex<HashMap<String, Samples>>>);

/// What is kept of one pod.
#[derive(Clone, Debug)]
struct Samples {
    last: Used,
    processes: Option<u64>,
    /// Whether what follows is of the product alone.
    own: bool,
    /// Processor time so far, in nanoseconds, at each time that it was counted: the older first.
    processor: VecDeque<(Timestamp, u64)>,
}

/// Processor time over a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    nanoseconds: u64,
    over: SignedDuration,
}

impl Rate {
    /// In hundredths of what a limit, in cores, would give, and never more than that: the limit may have been a larger one for
    /// a part of the time. `None` if it gives nothing.
    pub fn percent_of(self, limit: Amount) -> Option<u64> {
        let milli = u128::from(limit.thousandths());
        let most = u128::try_from(self.over.as_nanos()).ok()?.checked_mul(milli)? / 1000;
        let percent = (u128::from(self.nanoseconds) * 100).checked_div(most)?;
        u64::try_from(percent.min(100)).ok()
    }
}

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
            .map(|samples| samples.last)
    }

    /// A pod's processor time over at least the last so long; `None` if it was not counted for so long yet.
    pub fn rate(&self, pod_uid: &str, period: Duration) -> Option<Rate> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let processor = &table.get(pod_uid)?.processor;
        let (now, used) = processor.back()?;
        let from = now.checked_sub(SignedDuration::try_from(period).ok()?).ok()?;
        let (then, before) = processor.iter().rev().find(|(at, _)| *at <= from)?;
        Some(Rate {
            nanoseconds: used.saturating_sub(*before),
            over: now.duration_since(*then),
        })
    }

    /// How many processes a pod had when they were counted last.
    pub fn processes(&self, pod_uid: &str) -> Option<u64> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(pod_uid)?.processes
    }

    /// Takes the samples of one node; of pods that are nobody's it keeps none, and none that are older than this but one.
    fn take(&self, pods: Vec<PodStats>, ours: &HashSet<String>, kept: Duration) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for pod in pods.into_iter().filter(|pod| ours.contains(&pod.pod_ref.uid)) {
            let Some((at, cpu)) = pod
                .cpu
                .and_then(|cpu| Some((cpu.time, cpu.usage_core_nano_seconds?)))
            else {
                continue;
            };
            // The product's own, which its limit is of; where containers have no count of their own, as under gVisor, the pod's.
            let own = pod
                .containers
                .iter()
                .find(|container| container.name == names::PRODUCT)
                .and_then(|product| product.cpu.as_ref())
                .and_then(|cpu| Some((cpu.time, cpu.usage_core_nano_seconds?)))
                .filter(|(_, used)| *used > 0);
            let memory = pod
                .memory
                .and_then(|memory| memory.working_set_bytes)
                .unwrap_or_default();
            let samples = table.entry(pod.pod_ref.uid).or_insert_with(|| Samples {
                last: Used {
                    cpu_nanoseconds: 0,
                    memory_peak_bytes: 0,
                    at,
                },
                processes: None,
                own: false,
                processor: VecDeque::new(),
            });
            let used = &mut samples.last;
            // Counters only grow; a container that ended takes its part out of the sum.
            used.cpu_nanoseconds = used.cpu_nanoseconds.max(cpu);
            used.memory_peak_bytes = used.memory_peak_bytes.max(memory);
            used.at = used.at.max(at);
            // Each count has its own time: the kubelet counts a pod and its containers one after the other.
            let latest = own.unwrap_or((used.at, used.cpu_nanoseconds));
            if own.is_some() != samples.own {
                samples.own = own.is_some();
                samples.processor.clear();
            }
            samples.processes = pod.processes.and_then(|p| p.process_count).or(samples.processes);
            samples.keep(latest, kept);
        }
    }

    fn forget_all_but(&self, ours: &HashSet<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| ours.contains(uid));
    }
}

impl Samples {
    fn keep(&mut self, latest: (Timestamp, u64), kept: Duration) {
        if self.processor.back().is_some_and(|(at, _)| *at >= latest.0) {
            return;
        }
        self.processor.push_back(latest);
        let kept = SignedDuration::try_from(kept).unwrap_or_default();
        let outdated = |at: Timestamp| latest.0.duration_since(at) >= kept;
        // One that is as old as that: a whole period is from it to the latest.
        while self.processor.get(1).is_some_and(|(at, _)| outdated(*at)) {
            self.processor.pop_front();
        }
    }
}

/// Asks for ever.
pub async fn run(context: &Context) {
    let mut away: HashMap<String, Instant> = HashMap::new();
    for round in 0_u64.. {
        let (nodes, pods) = living(context).await;
        context.costs.forget_all_but(&pods);
        away.retain(|_, until| *until > Instant::now());
        let known = context.watched.nodes.state();
        let asked: Vec<_> = known
            .iter()
            .filter(|node| nodes.contains(&node.name_any()) && !away.contains_key(&node.name_any()))
            .cloned()
            .collect();
        let silent: Vec<_> = stream::iter(asked)
            .map(|node| ask(context, node, &pods, round.is_multiple_of(WHOLE)))
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
async fn ask(context: &Context, node: Arc<Node>, pods: &HashSet<String>, whole: bool) -> Option<String> {
    let rules = context.watched.abuse();
    let counts_processes = rules.as_ref().is_some_and(|rules| rules.processes.is_some());
    let form = if whole && counts_processes {
        Form::Whole
    } else {
        Form::Short
    };
    let cpu = rules.and_then(|rules| rules.sustained_cpu);
    let kept = cpu.map_or(Duration::ZERO, |rule| rule.period.as_duration());
    let answer = tokio::time::timeout(PATIENCE, kubelet::pods(&node, form)).await;
    match answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
        Ok(stats) => {
            context.costs.take(stats, pods, kept);
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
async fn living(context: &Context) -> (HashSet<String>, HashSet<String>) {
    let (mut nodes, mut pods) = (HashSet::new(), HashSet::new());
    let previews = &context.watched.previews;
    let note = |preview: Placed| {
        if let Some((node, pod)) = preview.place() {
            nodes.insert(node);
            pods.insert(pod);
        }
    };
    previews.skim(note).await;
    (nodes, pods)
}

/// What of a preview says where its pod is.
#[derive(Deserialize)]
struct Placed {
    status: Option<PlacedStatus>,
}

#[derive(Deserialize)]
struct PlacedStatus {
    receipt: Option<IgnoredAny>,
    node: Option<String>,
    pod: Option<PlacedPod>,
}

#[derive(Deserialize)]
struct PlacedPod {
    uid: String,
}

impl Placed {
    fn place(self) -> Option<(String, String)> {
        let status = self.status.filter(|status| status.receipt.is_none())?;
        Some((status.node?, status.pod?.uid))
    }
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
            Duration::ZERO,
        );
        costs.take(
            vec![stats("p", "2026-11-22T10:00:10Z", 7_500_000_000, 300)],
            &ours,
            Duration::ZERO,
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
        costs.take(vec![bare], &HashSet::from(["p".to_owned()]), Duration::ZERO);
        assert_eq!(costs.of("p"), None);
    }

    #[test]
    fn processor_time_is_judged_over_the_whole_period_and_not_before_it_is_over() {
        let costs = Costs::default();
        let ours = HashSet::from(["p".to_owned()]);
        let period = Duration::from_secs(60);
        let start: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let mut used = 0;
        for second in (0_i64..=50).step_by(10) {
            // Half a core, of which it may use all.
            used = u64::try_from(second).unwrap() * 500_000_000;
            let at = (start + SignedDuration::from_secs(second)).to_string();
            costs.take(vec![stats("p", &at, used, 1)], &ours, period);
        }
        assert_eq!(costs.rate("p", period), None, "not so long yet");
        for second in (60_i64..=200).step_by(10) {
            used += 1_000_000_000;
            let at = (start + SignedDuration::from_secs(second)).to_string();
            costs.take(vec![stats("p", &at, used, 1)], &ours, period);
        }
        let rate = costs.rate("p", period).unwrap();
        assert_eq!(rate.over, SignedDuration::from_secs(60));
        // A tenth of a core since.
        assert_eq!(rate.percent_of(Amount::milli(100)), Some(100));
        assert_eq!(rate.percent_of(Amount::whole(1)), Some(10));
        assert_eq!(
            rate.percent_of(Amount::milli(10)),
            Some(100),
            "it had more before"
        );
        assert_eq!(rate.percent_of(Amount::milli(0)), None);
        // The sidecar's part is not the product's.
        let mut pod = stats("q", "2026-11-22T10:00:00Z", 0, 1);
        for (at, whole, product) in [
            (start, 0, 1),
            (
                start + SignedDuration::from_secs(60),
                60_000_000_000,
                6_000_000_001,
            ),
        ] {
            let cpu = |used: u64| serde_json::json!({"time": at.to_string(), "usageCoreNanoSeconds": used});
            pod.cpu = Some(serde_json::from_value(cpu(whole)).unwrap());
            pod.containers = serde_json::from_value(serde_json::json!([
                {"name": "watch", "cpu": cpu(54_000_000_000)}, {"name": names::PRODUCT, "cpu": cpu(product)}
            ]))
            .unwrap();
            costs.take(
                vec![pod.clone()],
                &HashSet::from(["p".to_owned(), "q".to_owned()]),
                period,
            );
        }
        assert_eq!(
            costs.rate("q", period).unwrap().percent_of(Amount::milli(100)),
            Some(100)
        );
        let kept = costs.0.lock().unwrap()["p"].processor.len();
        assert_eq!(kept, 7, "a minute and the sample before it");
    }

    #[test]
    fn processes_are_those_that_were_counted_last() {
        let costs = Costs::default();
        let ours = HashSet::from(["p".to_owned()]);
        let mut pod = stats("p", "2026-11-22T10:00:00Z", 1, 1);
        pod.processes = Some(serde_json::from_value(serde_json::json!({"process_count": 42})).unwrap());
        costs.take(vec![pod], &ours, Duration::ZERO);
        costs.take(
            vec![stats("p", "2026-11-22T10:00:10Z", 2, 1)],
            &ours,
            Duration::ZERO,
        );
        assert_eq!(costs.processes("p"), Some(42));
        assert_eq!(costs.processes("q"), None);
    }
}
