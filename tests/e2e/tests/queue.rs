//! Previews of one subject wait for its slots, in the order in which they were made, and are told how long the queue is.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::Namespace,
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox, StatusReason, preview_sandbox::TrustLevel};
use vitrine_e2e::{
    eventually::eventually,
    history::History,
    house::{House, LISTING, PATIENCE},
    operator::{Operator, Options},
};
use vitrine_kit::objects;
use vitrine_policies::slots::{self, Dimension, Owner};

/// Longer than any time after which a preview that waits is looked at again.
const QUIET: Duration = Duration::from_secs(6);
/// How long after the end of one preview the next may be admitted.
const NEXT: SignedDuration = SignedDuration::from_secs(5);

fn place(preview: &PreviewSandbox) -> (Phase, Option<StatusReason>, Option<i32>) {
    let status = preview.status.clone().unwrap_or_default();
    (status.phase, status.reason, status.queue_position)
}

/// Waits until the API server's clock is in another second than this preview's creation: creation times have no finer grain.
async fn a_second_later(preview: &PreviewSandbox) {
    let made = preview.metadata.creation_timestamp.as_ref().unwrap().0;
    eventually("the next second", PATIENCE, async || {
        let passed = Timestamp::now().duration_since(made) >= SignedDuration::from_secs(1);
        passed.then_some(()).ok_or_else(|| made.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_of_one_subject_are_admitted_one_after_the_other_in_the_order_of_their_creation() {
    let house = House::take("queue", 1, "24h").await;
    let history = History::begin(&house).await;
    let _operator = Operator::ready(&house.post, &Options::alone("queue"), None).await;
    let names = ["first", "second", "third"];
    for (ahead, name) in names.into_iter().enumerate() {
        let preview = house.preview(name, "alice", Some("6s")).await;
        let expected = i32::try_from(ahead).unwrap();
        house
            .until(name, "it has its place", PATIENCE, |preview| match ahead {
                0 => place(preview).0 == Phase::Ready,
                _ => place(preview) == (Phase::Queued, Some(StatusReason::WaitingForSlot), Some(expected)),
            })
            .await;
        a_second_later(&preview).await;
    }
    house
        .until("second", "it is ready", PATIENCE, |p| place(p).0 == Phase::Ready)
        .await;
    house
        .until("third", "it moves up", PATIENCE, |p| place(p).2 == Some(1))
        .await;
    let mut last_end = None;
    for name in names {
        let over = |p: &PreviewSandbox| place(p).0 == Phase::Ended;
        let status = house.until(name, "it ends", PATIENCE, over).await.status.unwrap();
        let admitted = status.admitted_at.unwrap().0;
        if let Some(end) = last_end {
            let gap = admitted.duration_since(end);
            println!("{name} was admitted {gap:#} after the end before it");
            assert!(gap >= SignedDuration::ZERO && gap <= NEXT, "{name}: {gap:#}");
        }
        last_end = Some(status.ended_at.unwrap().0);
        assert_eq!(status.queue_position, None, "{name} queues no more");
    }
    assert_eq!(history.most_slots(Dimension::Subject), 1, "the limit is one");
    for name in names {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_waits_for_room_on_the_nodes_and_is_told_when_its_time_in_the_queue_is_over() {
    let house = House::take("room", 9, "24h").await;
    // The nodes have 64 cores each, and a preview of the stub listing needs a tenth of one and its overhead: all nodes are
    // cordoned, so that there is room for none.
    let cordon = |yes: bool| {
        let verb = if yes { "cordon" } else { "uncordon" };
        let nodes = house.kubectl(&["get", "nodes", "-o", "name"]);
        for node in nodes.lines() {
            house.kubectl(&[verb, node]);
        }
    };
    let policy = |deadline: &str| {
        json!({"retention": "24h", "limits": {"perSubject": 9}, "queue": {"deadline": deadline},
            "capacity": {"percentOfNodes": 100}})
    };
    house.policy(policy("10m")).await;
    let _operator = Operator::ready(&house.post, &Options::alone("room"), None).await;
    cordon(true);
    let tried = std::panic::AssertUnwindSafe(async {
        house.preview("waits", "anna", None).await;
        let waiting =
            |p: &PreviewSandbox| place(p) == (Phase::Queued, Some(StatusReason::WaitingForCapacity), Some(1));
        house.until("waits", "it waits for room", PATIENCE, waiting).await;
        house.policy(policy("1s")).await;
        let over = |p: &PreviewSandbox| place(p).0 == Phase::Failed;
        let status = house
            .until("waits", "it is given up", PATIENCE, over)
            .await
            .status
            .unwrap();
        assert_eq!(status.reason, Some(StatusReason::QueueDeadline));
        assert_eq!(
            status.message.unwrap(),
            "it waited 1s, as long as a preview may: no node is ready for previews; it is next"
        );
        assert!(status.cell.is_none(), "nothing was made for it");
        house.policy(policy("10m")).await;
        house.preview("patient", "anna", None).await;
        house
            .until("patient", "it waits for room", PATIENCE, waiting)
            .await;
    });
    let tried = futures::FutureExt::catch_unwind(tried).await;
    cordon(false);
    if let Err(panic) = tried {
        std::panic::resume_unwind(panic);
    }
    // It looks again by itself.
    let patience = PATIENCE * 2;
    house
        .until("patient", "it is ready", patience, |p| place(p).0 == Phase::Ready)
        .await;
    for name in ["waits", "patient"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}

/// As that of a preview which is over while its cell is not closed yet: nobody who lives is in the way, and the slot is all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_held_by_nobody_who_lives_is_waited_for_and_not_tried_again_and_again() {
    let house = House::take("held", 1, "24h").await;
    let leases = house.leases();
    let namespace = leases.namespace().unwrap_or_default();
    // Of a namespace that is there, as a pool's cell is: no sweep takes it away.
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let owner = namespaces.get(&house.shop).await.unwrap();
    let owner = Owner::cell(&house.shop, &owner.uid().unwrap());
    let held = slots::lease(namespace, Dimension::Subject, "bert", 0, &owner);
    let held = leases.create(&PostParams::default(), &held).await.unwrap();
    let _operator = Operator::ready(&house.post, &Options::alone("held"), None).await;
    let mark = house.mark();
    house.preview("one", "bert", None).await;
    house
        .until("one", "it waits", PATIENCE, |p| {
            place(p) == (Phase::Queued, Some(StatusReason::WaitingForSlot), Some(1))
        })
        .await;
    tokio::time::sleep(QUIET).await;
    let delete = DeleteParams::default();
    leases.delete(&held.name_any(), &delete).await.unwrap();
    house
        .until("one", "it is ready", PATIENCE, |p| place(p).0 == Phase::Ready)
        .await;
    let writes = house.writes(mark);
    let told = writes
        .iter()
        .filter(|w| w.name.as_deref() == Some("one") && w.label() == "update previewsandboxes/status");
    let told = told.count();
    assert!(told < 10, "its status was written {told} times");
    house.delete("one").await;
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_beside_those_that_a_preview_was_admitted_with_is_given_back_while_it_lives() {
    let house = House::take("beside", 2, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("beside"), None).await;
    let preview = house.preview("one", "anna", None).await;
    let status = house
        .until("one", "it is ready", PATIENCE, |p| place(p).0 == Phase::Ready)
        .await
        .status
        .unwrap();
    let leases = house.leases();
    let of_subject = |index| slots::name(Dimension::Subject, "anna", index);
    let free = (0..2)
        .find(|index| !status.slots.contains(&of_subject(*index)))
        .unwrap();
    // As an operator beside this one would have taken it, too late to write the preview's status.
    let namespace = leases.namespace().unwrap_or_default();
    let lease = slots::lease(
        namespace,
        Dimension::Subject,
        "anna",
        free,
        &Owner::preview(&preview),
    );
    let surplus = leases.create(&PostParams::default(), &lease).await.unwrap();
    eventually("the second slot is given back", PATIENCE, async || {
        let held = leases
            .get_opt(&surplus.name_any())
            .await
            .map_err(|error| error.to_string())?;
        held.map_or(Ok(()), |lease| Err(format!("{:?}", lease.spec)))
    })
    .await;
    let now = house.previews().get("one").await.unwrap();
    assert_eq!(place(&now).0, Phase::Ready, "it lives on");
    for slot in &status.slots {
        leases
            .get(slot)
            .await
            .unwrap_or_else(|error| panic!("its own slot {slot}: {error}"));
    }
    house.delete("one").await;
    house.until_empty(PATIENCE).await;
}

/// What a restore without the slots, or their deletion by somebody who may, must not come to: more previews than the limit.
#[tokio::test(flavor = "multi_thread")]
async fn slots_that_are_gone_after_a_restore_are_taken_again_by_the_previews_that_live_with_them() {
    let house = House::take("restored", 1, "24h").await;
    let operator = Operator::ready(&house.post, &Options::alone("before"), None).await;
    house.preview("lives", "anna", None).await;
    let ready = |p: &PreviewSandbox| place(p).0 == Phase::Ready;
    let uid = house
        .until("lives", "it is ready", PATIENCE, ready)
        .await
        .uid()
        .unwrap();
    let held = async || {
        let all = house.leases().list(&ListParams::default()).await.unwrap().items;
        let own = all.iter().filter(|slot| {
            let holder = slot
                .spec
                .as_ref()
                .and_then(|spec| spec.holder_identity.as_deref());
            holder == Some(uid.as_str())
        });
        own.map(ResourceExt::name_any).collect::<Vec<_>>()
    };
    let lost = held().await;
    assert_eq!(lost.len(), 4, "of subject, listing, seller and cluster: {lost:?}");
    let lose = async |slots: &[String]| {
        for slot in slots {
            house
                .leases()
                .delete(slot, &DeleteParams::default())
                .await
                .unwrap();
        }
    };
    let taken_again = async || {
        eventually("its slots are its own again", PATIENCE, async || {
            let now = held().await;
            if now == lost { Ok(()) } else { Err(now.join(", ")) }
        })
        .await;
    };
    // Under the operator that runs.
    lose(&lost[..1]).await;
    taken_again().await;
    // And while none does; others of the same subject are first in their turn.
    drop(operator);
    lose(&lost).await;
    for name in ["a", "b", "c"] {
        house.preview(name, "anna", None).await;
    }
    let operator = Operator::ready(&house.post, &Options::alone("after"), None).await;
    taken_again().await;
    for name in ["a", "b", "c"] {
        let waits = |p: &PreviewSandbox| place(p).1 == Some(StatusReason::WaitingForSlot);
        house.until(name, "it waits", PATIENCE, waits).await;
    }
    house.told("lives", "Restored").await;
    house.until("lives", "it lives", PATIENCE, ready).await;
    for name in ["a", "b", "c", "lives"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
    assert!(operator.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_trusted_more_goes_first_and_has_the_limits_of_that_trust() {
    let house = House::take("trusted", 1, "24h").await;
    house
        .policy(json!({
            "retention": "24h", "limits": {"perSubject": 1, "perListing": 2},
            "trustLevels": {"signedIn": {"perSubject": 2, "priority": 5}, "paymentVerified": {"priority": 10}},
        }))
        .await;
    let _operator = Operator::ready(&house.post, &Options::alone("trusted"), None).await;
    let ask = async |name: &str, subject: &str, level: TrustLevel| {
        let mut preview = objects::preview(name, LISTING, subject, None);
        preview.spec.trust_level = level;
        house.create(&preview).await
    };
    let ready = |p: &PreviewSandbox| place(p).0 == Phase::Ready;
    // Two of one subject, which an anonymous one may not have.
    for name in ["one", "two"] {
        ask(name, "sue", TrustLevel::SignedIn).await;
        house.until(name, "it is ready", PATIENCE, ready).await;
    }
    // Both slots of the listing are taken; the later somebody is trusted, the earlier asked.
    let waiting = [
        ("stranger", TrustLevel::Anonymous),
        ("member", TrustLevel::SignedIn),
        ("customer", TrustLevel::PaymentVerified),
    ];
    for (name, level) in waiting {
        let made = ask(name, name, level).await;
        let first = |p: &PreviewSandbox| place(p).2 == Some(1);
        house.until(name, "it is first", PATIENCE, first).await;
        a_second_later(&made).await;
    }
    let last = |p: &PreviewSandbox| place(p).2 == Some(3);
    house.until("stranger", "it moved back", PATIENCE, last).await;
    let mut admitted = vec![];
    for (freed, next) in [("one", "customer"), ("two", "member"), ("customer", "stranger")] {
        house.delete(freed).await;
        let status = house
            .until(next, "it is ready", PATIENCE, ready)
            .await
            .status
            .unwrap();
        admitted.push(status.admitted_at.unwrap().0);
    }
    assert!(admitted.is_sorted(), "{admitted:?}");
    for name in ["member", "stranger"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}
