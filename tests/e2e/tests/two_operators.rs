//! Two operators at once do no harm, and with leader election the second works when the first is gone.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox, preview_sandbox::EndResult};
use vitrine_e2e::{
    eventually::eventually,
    history::History,
    house::{House, PATIENCE},
    operator::{Operator, Options},
    proxy::{Blow, Moment, Proxy, Trap},
};
use vitrine_kit::audit;
use vitrine_policies::{
    names,
    slots::{self, Dimension},
};

const LIMIT: i32 = 2;
/// The previews of one subject, two at a time.
const CROWD: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_without_leader_election_never_exceed_a_limit() {
    let house = House::take("two-operators", LIMIT, "24h").await;
    let before = house.mark();
    let history = History::begin(&house).await;
    let operators = [
        Operator::ready(&house.post, &Options::alone("one"), None).await,
        Operator::ready(&house.post, &Options::alone("two"), None).await,
    ];
    let names: Vec<_> = (0..CROWD).map(|n| format!("crowd-{n}")).collect();
    let made = join_all(names.iter().map(|name| house.preview(name, "crowd", Some("1s")))).await;
    let patience = Duration::from_secs(120);
    for preview in &made {
        let name = preview.name_any();
        let over = |p: &PreviewSandbox| p.phase().is_terminal();
        let status = house
            .until(&name, "it ends", patience, over)
            .await
            .status
            .unwrap();
        assert_eq!(status.phase, Phase::Ended, "{name}: {status:?}");
        assert_eq!(status.receipt.unwrap().result, EndResult::Verified, "{name}");
        let uid = preview.uid().unwrap();
        assert_eq!(
            history.ready_periods(&uid),
            (1, 1),
            "{name}: {:?}",
            history.phases(&uid)
        );
        // Each operator may have taken one before the status let only one of them admit the preview; what is too much is given
        // back (`queue`).
        let held = history.slots(&uid);
        assert!(
            (1..=operators.len()).contains(&held),
            "{name} held {held} slots of one dimension"
        );
    }
    assert_eq!(
        history.most_slots(Dimension::Subject),
        usize::try_from(LIMIT).unwrap(),
        "as many at once as allowed"
    );
    // The same from the API server's side: there were never other slots than the two.
    let key = slots::name(Dimension::Subject, "crowd", 0);
    let prefix = key.trim_end_matches('0');
    let writes = house.writes(before);
    let taken: Vec<_> = writes
        .iter()
        .filter(|w| w.is_done() && w.label() == "create leases")
        .filter(|w| w.name.as_ref().is_some_and(|name| name.starts_with(prefix)))
        .filter(|w| operators.iter().any(|operator| operator.user == w.user))
        .collect();
    let names: BTreeSet<_> = taken.iter().filter_map(|w| w.name.clone()).collect();
    let allowed: BTreeSet<_> = (0..LIMIT).map(|n| format!("{prefix}{n}")).collect();
    assert_eq!(names, allowed);
    // Some take one again that they had given back, because another of their slots was missing.
    assert!(taken.len() >= CROWD, "each took one: {}", taken.len());
    for operator in &operators {
        let wrote = taken.iter().filter(|w| w.user == operator.user).count();
        println!("{} took {wrote} slots", operator.user);
    }
    for preview in &made {
        house.delete(&preview.name_any()).await;
    }
    house.until_empty(patience).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_was_on_its_way_when_its_preview_ended_is_ended_before_anything_is_given_back() {
    late_pod("Fresh", "DELETE namespaces").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_one_whose_cell_is_free_for_the_next_preview_by_then() {
    late_pod("Reuse", "PATCH namespaces").await;
}

/// The pod of a preview that is over comes to be before this write, by which its cell is closed.
async fn late_pod(cells: &str, closed_by: &str) {
    let house = House::take("late-pod", 1, "24h").await;
    let fields = json!({"limits": {"perSubject": 1}, "retention": "24h", "cells": {"mode": cells}});
    house.policy(fields).await;
    let hold = async |label: &str, time| {
        let proxy = Proxy::start(house.client.clone()).await;
        let held = proxy.arm(Trap {
            label: label.to_owned(),
            nth: 0,
            moment: Moment::Before,
            keys: vec![],
            blow: Blow::Delay(time),
        });
        (proxy, held)
    };
    let before = house.mark();
    let (one, pod_let_on) = hold("POST pods", Duration::from_secs(3)).await;
    let first = Operator::ready(&house.post, &Options::alone("slow"), Some(&one)).await;
    let uid = house.preview("late", "anna", None).await.uid().unwrap();
    one.until_seen("POST pods", PATIENCE).await;
    house.delete("late").await;
    // It comes to the end before the pod comes to be, and its first write at the end is held up for longer still.
    let (two, _) = hold(closed_by, Duration::from_secs(6)).await;
    let second = Operator::ready(&house.post, &Options::alone("quick"), Some(&two)).await;
    two.until_seen(closed_by, PATIENCE).await;
    pod_let_on.await.unwrap();
    house.until_gone("late", PATIENCE).await;
    house.until_empty(PATIENCE).await;

    let cell = names::cell(&uid);
    let writes = house.writes(before);
    let done = |label: &str, within: &str| {
        let mut of = writes.iter().filter(|w| w.is_done() && w.label() == label);
        of.rfind(|w| w.namespace.as_deref() == Some(within))
            .map(|w| (w.received, w.answered))
    };
    let (_, made) = done("create pods", &cell).expect("the pod came to be");
    let (released, _) = done("patch pods", &cell).expect("its end was seen");
    let (freed, _) = done("delete leases", vitrine_e2e::operator::SLOTS).expect("its slots were given back");
    assert!(made < released && released < freed, "{made} {released} {freed}");
    assert!(first.runs() && second.runs());
}

/// Who wrote for previews since then.
fn writers(house: &House, since: audit::Mark) -> BTreeSet<String> {
    house
        .writes(since)
        .into_iter()
        .filter(|w| w.user.starts_with("vitrine-e2e:") && !w.is_aside())
        .map(|w| w.user)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_leads_and_the_other_takes_over_when_it_is_killed() {
    let house = House::take("leader", 1, "24h").await;
    let before = house.mark();
    let elect = Options::electing;
    let first = Operator::ready(&house.post, &elect("leader"), None).await;
    let ready = |p: &PreviewSandbox| p.phase() == Phase::Ready;
    house.preview("one", "anna", None).await;
    house.until("one", "it is ready", PATIENCE, ready).await;
    // Ready as well, so that a rollout goes on; and idle.
    let second = Operator::ready(&house.post, &elect("standby"), None).await;
    house.preview("two", "bert", None).await;
    house.until("two", "it is ready", PATIENCE, ready).await;
    assert_eq!(writers(&house, before), BTreeSet::from([first.user.clone()]));

    first.kill();
    let at_kill = house.mark();
    house.preview("three", "cora", None).await;
    // The lease lasts 15 s, and is tried every 2 s.
    house
        .until("three", "it is ready", Duration::from_secs(30), ready)
        .await;
    assert_eq!(writers(&house, at_kill), BTreeSet::from([second.user.clone()]));
    for name in ["one", "two", "three"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;

    // One that goes in order gives leadership up: nobody waits for the lease to run out.
    assert!(second.terminate(Duration::from_secs(5)).success());
    let third = Operator::ready(&house.post, &elect("third"), None).await;
    eventually("the third leads at once", Duration::from_secs(5), async || {
        let holder = house.leader().await;
        if holder.as_deref() == Some("third") {
            Ok(())
        } else {
            Err(format!("{holder:?}"))
        }
    })
    .await;
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_loses_leadership_stands_by_and_leads_again() {
    let house = House::take("stands-by", 1, "24h").await;
    let leads = Options::electing("leads");
    let operator = Operator::ready(&house.post, &leads, None).await;
    let ready = |p: &PreviewSandbox| p.phase() == Phase::Ready;
    house.preview("before", "anna", None).await;
    house.until("before", "it is ready", PATIENCE, ready).await;

    // Somebody else holds the lease, as after a partition; it is never renewed.
    let leases = house.leadership();
    let now = MicroTime(Timestamp::now());
    let taken = json!({"spec": {"holderIdentity": "somebody", "renewTime": now, "acquireTime": now}});
    let params = PatchParams::default();
    leases
        .patch("vitrine-operator", &params, &Patch::Merge(taken))
        .await
        .unwrap();
    eventually("it stands by", Duration::from_secs(10), async || {
        let words = operator.last_words();
        if words.contains("standing by") {
            Ok(())
        } else {
            Err(words)
        }
    })
    .await;
    let at_loss = house.mark();
    house.preview("meanwhile", "bert", None).await;
    // The lease lasts 15 s from when it was seen last.
    let started = house
        .until("meanwhile", "it is ready", Duration::from_secs(40), ready)
        .await;
    let admitted = started.status.unwrap().admitted_at.unwrap().0;
    let made = started.metadata.creation_timestamp.unwrap().0;
    let waited = admitted.duration_since(made);
    println!("nobody led for {waited:#}");
    assert!(
        waited.as_secs() >= 5,
        "it worked while somebody else held the lease: {waited:#}"
    );
    assert_eq!(writers(&house, at_loss), BTreeSet::from([operator.user.clone()]));
    assert!(operator.runs(), "the same process");
    assert_eq!(house.leader().await.as_deref(), Some("leads"));
    for name in ["before", "meanwhile"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}
