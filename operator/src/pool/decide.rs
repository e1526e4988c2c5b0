//! What is to be done next for one cell of a pool. Pure: from what was seen and the time to one [`Plan`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use vitrine_crds::{PreviewPolicySpec, StatusReason};
use vitrine_policies::{Envelope, cell::record::Record, names, probe::Verdict};

use crate::preview::observe::{self, End, Product, Proof};

/// A cell is looked at this often even if no watch says so.
pub const SAFETY: Duration = Duration::from_secs(60);
/// How often a pod is looked at that was asked to end.
const ENDING: Duration = Duration::from_secs(5);

/// At least so long a ready cell that is too old waits before it is looked at again.
const TURN: Duration = Duration::from_secs(1);

/// Why a pod that waited for previews is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It waited as long as it may.
    Old,
    /// The kubelet would end it before a preview that gets it now may have to end.
    Outlived,
    /// What it has proven of itself holds no longer.
    Distrusted(&'static str),
    /// Its listing, the policy or Vitrine's own image is another by now.
    Outdated,
    /// It is one too many, or its pool is gone.
    Unwanted,
    /// It did not come to be ready, or is not any more.
    Failed(StatusReason, String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing before the time is over.
    Idle(Duration),
    /// Take the slots that it holds for its previews.
    Hold,
    /// Make what confines it and the pod, when it is its turn.
    Fill,
    /// Nothing is made in it for now.
    Rest,
    /// Nobody may take it as it is: from now on it is for another pod.
    Renew(Why),
    /// Ask the pod to end, which is of an earlier epoch.
    EndPod,
    /// Let go of the pod: it was seen to end.
    ReleasePod,
    /// Ask whether the targets that its pod found shut are up.
    Prove(Box<Verdict>),
    /// A preview can be ready in it at once.
    Ready,
    /// Delete it.
    Remove,
    /// It goes: give back its slots.
    GiveBack,
    /// Give back slots beside its own: another operator took them at the same time.
    Shed,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct World {
    /// What is written on it.
    pub record: Record,
    /// Its pod.
    pub pod: Option<Pod>,
    /// What its pool's previews get, unless pool, listing or policy is missing, or refuses it.
    pub envelope: Option<Envelope>,
    /// What pods of its pool are made from now, and what may use a cell like that.
    pub template: Option<(String, String)>,
    /// The platform's policy.
    pub policy: Option<PreviewPolicySpec>,
    /// How long a pod may wait.
    pub max_age: Duration,
    /// Whether it is one too many.
    pub surplus: bool,
    /// Whether its pool has fewer than it wants.
    pub needed: bool,
    /// Whether nothing is made anew.
    pub paused: bool,
    /// Whether it was seen, this very pod, that its targets are up.
    pub proven: bool,
    /// Why its node is not to be trusted now.
    pub distrusted: Option<&'static str>,
    /// Whether the node of its pod is gone.
    pub node_gone: bool,
    /// Whether it holds any slot, as far as the watch knows.
    pub holds_any: bool,
    /// Whether it holds others beside those that are written on it.
    pub holds_more: bool,
}

/// Decides. Of a cell that no preview has.
pub fn decide(world: &World, now: Timestamp) -> Plan {
    let record = &world.record;
    if world.holds_more && !record.going {
        return Plan::Shed;
    }
    let Some(pod) = &world.pod else {
        return empty(world, now);
    };
    let current = pod.annotations().get(names::EPOCH_ANNOTATION) == Some(&record.epoch);
    if !current || record.going {
        return match observe::end(pod) {
            End::NotAsked => Plan::EndPod,
            End::Pending if !world.node_gone => Plan::Idle(ENDING),
            End::Pending | End::Verified | End::NeverStarted => {
                if pod.finalizers().iter().any(|f| f == names::POD_FINALIZER) {
                    Plan::ReleasePod
                } else {
                    Plan::Idle(ENDING)
                }
            }
        };
    }
    warming(world, pod, now)
}

fn empty(world: &World, now: Timestamp) -> Plan {
    let record = &world.record;
    if record.going {
        return if record.holds.is_some() || world.holds_any {
            Plan::GiveBack
        } else {
            Plan::Idle(SAFETY)
        };
    }
    if is_unwanted(world, now) {
        return Plan::Remove;
    }
    if !world.needed {
        // A preview that ends leaves one more than its pool wants, and the next one that begins leaves one too few: to make and to delete
        // a namespace each time is most of what a preview costs.
        let rules = world.policy.as_ref().map(|policy| &policy.cells);
        let kept = rules.is_some_and(|rules| record.is_kept(rules, now));
        return if kept { Plan::Rest } else { Plan::Remove };
    }
    if world.paused {
        return Plan::Rest;
    }
    if record.holds.is_none() {
        return Plan::Hold;
    }
    Plan::Fill
}

fn is_unwanted(world: &World, now: Timestamp) -> bool {
    let rules = world.policy.as_ref().map(|policy| &policy.cells);
    let usable = rules.is_some_and(|rules| world.record.may_be_used(rules, now));
    let fits = world
        .template
        .as_ref()
        .is_some_and(|(_, lot)| world.record.lot.as_ref() == Some(lot));
    world.surplus || !usable || !fits
}

fn warming(world: &World, pod: &Pod, now: Timestamp) -> Plan {
    if is_unwanted(world, now) {
        return Plan::Renew(Why::Unwanted);
    }
    let failed = |reason, message: &str| Plan::Renew(Why::Failed(reason, message.to_owned()));
    if pod.metadata.deletion_timestamp.is_some() {
        return failed(StatusReason::PodLost, "somebody deleted the pod");
    }
    let template = world.template.as_ref().map(|(template, _)| template);
    if pod.annotations().get(names::TEMPLATE_ANNOTATION) != template {
        return Plan::Renew(Why::Outdated);
    }
    let cell = pod.namespace().unwrap_or_default();
    let view = observe::view(pod, &names::nonce(&cell, &world.record.epoch));
    if let Some((reason, broken)) = &view.watch_broken {
        return failed(*reason, broken);
    }
    if let Proof::Failed(reason, message) = &view.proof {
        return failed(*reason, message);
    }
    if let Product::Ended { why } = &view.product {
        return failed(
            StatusReason::ProductCrashed,
            &format!("the product ended by itself, {why}"),
        );
    }
    if let Some(message) = &view.given_up {
        return failed(StatusReason::PodRejected, message);
    }
    if let Some(trouble) = view.trouble.as_ref().filter(|trouble| trouble.hopeless) {
        return failed(trouble.reason, &trouble.message);
    }
    let made = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |made| made.0);
    let age = Duration::try_from(now.duration_since(made)).unwrap_or_default();
    let isolated = match &view.proof {
        Proof::Isolated(verdict)
            if view.watching && view.product == (Product::Running { ready: true }) && view.ip.is_some() =>
        {
            verdict
        }
        _ => {
            let deadline = world
                .envelope
                .as_ref()
                .map(|envelope| envelope.provisioning_deadline);
            let deadline = deadline.map_or(Duration::ZERO, |deadline| deadline.as_duration());
            return match deadline.checked_sub(age) {
                Some(left) if !left.is_zero() => Plan::Idle(left),
                _ => match &view.trouble {
                    Some(trouble) => failed(trouble.reason, &trouble.message),
                    None => failed(
                        StatusReason::ProvisioningDeadline,
                        "the product did not answer in time",
                    ),
                },
            };
        }
    };
    // A preview may come to live as long as the policy lets it, and its pod must.
    if outlived(world, pod, age) {
        return Plan::Renew(Why::Outlived);
    }
    if let Some(why) = world.distrusted {
        return Plan::Renew(Why::Distrusted(why));
    }
    if !world.proven {
        return Plan::Prove(isolated.clone());
    }
    if age >= world.max_age {
        return Plan::Renew(Why::Old);
    }
    Plan::Ready
}

/// Whether the kubelet would end a pod of this age before a preview that gets it now may have to end.
fn outlived(world: &World, pod: &Pod, age: Duration) -> bool {
    let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let lives = deadline
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let (Some(lives), Some(envelope)) = (lives, &world.envelope) else {
        return false;
    };
    // What a pool's pod may live in all has its waiting in it (`envelope::of_pool`).
    let longest = envelope.ttl_cap.as_duration().saturating_sub(world.max_age);
    lives.saturating_sub(age) < longest
}

/// When a ready cell is to be looked at again.
pub fn next_look(pod: &Pod, max_age: Duration, now: Timestamp) -> Duration {
    let made = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |made| made.0);
    let old = made.saturating_add(SignedDuration::try_from(max_age).unwrap_or_default());
    let left = old
        .ok()
        .and_then(|old| Duration::try_from(old.duration_since(now)).ok());
    // One that is too old already waits for its turn to be renewed.
    let turn = (max_age / 20).clamp(TURN, SAFETY);
    left.filter(|left| !left.is_zero()).unwrap_or(turn).min(SAFETY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vitrine_crds::preview_policy::CellUse;
    use vitrine_policies::{
        cell::{
            pod::{self as shape, ProbeImage},
            record::{Holds, OfPool},
        },
        envelope, probe,
    };

    use super::*;

    const CELL: &str = "vitrine-cell-0123456789abcdef";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn world() -> World {
        let policy: PreviewPolicySpec = serde_json::from_value(json!({
            "ttl": {"min": "10m", "max": "30m", "default": "20m"},
            "size": {"max": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}},
            "isolation": {"internet": ["203.0.113.10:80"]}
        }))
        .unwrap();
        World {
            record: Record {
                epoch: "e".into(),
                tenant: None,
                lot: Some("lot".into()),
                uses: 0,
                pool: Some(OfPool {
                    uid: "pool".into(),
                    namespace: "shop".into(),
                    name: "pool".into(),
                }),
                holds: Some(Holds {
                    listing: "l".into(),
                    seller: "acme".into(),
                    size: serde_json::from_value(json!({"cpu": "1", "memory": "1", "ephemeralStorage": "1"}))
                        .unwrap(),
                    slots: vec!["slot".into()],
                }),
                since: None,
                made: Some(at(0)),
                going: false,
            },
            pod: None,
            envelope: None,
            template: Some(("template".into(), "lot".into())),
            policy: Some(policy),
            max_age: Duration::from_secs(1800),
            surplus: false,
            needed: true,
            paused: false,
            proven: false,
            distrusted: None,
            node_gone: false,
            holds_any: false,
            holds_more: false,
        }
    }

    fn pod(epoch: &str, template: &str, status: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "preview", "namespace": CELL, "uid": "p", "finalizers": [names::POD_FINALIZER],
                "creationTimestamp": at(0).to_string(),
                "annotations": {names::EPOCH_ANNOTATION: epoch, names::TEMPLATE_ANNOTATION: template}},
            "spec": {"containers": [], "nodeName": "n"}, "status": status
        }))
        .unwrap()
    }

    fn running() -> serde_json::Value {
        let verdict = json!({"nonce": names::nonce(CELL, "e"), "judgement": "isolated", "rounds": 1, "elapsedMs": 1,
            "canary": true, "targets": []});
        let container = |name: &str, state: serde_json::Value| json!({"name": name, "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0, "state": state});
        json!({"phase": "Running", "podIP": "10.0.0.1",
            "initContainerStatuses": [
                container("prove", json!({"terminated": {"exitCode": 0, "message": verdict.to_string()}})),
                container("watch", json!({"running": {}}))],
            "containerStatuses": [container("product", json!({"running": {}}))]})
    }

    #[test]
    fn a_cell_takes_its_slots_is_filled_proven_and_ready_in_this_order() {
        let mut world = world();
        let holds = world.record.holds.take();
        assert_eq!(decide(&world, at(1)), Plan::Hold);
        world.record.holds = holds;
        assert_eq!(decide(&world, at(1)), Plan::Fill);
        world.pod = Some(pod("e", "template", json!({"phase": "Pending"})));
        world.envelope = None;
        // Without an envelope nobody knows how long it may take.
        assert!(matches!(decide(&world, at(1)), Plan::Renew(Why::Failed(..))));
        world.pod = Some(pod("e", "template", running()));
        assert!(matches!(decide(&world, at(1)), Plan::Prove(_)));
        world.proven = true;
        assert_eq!(decide(&world, at(1)), Plan::Ready);
    }

    /// What a pool's previews get whose cells wait for at most an hour, and which live for at most half of one.
    fn of_pool(world: &World) -> Envelope {
        let listing = serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "SkuListing", "metadata": {"name": "l", "namespace": "shop", "uid": "l"},
            "spec": {"sku": "l", "seller": "acme", "version": "1.0.0", "preview": {
                "image": format!("example.com/a@sha256:{}", "0".repeat(64)), "port": 8080,
                "size": {"cpu": "100m", "memory": "16Mi", "ephemeralStorage": "1Mi"}}}
        }))
        .unwrap();
        let pool = json!({"listingRef": {"name": "l"}, "replicas": 1, "maxAge": "1h"});
        let pool = serde_json::from_value(pool).unwrap();
        envelope::of_pool(world.policy.as_ref().unwrap(), &listing, &pool).unwrap()
    }

    /// A cell of that pool that is ready, whose pod the kubelet ends after so many seconds.
    fn ready(deadline_seconds: Option<i64>) -> World {
        let mut world = world();
        let mut pod = pod("e", "template", running());
        pod.spec.as_mut().unwrap().active_deadline_seconds = deadline_seconds;
        world.envelope = Some(of_pool(&world));
        World {
            pod: Some(pod),
            proven: true,
            max_age: Duration::from_secs(3600),
            ..world
        }
    }

    #[test]
    fn a_pod_that_would_not_live_as_long_as_a_preview_may_is_not_offered() {
        let world = ready(Some(3600));
        assert_eq!(decide(&world, at(1800)), Plan::Ready);
        assert_eq!(decide(&world, at(1801)), Plan::Renew(Why::Outlived));
    }

    /// Every warm cell was made anew after the two minutes that a preview may take until it is ready.
    #[test]
    fn a_pod_as_it_is_made_is_offered_for_as_long_as_it_may_wait() {
        let image = ProbeImage {
            image: "example.com/vitrine@sha256:0".to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
        };
        let orders = probe::Orders {
            nonce: String::new(),
            canary: String::new(),
            targets: vec![],
            deadline_seconds: 30,
            refuse_image_volumes: true,
        };
        let made = shape::pod(CELL, "e", &of_pool(&world()), &image, &orders, None, &[]);
        let world = ready(made.spec.unwrap().active_deadline_seconds);
        assert_eq!(decide(&world, at(3599)), Plan::Ready);
        assert_eq!(decide(&world, at(3600)), Plan::Renew(Why::Old));
    }

    #[test]
    fn a_cell_that_goes_gives_its_slots_back_and_one_that_stays_what_it_has_beside_its_own() {
        let mut world = world();
        world.holds_more = true;
        assert_eq!(decide(&world, at(1)), Plan::Shed);
        world.record.going = true;
        assert_eq!(decide(&world, at(1)), Plan::GiveBack);
        world.record.holds = None;
        world.holds_any = true;
        assert_eq!(decide(&world, at(1)), Plan::GiveBack, "it was cut off in between");
        world.holds_any = false;
        assert_eq!(decide(&world, at(1)), Plan::Idle(SAFETY));
    }

    #[test]
    fn a_cell_that_its_pool_has_no_need_of_is_kept_for_a_while() {
        let mut world = world();
        world.needed = false;
        world.record.since = Some(at(0));
        let kept = world.policy.as_ref().unwrap().cells.keep_free.as_duration();
        let kept = i64::try_from(kept.as_secs()).unwrap();
        assert_eq!(decide(&world, at(kept - 1)), Plan::Rest);
        assert_eq!(decide(&world, at(kept + 1)), Plan::Remove);
        world.needed = true;
        assert_eq!(decide(&world, at(kept + 1)), Plan::Fill);
    }

    /// It was removed before anybody had it, and another one made, without an end.
    #[test]
    fn where_no_cell_is_used_again_a_new_one_is_filled_all_the_same() {
        let mut world = world();
        world.policy.as_mut().unwrap().cells.mode = CellUse::Fresh;
        assert_eq!(decide(&world, at(1)), Plan::Fill);
        world.proven = true;
        world.pod = Some(pod("e", "template", running()));
        assert_eq!(decide(&world, at(10)), Plan::Ready);
        world.pod = None;
        world.record.uses = 1;
        assert_eq!(decide(&world, at(20)), Plan::Remove);
    }

    #[test]
    fn nothing_is_made_in_what_is_paused() {
        let mut world = world();
        world.paused = true;
        assert_eq!(decide(&world, at(1)), Plan::Rest);
    }

    #[test]
    fn before_a_pod_is_ended_nobody_can_take_the_cell_any_more() {
        let mut world = world();
        world.proven = true;
        for (spoil, why) in [
            ((|w| w.surplus = true) as fn(&mut World), Why::Unwanted),
            (|w| w.template = None, Why::Unwanted),
            (
                |w| w.template = Some(("another".into(), "lot".into())),
                Why::Outdated,
            ),
            (|w| w.max_age = Duration::from_secs(5), Why::Old),
            (
                |w| w.distrusted = Some("its node is set aside"),
                Why::Distrusted("its node is set aside"),
            ),
        ] {
            let mut spoilt = world.clone();
            spoilt.pod = Some(pod("e", "template", running()));
            spoil(&mut spoilt);
            assert_eq!(decide(&spoilt, at(10)), Plan::Renew(why));
            // Once it is for another pod, this one is ended, and let go of when it was seen to end.
            spoilt.record.epoch = "next".into();
            assert_eq!(decide(&spoilt, at(10)), Plan::EndPod);
            let ended = json!({"phase": "Failed", "containerStatuses": []});
            let mut old = pod("e", "template", ended);
            old.metadata.deletion_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(11)));
            spoilt.pod = Some(old);
            assert_eq!(decide(&spoilt, at(12)), Plan::ReleasePod);
        }
    }

    #[test]
    fn a_cell_that_goes_gives_its_slots_back_when_nothing_is_in_it() {
        let mut world = world();
        world.record.going = true;
        world.pod = Some(pod("e", "template", running()));
        assert_eq!(decide(&world, at(1)), Plan::EndPod);
        world.pod = None;
        assert_eq!(decide(&world, at(1)), Plan::GiveBack);
        let mut unwanted = self::world();
        unwanted.surplus = true;
        assert_eq!(decide(&unwanted, at(1)), Plan::Remove);
    }
}
