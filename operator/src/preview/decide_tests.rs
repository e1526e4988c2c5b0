//! Decisions, one by one: what was seen → what is done next.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{api::coordination::v1::Lease, apimachinery::pkg::apis::meta::v1::Time};
use serde_json::json;
use sha2::{Digest, Sha256};
use vitrine_crds::{
    Phase, PreviewPolicySpec, PreviewSandbox, StatusReason, TimeSpan,
    conditions::{self, types},
    preview_policy::{Admission, BlockedSubject, Expiry},
    preview_sandbox::{AbuseFinding, EndResult, Measure},
};
use vitrine_policies::{
    Envelope,
    abuse::Signs,
    cell::{Tenant, boundary, network, record},
    envelope, names,
    queue::{Behind, Lack, Place},
    slots::Dimension,
};

use super::{
    decide::{Cell, Drift, Lost, Plan, TOLD, World, cause, decide, seal_identity},
    report::Report,
};
use crate::{activity::Attention, receipts::spool::Keep};

const UID: &str = "7d6f1c6e-0000-4000-8000-000000000002";
const EPOCH: &str = "0123";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn preview() -> PreviewSandbox {
    serde_json::from_value(json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox",
        "metadata": {"name": "try", "namespace": "shop", "uid": UID, "generation": 1, "finalizers": [names::PREVIEW_FINALIZER]},
        "spec": {"listingRef": {"name": "notebook"}, "subject": "alice"}
    }))
    .unwrap()
}

fn world() -> World {
    let preview = preview();
    World {
        tenant: Tenant::of(&preview).unwrap(),
        preview,
        policy: Some(
            serde_json::from_value(json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPolicy",
                "metadata": {"name": "default"}, "spec": {
                    "ttl": {"min": "10m", "max": "30m", "default": "20m"},
                    "size": {"max": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}},
                    "isolation": {"internet": ["203.0.113.10:80"]}}
            }))
            .unwrap(),
        ),
        listing: Some(
            serde_json::from_value(json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "SkuListing",
                "metadata": {"name": "notebook", "namespace": "shop", "uid": "l", "generation": 1},
                "spec": {"sku": "notebook", "seller": "acme", "version": "1.0.0", "preview": {
                    "image": format!("m/n@sha256:{}", "a".repeat(64)), "port": 8090,
                    "size": {"cpu": "100m", "memory": "128Mi", "ephemeralStorage": "16Mi"}}}
            }))
            .unwrap(),
        ),
        cell: Cell::default(),
        place: None,
        outside: None,
        unread: false,
        attention: None,
        held_slots: vec![],
        other_cells: vec![],
        warm: None,
        pools_known: true,
        lost_slots: vec![],
        cost: None,
        signs: Signs::default(),
        sink: false,
        acknowledged: false,
        sent: None,
        reported_gone: None,
        house: network::House {
            namespace: "vitrine-system".into(),
        },
    }
}

fn envelope(world: &World) -> Envelope {
    envelope::resolve(
        &world.policy.as_ref().unwrap().spec,
        world.listing.as_ref().unwrap(),
        &world.preview,
    )
    .unwrap()
}

/// A world whose preview was admitted at second 0 and whose cell stands.
fn provisioned(pod_status: serde_json::Value) -> World {
    let mut world = world();
    let envelope = envelope(&world);
    let mut policy = network::policy(&world.tenant.cell, &envelope, &world.house);
    policy.metadata.uid = Some("np".into());
    policy.metadata.generation = Some(1);
    let mut report = Report::from(&world.preview, at(0));
    report.admitted(&world.tenant, &envelope, vec!["slot".into()], false);
    report.provisioned(seal_identity(&policy));
    report.status.pod = serde_json::from_value(json!({"uid": "pod", "port": 8090})).unwrap();
    world.preview.status = Some(report.status);
    world.cell = Cell {
        namespace: Some(record::made(
            &world.tenant.cell,
            Some(&world.tenant),
            EPOCH.to_owned(),
            "lot".to_owned(),
            at(0),
        )),
        quota: Some(boundary::quota(&world.tenant.cell, &envelope)),
        closed: Some(boundary::closed(&world.tenant.cell)),
        limit_range: Some(boundary::limit_range(&world.tenant.cell, &envelope)),
        service_account: Some(boundary::service_account(&world.tenant.cell)),
        network_policy: Some(policy),
        foreign_policies: vec![],
        pod: serde_json::from_value(
            json!({"metadata": {"uid": "pod", "name": "preview", "finalizers": [names::POD_FINALIZER]},
            "spec": {"containers": [], "nodeName": "node-1"}, "status": pod_status}),
        )
        .unwrap(),
    };
    world
}

fn container(name: &str, state: serde_json::Value) -> serde_json::Value {
    json!({"name": name, "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 0, "state": state})
}

fn running_pod() -> serde_json::Value {
    let nonce = names::nonce(&names::cell(UID), EPOCH);
    let verdict = json!({"nonce": nonce, "judgement": "isolated", "rounds": 2, "elapsedMs": 9, "canary": true, "targets": [
        {"name": "internet", "address": "203.0.113.10:80", "required": true, "outcome": "shut", "how": "timed out"}]});
    json!({"phase": "Running", "podIP": "10.244.0.9",
        "initContainerStatuses": [
            container("prove", json!({"terminated": {"exitCode": 0, "message": verdict.to_string()}})),
            container("watch", json!({"running": {}}))],
        "containerStatuses": [container("product", json!({"running": {}}))]})
}

fn ready() -> World {
    let mut world = provisioned(running_pod());
    world.outside = Some([("203.0.113.10:80".to_owned(), "up".to_owned())].into());
    match decide(&world, at(5)) {
        Plan::Open(report) => world.preview.status = Some(report.status),
        other => panic!("{other:?}"),
    }
    world
}

fn ends_with(plan: &Plan) -> (StatusReason, String) {
    match plan {
        Plan::Report(report, _) | Plan::Record(report) if report.status.phase == Phase::Ending => (
            report.status.reason.unwrap(),
            report.status.message.clone().unwrap_or_default(),
        ),
        other => panic!("no end: {other:?}"),
    }
}

#[test]
fn a_preview_within_the_envelope_is_admitted() {
    let Plan::Admit(_, demands) = decide(&world(), at(0)) else {
        panic!()
    };
    let dimensions: Vec<_> = demands.iter().map(|d| (d.dimension.as_str(), d.limit)).collect();
    // It names no network.
    assert_eq!(
        dimensions,
        [("subject", 1), ("listing", 50), ("seller", 100), ("cluster", 200)]
    );
}

fn behind() -> Place {
    Place::Behind(Behind {
        lack: Lack::Slots {
            dimension: Dimension::Subject,
            limit: 1,
        },
        position: 2,
        estimate: Some(at(60)),
    })
}

fn policy(world: &mut World) -> &mut PreviewPolicySpec {
    &mut world.policy.as_mut().unwrap().spec
}

#[test]
fn a_preview_waits_behind_others_of_its_subject_and_says_at_which_place() {
    let mut world = world();
    world.place = Some(behind());
    let Plan::Report(report, _) = decide(&world, at(0)) else {
        panic!()
    };
    assert_eq!(
        (report.status.phase, report.status.queue_position),
        (Phase::Queued, Some(2))
    );
    assert_eq!(report.status.queue_estimate, Some(Time(at(60))));
    assert_eq!(report.status.reason, Some(StatusReason::WaitingForSlot));
    assert_eq!(
        report.status.message.unwrap(),
        "the one slot of its subject is taken; 1 wait before it"
    );
}

#[test]
fn a_preview_that_waits_keeps_no_slot_and_one_whose_turn_it_is_takes_over_what_it_has() {
    let mut world = world();
    world.held_slots = vec![Lease::default()];
    world.place = Some(behind());
    let Plan::Yield(report) = decide(&world, at(0)) else {
        panic!()
    };
    // The write that comes before the deletions must be one.
    world.held_slots.clear();
    let Plan::Report(after, _) = decide(&world, at(0)) else {
        panic!()
    };
    assert_ne!(report.status, after.status);
    world.held_slots = vec![Lease::default()];
    world.place = Some(Place::Turn);
    assert!(matches!(decide(&world, at(0)), Plan::Admit(..)));
}

#[test]
fn a_preview_that_only_waited_goes_at_once_unless_an_admission_was_cut_off() {
    let mut world = world();
    world.preview.metadata.deletion_timestamp = Some(Time(at(1)));
    assert!(matches!(decide(&world, at(1)), Plan::ReleasePreview(None)));
    world.held_slots = vec![Lease::default()];
    assert_eq!(ends_with(&decide(&world, at(1))).0, StatusReason::Deleted);
    world.preview.metadata.finalizers = None;
    assert!(matches!(decide(&world, at(1)), Plan::Idle(None)));
}

#[test]
fn a_preview_gives_back_slots_that_it_was_not_admitted_with() {
    let mut world = ready();
    world.held_slots = vec![Lease::default()];
    assert!(matches!(decide(&world, at(10)), Plan::Shed));
}

#[test]
fn the_queue_has_a_deadline_and_a_free_slot_is_given_even_after_it() {
    let mut world = world();
    world.preview.metadata.creation_timestamp = Some(Time(at(0)));
    world.place = Some(behind());
    assert!(matches!(decide(&world, at(599)), Plan::Report(_, Some(left)) if left == Duration::from_secs(1)));
    let (reason, message) = ends_with(&decide(&world, at(600)));
    assert_eq!(reason, StatusReason::QueueDeadline);
    assert!(
        message.starts_with("it waited 10m, as long as a preview may: the one slot"),
        "{message}"
    );
    world.place = Some(Place::Turn);
    assert!(matches!(decide(&world, at(600)), Plan::Admit(..)));
    // Whoever waits for something else than a slot is not left waiting either.
    world.listing = None;
    assert_eq!(ends_with(&decide(&world, at(600))).0, StatusReason::QueueDeadline);
}

#[test]
fn a_suspended_admission_lets_nobody_in_and_says_so() {
    let mut world = world();
    world.place = Some(Place::Turn);
    policy(&mut world).maintenance.admission = Admission::Suspended;
    let Plan::Report(report, _) = decide(&world, at(0)) else {
        panic!()
    };
    assert_eq!(report.status.phase, Phase::Queued);
    assert_eq!(report.status.reason, Some(StatusReason::AdmissionSuspended));
}

#[test]
fn a_blocked_subject_is_refused_until_the_block_ends() {
    let mut world = world();
    policy(&mut world).blocked_subjects = vec![BlockedSubject {
        sha256: hex::encode(Sha256::digest("alice")),
        until: Some(Time(at(50))),
        reason: Some("mined".to_owned()),
    }];
    let Plan::Report(report, again) = decide(&world, at(20)) else {
        panic!()
    };
    assert_eq!(
        (report.status.phase, report.status.reason),
        (Phase::Refused, Some(StatusReason::SubjectBlocked))
    );
    assert_eq!(again, Some(Duration::from_secs(30)));
    assert!(matches!(decide(&world, at(50)), Plan::Admit(..)));
}

#[test]
fn what_is_missing_or_too_much_is_said_with_a_reason() {
    let reason = |change: fn(&mut World)| {
        let mut world = world();
        change(&mut world);
        let Plan::Report(report, _) = decide(&world, at(0)) else {
            panic!()
        };
        (
            report.status.phase,
            report.status.reason.unwrap(),
            report.status.message.unwrap(),
        )
    };
    assert_eq!(reason(|w| w.policy = None).1, StatusReason::PolicyNotFound);
    assert_eq!(reason(|w| w.listing = None).1, StatusReason::ListingNotFound);
    assert_eq!(
        reason(|w| w.preview.spec.listing_ref.generation = Some(7)).1,
        StatusReason::ListingChanged
    );
    let (phase, why, message) = reason(|w| w.preview.spec.ttl = Some("5h".parse().unwrap()));
    assert_eq!((phase, why), (Phase::Refused, StatusReason::OutsideEnvelope));
    assert_eq!(message, "spec.ttl asks for 5h, allowed is 10m to 30m");
}

#[test]
fn ready_only_with_proof_from_inside_and_targets_that_were_up() {
    let mut world = provisioned(running_pod());
    assert!(
        matches!(decide(&world, at(5)), Plan::Idle(Some(_))),
        "nobody asked the prober yet"
    );
    world.outside = Some([("203.0.113.10:80".to_owned(), "timed out".to_owned())].into());
    assert_eq!(ends_with(&decide(&world, at(5))).0, StatusReason::Unproven);
    world.outside = Some([("203.0.113.10:80".to_owned(), "up".to_owned())].into());
    let Plan::Open(report) = decide(&world, at(5)) else {
        panic!()
    };
    assert_eq!(report.status.expires_at, Some(Time(at(5 + 1200))));
    assert!(conditions::is_true(&report.status.conditions, types::ISOLATED));
}

#[test]
fn a_ready_preview_ends_when_nobody_opened_or_used_it_for_as_long_as_the_policy_lets_it_be() {
    let seconds = |n: u64| Some(TimeSpan::from_secs(n));
    let attention = |asked: i64, since: i64, last: Option<i64>, open: bool| {
        Some(Attention {
            at: at(asked),
            since: at(since),
            last: last.map(at),
            open,
        })
    };
    // Ready at second 5; unopened for 60 s, idle for 30 s.
    let cases = [
        (attention(64, 0, None, false), None),
        (attention(65, 0, None, false), Some(StatusReason::Unopened)),
        (attention(65, 20, None, false), None),
        (attention(80, 20, None, false), Some(StatusReason::Unopened)),
        (attention(129, 0, Some(100), false), None),
        (attention(130, 0, Some(100), false), Some(StatusReason::Idle)),
        (attention(130, 0, Some(100), true), None),
        (attention(130, 110, Some(100), false), None),
        (None, None),
    ];
    for (attention, end) in cases {
        let mut world = ready();
        let traffic = &mut world.policy.as_mut().unwrap().spec.traffic;
        (traffic.unopened, traffic.idle) = (seconds(60), seconds(30));
        world.attention = attention.clone();
        let plan = decide(&world, at(200));
        match end {
            Some(reason) => assert_eq!(ends_with(&plan).0, reason, "{attention:?}"),
            None => assert!(matches!(plan, Plan::Idle(Some(_))), "{attention:?}: {plan:?}"),
        }
        let traffic = &mut world.policy.as_mut().unwrap().spec.traffic;
        (traffic.unopened, traffic.idle) = (None, None);
        assert!(
            matches!(decide(&world, at(200)), Plan::Idle(Some(_))),
            "the policy does not mind"
        );
    }
}

#[test]
fn a_ready_preview_costs_nothing_until_its_time_is_over() {
    let world = ready();
    assert!(matches!(decide(&world, at(1204)), Plan::Idle(Some(_))));
    assert_eq!(ends_with(&decide(&world, at(1205))).0, StatusReason::TimeOver);
}

#[test]
fn a_network_policy_that_was_touched_ends_the_preview_even_if_it_was_put_back() {
    for change in [
        (|w: &mut World| w.cell.network_policy = None) as fn(&mut World),
        |w| {
            w.cell
                .network_policy
                .as_mut()
                .unwrap()
                .spec
                .as_mut()
                .unwrap()
                .egress = Some(vec![Default::default()])
        },
        |w| w.cell.network_policy.as_mut().unwrap().metadata.generation = Some(3),
        |w| w.cell.network_policy.as_mut().unwrap().metadata.uid = Some("other".into()),
        |w| w.cell.foreign_policies.push("open".into()),
        |w| w.cell.namespace = None,
    ] {
        let mut world = ready();
        change(&mut world);
        assert_eq!(ends_with(&decide(&world, at(6))).0, StatusReason::SealBroken);
    }
}

#[test]
fn more_in_a_cell_than_its_own_ends_the_preview() {
    let counting = |counted: serde_json::Value| {
        let mut world = ready();
        world.cell.closed.as_mut().unwrap().status =
            serde_json::from_value(json!({"used": counted})).unwrap();
        decide(&world, at(6))
    };
    let (reason, message) = ends_with(&counting(json!({"count/limitranges": "1", "count/secrets": "1"})));
    assert_eq!(reason, StatusReason::SealBroken);
    assert_eq!(message, "there are more secrets in the cell than its own");
    // What a quota counts is known after it is.
    let fits =
        counting(json!({"count/limitranges": "1", "count/serviceaccounts": "1", "count/secrets": "0"}));
    assert!(matches!(fits, Plan::Idle(_)), "{fits:?}");
}

#[test]
fn drift_elsewhere_is_put_back_and_the_preview_lives() {
    let mut world = ready();
    world.cell.quota.as_mut().unwrap().spec = None;
    world.cell.closed = None;
    world.cell.service_account = None;
    world.cell.namespace.as_mut().unwrap().metadata.labels = None;
    let Plan::Repair(_, drift) = decide(&world, at(6)) else {
        panic!()
    };
    assert_eq!(
        drift,
        [
            Drift::Namespace,
            Drift::Quota,
            Drift::Closed,
            Drift::ServiceAccount
        ]
    );
}

#[test]
fn a_breach_is_told_from_the_products_own_end() {
    let ended = |watch: serde_json::Value| {
        let mut status = running_pod();
        status["containerStatuses"][0]["state"] =
            json!({"terminated": {"exitCode": 137, "finishedAt": at(6).to_string()}});
        status["initContainerStatuses"][1]["state"] = watch;
        let mut world = ready();
        world.cell.pod.as_mut().unwrap().status = serde_json::from_value(status).unwrap();
        world
    };
    let breach =
        ended(json!({"terminated": {"exitCode": 0, "message": "isolation broken: reached internet"}}));
    assert_eq!(
        ends_with(&decide(&breach, at(7))).0,
        StatusReason::IsolationBroken
    );
    let killed = ended(json!({"terminated": {"exitCode": 137}}));
    assert_eq!(
        ends_with(&decide(&killed, at(7))).0,
        StatusReason::IsolationBroken,
        "nobody watched"
    );
    let own = ended(json!({"running": {}}));
    assert_eq!(ends_with(&decide(&own, at(7))).0, StatusReason::ProductExited);
    let swept_up = ended(json!({"terminated": {"exitCode": 0}}));
    assert_eq!(
        ends_with(&decide(&swept_up, at(7))).0,
        StatusReason::ProductExited,
        "the kubelet stops the sidecar after the product"
    );
}

#[test]
fn a_preview_that_is_not_ready_in_time_is_given_up_with_the_reason() {
    let world = provisioned(json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: insufficient cpu"}]}));
    assert!(matches!(decide(&world, at(119)), Plan::Report(..)));
    let (reason, message) = ends_with(&decide(&world, at(120)));
    assert_eq!(reason, StatusReason::Unschedulable);
    assert!(message.contains("insufficient cpu"), "{message}");
}

#[test]
fn the_end_is_cut_proven_recorded_and_only_then_let_go() {
    let mut world = ready();
    let Plan::Record(report) = decide(&world, at(1205)) else {
        panic!()
    };
    assert_eq!(report.status.url, None, "the link is cut in the same write");
    world.preview.status = Some(report.status);
    assert!(matches!(decide(&world, at(1205)), Plan::EndPod(None)));

    let pod = world.cell.pod.as_mut().unwrap();
    pod.metadata.deletion_timestamp = Some(Time(at(1206)));
    assert!(
        matches!(decide(&world, at(1207)), Plan::Idle(Some(_))),
        "still running"
    );
    assert!(
        matches!(decide(&world, at(1216)), Plan::Report(..)),
        "worth a word"
    );
    let mut over = running_pod();
    over["phase"] = json!("Failed");
    over["initContainerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 0}});
    over["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 137}});
    world.cell.pod.as_mut().unwrap().status = serde_json::from_value(over).unwrap();
    let Plan::Record(report) = decide(&world, at(1207)) else {
        panic!()
    };
    assert_eq!(
        report.status.receipt.as_ref().unwrap().result,
        EndResult::Verified
    );
    world.preview.status = Some(report.status);
    assert!(matches!(decide(&world, at(1207)), Plan::ReleasePod));
    // The kubelet removes a pod that was let go when it has cleaned up: nothing is left to do meanwhile.
    world.cell.pod.as_mut().unwrap().metadata.finalizers = None;
    assert!(matches!(decide(&world, at(1207)), Plan::Idle(Some(_))));

    world.cell.pod = None;
    world.held_slots = vec![Lease::default()];
    assert!(matches!(decide(&world, at(1208)), Plan::RemoveCell));
    world.held_slots = vec![];
    world.cell.namespace = None;
    let Plan::Conclude(report) = decide(&world, at(1209)) else {
        panic!()
    };
    assert_eq!(report.status.phase, Phase::Ended);
    world.preview.status = Some(report.status);
    assert!(matches!(decide(&world, at(1210)), Plan::Idle(Some(_))));
    assert!(matches!(decide(&world, at(1209 + 24 * 3600)), Plan::Retire));
}

/// Its deletion stands in the cluster, and nobody reads what the status of a preview would say that is about to go.
#[test]
fn a_live_preview_that_is_deleted_is_ended_at_once_and_its_status_written_once() {
    let mut world = ready();
    world.preview.metadata.deletion_timestamp = Some(Time(at(90)));
    assert_eq!(cause(&world.preview), Some(StatusReason::Deleted));
    assert_eq!(
        world.preview.phase(),
        Phase::Ending,
        "for whoever lets visitors in"
    );
    assert!(matches!(decide(&world, at(90)), Plan::EndPod(None)));
    world.cell.pod.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(at(91)));
    assert!(matches!(decide(&world, at(92)), Plan::Idle(Some(left)) if left == Duration::from_secs(9)));
    let Plan::Report(slow, _) = decide(&world, at(101)) else {
        panic!()
    };
    assert_eq!(slow.status.reason, Some(StatusReason::Deleted), "worth a word");

    let mut over = running_pod();
    over["phase"] = json!("Failed");
    over["initContainerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 0}});
    over["containerStatuses"][0]["state"] = json!({"terminated": {"exitCode": 137}});
    world.cell.pod.as_mut().unwrap().status = serde_json::from_value(over).unwrap();
    let Plan::Record(report) = decide(&world, at(93)) else {
        panic!()
    };
    let status = &report.status;
    assert_eq!((status.phase, &status.url), (Phase::Ending, &None));
    let expired = conditions::find(&status.conditions, types::EXPIRED).unwrap();
    assert_eq!(expired.last_transition_time, Time(at(90)), "when it was deleted");
    assert_eq!(status.receipt.as_ref().unwrap().cause, StatusReason::Deleted);
    world.preview.status = Some(report.status);
    assert!(matches!(decide(&world, at(93)), Plan::ReleasePod));
    world.cell.pod = None;
    world.held_slots = vec![Lease::default()];
    assert!(matches!(decide(&world, at(94)), Plan::RemoveCell));
    world.held_slots = vec![];
    world.cell.namespace = None;
    let kept = Keep::Until(at(93 + 24 * 3600));
    assert!(matches!(decide(&world, at(94)), Plan::ReleasePreview(Some(keep)) if keep == kept));
    // Where there is a sink, it gets its chance before the receipt is written down.
    world.sink = true;
    assert!(matches!(decide(&world, at(94)), Plan::Send(_)));
    world.sent = Some(Duration::from_millis(500));
    assert!(matches!(decide(&world, at(94)), Plan::Idle(Some(left)) if left == Duration::from_millis(1500)));
    let mut had = world.clone();
    had.acknowledged = true;
    assert!(matches!(decide(&had, at(94)), Plan::ReleasePreview(None)));
    world.sent = Some(Duration::from_secs(2));
    assert!(matches!(
        decide(&world, at(96)),
        Plan::ReleasePreview(Some(Keep::UntilDelivered))
    ));
}

#[test]
fn a_receipt_outlives_its_preview_until_the_sink_has_it_or_its_retention_is_over() {
    let mut world = ready();
    let mut report = Report::from(&world.preview, at(100));
    report.ending(StatusReason::Deleted, "the preview was deleted");
    report.ended(&world.tenant, StatusReason::Deleted, EndResult::Verified, None);
    report.torn_down();
    world.preview.status = Some(report.status);
    world.preview.metadata.deletion_timestamp = Some(Time(at(90)));
    let kept = |world: &World, second| match decide(world, at(second)) {
        Plan::ReleasePreview(keep) => keep,
        other => panic!("{other:?}"),
    };
    let day = 24 * 3600;
    assert_eq!(kept(&world, 101), Some(Keep::Until(at(100 + day))));
    assert_eq!(kept(&world, 100 + day), None);
    world.policy = None;
    assert_eq!(
        kept(&world, 101),
        Some(Keep::Until(at(100 + day))),
        "nobody says how long"
    );
    world.sink = true;
    assert!(matches!(decide(&world, at(101)), Plan::Idle(Some(left)) if left == Duration::from_secs(1)));
    assert_eq!(kept(&world, 102), Some(Keep::UntilDelivered));
    world.acknowledged = true;
    assert_eq!(kept(&world, 101), None, "there is no need to write it down");
    world.acknowledged = false;
    let status = world.preview.status.as_mut().unwrap();
    status.receipt.as_mut().unwrap().delivered_at = Some(Time(at(102)));
    assert_eq!(kept(&world, 103), None);
    let status = world.preview.status.as_mut().unwrap();
    status.receipt.as_mut().unwrap().delivered_at = None;
    status.admitted_at = None;
    assert_eq!(kept(&world, 103), None, "nothing of it ever ran");
}

#[test]
fn a_pod_that_vanished_unseen_keeps_its_slot_until_the_node_reports_it_gone() {
    let mut world = ready();
    world.cell.pod = None;
    let (reason, _) = ends_with(&decide(&world, at(6)));
    assert_eq!(reason, StatusReason::PodLost);
    let Plan::Record(report) = decide(&world, at(6)) else {
        panic!()
    };
    world.preview.status = Some(report.status);
    for said in [None, Some(false)] {
        world.reported_gone = said;
        let Plan::Report(report, _) = decide(&world, at(7)) else {
            panic!()
        };
        let torn_down = conditions::find(&report.status.conditions, types::TORN_DOWN).unwrap();
        assert_eq!(
            (torn_down.status.as_str(), torn_down.reason.as_str()),
            ("Unknown", "EndUnknown")
        );
        assert!(report.status.receipt.is_none() && report.status.slots == ["slot"]);
    }
    world.reported_gone = Some(true);
    let Plan::Record(report) = decide(&world, at(8)) else {
        panic!()
    };
    assert_eq!(report.status.receipt.unwrap().result, EndResult::ReportedGone);
}

#[test]
fn a_ttl_that_grows_within_the_envelope_extends_a_ready_preview() {
    let mut world = ready();
    world.preview.spec.ttl = Some("25m".parse().unwrap());
    let Plan::Extend(report) = decide(&world, at(6)) else {
        panic!()
    };
    assert_eq!(report.status.expires_at, Some(Time(at(5 + 1500))));
    world.preview.spec.ttl = Some("2h".parse().unwrap());
    let Plan::Report(report, _) = decide(&world, at(6)) else {
        panic!()
    };
    assert!(report.status.message.unwrap().contains("outside the envelope"));
}

/// A ready preview under rules of abuse, with limits of a tenth of a core.
fn judged(signs: Signs) -> World {
    let mut world = ready();
    let policy = world.policy.as_mut().unwrap();
    policy.spec.abuse = Some(
        serde_json::from_value(json!({
            "sustainedCpu": {"percent": 90, "period": "3m", "points": 60},
            "processes": {"count": 100, "points": 60},
            "throttleAt": 50, "endAt": 110, "blockAt": 200, "blockFor": "24h"
        }))
        .unwrap(),
    );
    world.signs = signs;
    world
}

fn miner() -> Signs {
    Signs {
        cpu_percent: Some(99),
        ..Signs::default()
    }
}

#[test]
fn a_miner_is_found_once_and_throttled_until_it_is() {
    let mut world = judged(miner());
    let Plan::Report(report, Some(TOLD)) = decide(&world, at(200)) else {
        panic!()
    };
    let found = report.status.abuse.clone().unwrap();
    assert_eq!((found.score, found.measure), (60, Measure::Throttle));
    world.preview.status = Some(report.status);
    let limit = |world: &mut World, cpu: &str| {
        let pod = world.cell.pod.as_mut().unwrap();
        let product = json!([{"name": "product", "resources": {"limits": {"cpu": cpu}}}]);
        pod.spec.as_mut().unwrap().containers = serde_json::from_value(product).unwrap();
    };
    limit(&mut world, "100m");
    let Plan::Throttle(cpu, _) = decide(&world, at(201)) else {
        panic!()
    };
    assert_eq!(cpu.to_string(), "10m");
    // A longer life is granted or refused all the same.
    let mut longer = world.clone();
    longer.preview.spec.ttl = Some("25m".parse().unwrap());
    assert!(matches!(decide(&longer, at(201)), Plan::Extend(_)));
    limit(&mut world, "10m");
    // At rest it shows no sign, and stays throttled.
    world.signs = Signs::default();
    assert!(matches!(decide(&world, at(202)), Plan::Idle(_)));
}

#[test]
fn a_graver_sign_ends_it_and_the_milder_finding_is_not_written_again() {
    let mut world = judged(miner());
    world.preview.status.as_mut().unwrap().abuse = Some(AbuseFinding {
        score: 60,
        measure: Measure::Throttle,
        reasons: vec![],
        at: Time(at(100)),
    });
    world.signs.processes = Some(500);
    let Plan::Report(report, _) = decide(&world, at(200)) else {
        panic!()
    };
    assert_eq!(report.status.abuse.as_ref().unwrap().measure, Measure::End);
    assert_eq!(report.status.phase, Phase::Ready, "found first, ended then");
    world.preview.status = Some(report.status);
    let Plan::Record(report) = decide(&world, at(201)) else {
        panic!()
    };
    assert_eq!(report.status.reason, Some(StatusReason::Abuse));
    let message = report.status.message.unwrap();
    assert!(
        message.contains("120 points") && message.contains("500 processes"),
        "{message}"
    );
}

#[test]
fn a_subject_is_blocked_before_its_preview_ends() {
    let mut world = judged(miner());
    world
        .policy
        .as_mut()
        .unwrap()
        .spec
        .abuse
        .as_mut()
        .unwrap()
        .block_at = Some(50);
    let Plan::Report(report, _) = decide(&world, at(200)) else {
        panic!()
    };
    world.preview.status = Some(report.status);
    let Plan::Block(block) = decide(&world, at(201)) else {
        panic!()
    };
    assert_eq!(
        block.until,
        Some(Time(at(200 + 24 * 3600))),
        "from when it was found"
    );
    // Also if it ends otherwise before the block is written.
    let mut gone = world.clone();
    let mut report = Report::from(&gone.preview, at(201));
    report.ending(StatusReason::ProductExited, "the product ended by itself");
    gone.preview.status = Some(report.status);
    gone.cell.pod.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(at(201)));
    assert!(matches!(decide(&gone, at(202)), Plan::Block(_)));
    let mut report = Report::from(&gone.preview, at(203));
    report.ended(
        &gone.tenant,
        StatusReason::ProductExited,
        EndResult::Verified,
        None,
    );
    gone.preview.status = Some(report.status);
    gone.cell = Cell::default();
    assert!(matches!(decide(&gone, at(204)), Plan::Block(_)));
    let policy = world.policy.as_mut().unwrap();
    policy.status.get_or_insert_default().blocked_subjects = vec![*block];
    let Plan::Record(report) = decide(&world, at(202)) else {
        panic!()
    };
    assert_eq!(report.status.reason, Some(StatusReason::Abuse));
    // And the next of the same subject is refused.
    let mut next = self::world();
    next.policy = world.policy;
    let Plan::Report(report, _) = decide(&next, at(203)) else {
        panic!()
    };
    assert_eq!(report.status.reason, Some(StatusReason::SubjectBlocked));
}

#[test]
fn while_time_stands_still_a_preview_gets_more_up_to_the_longest_it_may_live() {
    let mut world = ready();
    world.policy.as_mut().unwrap().spec.maintenance.expiry = Expiry::Suspended;
    // Ready at 5, for 20 minutes; at most 30.
    assert!(matches!(decide(&world, at(1100)), Plan::Idle(_)));
    let Plan::Extend(report) = decide(&world, at(1160)) else {
        panic!()
    };
    assert_eq!(report.status.expires_at, Some(Time(at(1205 + 300))));
    world.preview.status = Some(report.status);
    let Plan::Extend(report) = decide(&world, at(1460)) else {
        panic!()
    };
    assert_eq!(report.status.expires_at, Some(Time(at(5 + 1800))));
    world.preview.status = Some(report.status);
    // At the longest it may live nothing is left to give: the next look is at its end, and not at once.
    let Plan::Idle(Some(left)) = decide(&world, at(1795)) else {
        panic!()
    };
    assert_eq!(left, Duration::from_secs(10));
    let Plan::Record(report) = decide(&world, at(1805)) else {
        panic!()
    };
    assert_eq!(report.status.reason, Some(StatusReason::TimeOver));
}

#[test]
fn a_node_on_which_isolation_broke_is_set_aside_once_its_preview_was_told_to_end() {
    let mut world = ready();
    world.policy.as_mut().unwrap().spec.isolation.node_quarantine = Some("10m".parse().unwrap());
    let mut report = Report::from(&world.preview, at(100));
    report.ending(
        StatusReason::IsolationBroken,
        "isolation broken: internet answered",
    );
    world.preview.status = Some(report.status);
    world.cell.pod.as_mut().unwrap().spec.as_mut().unwrap().node_name = Some("n".into());
    assert!(
        matches!(decide(&world, at(101)), Plan::EndPod(_)),
        "first things first"
    );
    world.cell.pod.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(at(101)));
    let Plan::SetAside(node) = decide(&world, at(102)) else {
        panic!()
    };
    assert_eq!((node.name.as_str(), &node.until), ("n", &Time(at(700))));
    let policy = world.policy.as_mut().unwrap();
    policy.status.get_or_insert_default().nodes_set_aside = vec![*node];
    assert!(!matches!(decide(&world, at(103)), Plan::SetAside(_)), "once");
    // A sidecar that somebody killed says nothing of the node.
    let mut killed = world.clone();
    killed.policy.as_mut().unwrap().status = None;
    let mut report = Report::from(&ready().preview, at(100));
    report.ending(
        StatusReason::IsolationBroken,
        "the isolation sidecar was restarted",
    );
    killed.preview.status = Some(report.status);
    assert!(!matches!(decide(&killed, at(103)), Plan::SetAside(_)));
}

#[test]
fn a_slot_that_somebody_deleted_is_taken_again_and_one_that_another_has_ends_the_preview() {
    let mut world = ready();
    world.lost_slots = vec![Lost::Gone("subject-a-0".into())];
    let Plan::Retake(_, lost, _) = decide(&world, at(6)) else {
        panic!()
    };
    assert_eq!(lost, ["subject-a-0"]);
    // What ends or mends the preview comes first: slots may be not to be had for long.
    let mut broken = world.clone();
    broken.cell.network_policy = None;
    assert!(matches!(decide(&broken, at(6)), Plan::Record(report) if report.status.phase == Phase::Ending));
    world.lost_slots.push(Lost::Taken("cluster-b-1".into()));
    let Plan::Record(report) = decide(&world, at(6)) else {
        panic!()
    };
    let status = report.status;
    assert_eq!(
        (status.phase, status.reason),
        (Phase::Ending, Some(StatusReason::SlotLost))
    );
    assert!(status.message.unwrap().contains("cluster-b-1"));
}
