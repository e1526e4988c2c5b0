//! Pools: previews that are ready before anybody asks for them.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod kept;
mod rolled_under_claims;
mod widened;

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::NetworkPolicy,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use vitrine_crds::{
    POLICY_NAME, Phase, PreviewPolicy, PreviewPool, PreviewPoolStatus, PreviewSandbox, conditions,
    preview_pool::{FULL, ShortReason},
    preview_sandbox::TrustLevel,
};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE},
    operator::{self, Operator, Options},
};
use vitrine_kit::{audit, objects};
use vitrine_policies::{
    names,
    slots::{self, Dimension},
};

/// A namespace takes its time to go.
const GONE: Duration = Duration::from_secs(60);

/// Less than the time after which pools are looked at even if nothing is told.
const TOLD: Duration = Duration::from_secs(15);

fn pools(house: &House) -> Api<PreviewPool> {
    Api::namespaced(house.client.clone(), &house.shop)
}

async fn offer(house: &House, name: &str, replicas: i32, more: Value) {
    let mut pool = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": name},
        "spec": {"listingRef": {"name": LISTING}, "replicas": replicas, "refill": {"perSecond": 50, "burst": 50}}
    });
    if let (Some(spec), Value::Object(more)) = (pool["spec"].as_object_mut(), more) {
        spec.extend(more);
    }
    let pool = serde_json::from_value(pool).unwrap();
    pools(house).create(&PostParams::default(), &pool).await.unwrap();
}

async fn change(house: &House, name: &str, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    pools(house)
        .patch(name, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

async fn retire(house: &House, name: &str) {
    let gone = pools(house).delete(name, &DeleteParams::default()).await;
    gone.unwrap();
}

async fn until(
    house: &House,
    name: &str,
    what: &str,
    wanted: impl Fn(&PreviewPoolStatus) -> bool,
) -> PreviewPoolStatus {
    within(house, name, what, GONE, wanted).await
}

async fn within(
    house: &House,
    name: &str,
    what: &str,
    patience: Duration,
    wanted: impl Fn(&PreviewPoolStatus) -> bool,
) -> PreviewPoolStatus {
    eventually(&format!("pool {name}: {what}"), patience, async || {
        let pool = pools(house).get(name).await.map_err(|error| error.to_string())?;
        let status = pool.status.unwrap_or_default();
        if wanted(&status) {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

/// The one cell in which a pod waits that does not go, its epoch, and the network policies there.
async fn waiting(house: &House) -> Result<(String, String, Vec<String>), String> {
    let mut found = vec![];
    for (cell, record) in house.cells().await {
        let pods: Api<Pod> = Api::namespaced(house.client.clone(), &cell);
        let pod = pods
            .get_opt(names::POD)
            .await
            .map_err(|error| error.to_string())?;
        if pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let policies: Api<NetworkPolicy> = Api::namespaced(house.client.clone(), &cell);
            let policies = policies.list_metadata(&ListParams::default()).await;
            let policies = policies.map_err(|error| error.to_string())?.items;
            let policies = policies.iter().map(ResourceExt::name_any).collect();
            found.push((cell, record.epoch, policies));
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        _ => Err(format!("{found:?}")),
    }
}

/// What `kubectl wait --for=condition=Full` waits for.
fn is_full(status: &PreviewPoolStatus) -> bool {
    conditions::is_true(&status.conditions, FULL)
}

fn ready(preview: &PreviewSandbox) -> bool {
    preview.phase() == Phase::Ready
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_ready_at_once_in_a_cell_that_waited_and_the_pool_is_filled_again() {
    let house = House::take("pools", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools"), None).await;
    offer(&house, "pool", 3, json!({})).await;
    let full = until(&house, "pool", "it is full", |s| s.ready == 3).await;
    assert_eq!(
        (full.replicas, full.claimed, full.reason),
        (3, 0, None),
        "{full:?}"
    );
    let waiting: BTreeSet<_> = house.cells().await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(waiting.len(), 3);

    let mark = house.mark();
    let begun = Instant::now();
    let made = house.preview("warm", "anna", None).await;
    let live = house.until("warm", "it is ready", PATIENCE, ready).await;
    println!("ready after {} ms", begun.elapsed().as_millis());
    let status = live.status.unwrap();
    assert!(waiting.contains(status.cell.as_ref().unwrap()), "{status:?}");
    assert!(status.isolation.is_some() && status.url.is_some());
    // What its listing's previews have in common, its cell holds.
    let dimensions: Vec<_> = status
        .slots
        .iter()
        .map(|slot| slots::parse(slot).unwrap().0)
        .collect();
    assert_eq!(dimensions, [Dimension::Subject]);
    let again = within(&house, "pool", "it is full again", TOLD, |s| {
        s.ready == 3 && s.claimed == 1
    })
    .await;
    assert_eq!(again.reason, None);
    let cell = status.cell.clone().unwrap();
    let concerned = ["warm", cell.as_str(), status.slots[0].as_str()];
    let of_preview = |w: &&audit::Write| {
        let named = [&w.name, &w.namespace].map(|name| name.as_deref().unwrap_or_default());
        let own = w.user.starts_with("vitrine-e2e:") && named.iter().any(|name| concerned.contains(name));
        w.is_done() && !w.is_aside() && own
    };
    let labels = || -> Vec<_> {
        let writes = house.writes(mark);
        writes
            .iter()
            .filter(of_preview)
            .map(audit::Write::label)
            .collect()
    };
    let mut claim = labels();
    let told = claim
        .iter()
        .position(|label| label == "update previewsandboxes/status");
    claim.truncate(told.unwrap() + 1);
    println!("until {} is ready: {claim:?}", made.name_any());
    assert!(claim.len() <= 4, "{claim:?}");

    house.delete("warm").await;
    house.until_gone("warm", PATIENCE).await;
    until(&house, "pool", "nobody has any", |s| {
        s.claimed == 0 && s.ready == 3
    })
    .await;
    let free = house.cells().await;
    let used = free
        .iter()
        .find(|(name, _)| *name == cell)
        .map(|(_, record)| record);
    assert!(
        used.is_some_and(|record| record.uses == 1 && record.tenant.is_none()),
        "{free:?}"
    );
    // And the pod for the next preview, which another cell of the pool has got here.
    let life = labels();
    println!("its whole life: {life:?}");
    assert!(life.len() < 11, "{life:?}");
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_cell_is_used_again_a_pool_has_a_new_one_for_each_preview_and_no_more() {
    let house = House::take("pools-fresh", 1, "24h").await;
    house
        .policy(json!({"limits": {"perSubject": 1}, "cells": {"mode": "Fresh"}, "retention": "24h"}))
        .await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-fresh"), None).await;
    let mark = house.mark();
    offer(&house, "pool", 2, json!({})).await;
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let mut had = BTreeSet::new();
    for name in ["one", "two", "three"] {
        until(&house, "pool", "it is full", |s| s.ready == 2 && s.claimed == 0).await;
        house.preview(name, name, None).await;
        let status = house
            .until(name, "it is ready", PATIENCE, ready)
            .await
            .status
            .unwrap();
        assert_eq!(status.slots.len(), 1, "it was warm: {status:?}");
        // A name that is free again may be given again, to another namespace.
        let cell = namespaces.get_metadata(&status.cell.unwrap()).await.unwrap();
        assert!(had.insert(cell.uid().unwrap()), "nobody had its cell before");
        house.delete(name).await;
        house.until_gone(name, PATIENCE).await;
    }
    until(&house, "pool", "it is full again", |s| {
        s.ready == 2 && s.claimed == 0
    })
    .await;
    let made = house.writes(mark);
    let made = made
        .iter()
        .filter(|w| w.is_done() && w.label() == "create namespaces")
        .count();
    assert_eq!(made, 5, "two that wait, and one for each preview");
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_drained_lets_previews_be_made_cold() {
    let house = House::take("pools-drained", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-drained"), None).await;
    offer(&house, "pool", 2, json!({})).await;
    until(&house, "pool", "it is full", |s| s.ready == 2).await;
    change(&house, "pool", json!({"paused": true})).await;
    for name in ["one", "two", "three"] {
        house.preview(name, name, None).await;
        house.until(name, "it is ready", PATIENCE, ready).await;
    }
    let status = until(&house, "pool", "it is drained", |s| s.claimed == 2).await;
    assert_eq!(
        (status.ready, status.reason, is_full(&status)),
        (0, Some(ShortReason::Paused), false),
        "{status:?}"
    );
    let third = house.previews().get("three").await.unwrap().status.unwrap();
    assert_eq!(third.slots.len(), 4, "it was made cold: {third:?}");
    let admitted = conditions::find(&third.conditions, conditions::types::ADMITTED).unwrap();
    assert!(
        admitted.message.contains("its pool had none ready"),
        "{admitted:?}"
    );
    retire(&house, "pool").await;
    for name in ["one", "two", "three"] {
        house.delete(name).await;
    }
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_waits_is_made_anew_once_what_confines_it_was_changed() {
    let house = House::take("pools-opened", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-opened"), None).await;
    offer(&house, "pool", 1, json!({})).await;
    until(&house, "pool", "it is full", |s| s.ready == 1).await;
    let own = DeleteParams::default();
    let foreign: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "foreign"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
    }))
    .unwrap();
    for planted in [false, true] {
        let (cell, before, sealing) = waiting(&house).await.unwrap();
        let policies: Api<NetworkPolicy> = Api::namespaced(house.client.clone(), &cell);
        if planted {
            policies.create(&PostParams::default(), &foreign).await.unwrap();
        } else {
            policies.delete(&sealing[0], &own).await.unwrap();
        }
        let what = format!("another pod waits than the one of {cell} (planted: {planted})");
        // Less than the time after which a cell is looked at even if nothing is told.
        eventually(&what, TOLD, async || {
            let (cell, epoch, policies) = waiting(&house).await?;
            if epoch != before && policies == [names::SEAL] {
                Ok(())
            } else {
                Err(format!("{cell} {epoch} {policies:?}"))
            }
        })
        .await;
        until(&house, "pool", "it is full again", |s| s.ready == 1).await;
    }
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_nobody_gives_way_to_previews_that_wait() {
    let house = House::take("pools-give-way", 1, "24h").await;
    house
        .policy(json!({"limits": {"perListing": 3}, "retention": "24h"}))
        .await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-give-way"), None).await;
    offer(&house, "pool", 5, json!({})).await;
    until(&house, "pool", "it has what its listing may have", |s| {
        s.ready == 3 && s.reason == Some(ShortReason::WaitingForSlot)
    })
    .await;
    // A subject of another level never gets a cell of this pool, and there is no slot of the listing left for it.
    let mut known = objects::preview("known", LISTING, "anna", None);
    known.spec.trust_level = TrustLevel::SignedIn;
    house.create(&known).await;
    let known = house.until("known", "it is ready", GONE, ready).await;
    assert_eq!(known.status.unwrap().slots.len(), 4, "it was made cold");
    let given = until(&house, "pool", "one has given way", |s| s.ready == 2).await;
    assert!(
        matches!(
            given.reason,
            Some(ShortReason::WaitingForSlot | ShortReason::Refilling | ShortReason::GivesWay)
        ),
        "{given:?}"
    );
    house.delete("known").await;
    until(&house, "pool", "it has all of them again", |s| s.ready == 3).await;
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_no_cell_of_a_pool_and_the_pool_itself() {
    let house = House::take("pools-stopped", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-stopped"), None).await;
    offer(&house, "pool", 3, json!({})).await;
    until(&house, "pool", "it is full", |s| s.ready == 3).await;
    house.preview("live", "anna", None).await;
    house.until("live", "it is ready", PATIENCE, ready).await;
    let done = Command::new(operator::program())
        .args(["drain", "--timeout", "60s"])
        .env("KUBECONFIG", house.cluster.kubeconfig())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    house.until_empty(GONE).await;
    let stopped = until(&house, "pool", "it says why", |s| {
        s.reason == Some(ShortReason::Paused)
    })
    .await;
    assert!(stopped.message.as_ref().unwrap().contains("drain"), "{stopped:?}");
    // As after the time that the drain has asked for.
    let over = Patch::Merge(json!({"status": {"drainingUntil": null}}));
    let policies: Api<PreviewPolicy> = Api::all(house.client.clone());
    policies
        .patch_status(POLICY_NAME, &PatchParams::default(), &over)
        .await
        .unwrap();
    until(&house, "pool", "it is filled again", |s| s.ready == 3).await;
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_outlives_its_operator_and_two_operators_fill_it_once() {
    let house = House::take("pools-again", 1, "24h").await;
    {
        let _first = Operator::ready(&house.post, &Options::alone("pools-again"), None).await;
        offer(&house, "pool", 4, json!({})).await;
        until(&house, "pool", "it is full", |s| s.ready == 4).await;
    }
    let uids = async || {
        let pods: Api<Pod> = Api::all(house.client.clone());
        let of_pools = ListParams::default().labels(names::POOL_LABEL);
        let pods = pods.list_metadata(&of_pools).await.unwrap();
        pods.items
            .iter()
            .filter_map(ResourceExt::uid)
            .collect::<BTreeSet<_>>()
    };
    let before = uids().await;
    let _second = Operator::ready(&house.post, &Options::alone("pools-again-2"), None).await;
    let _third = Operator::ready(&house.post, &Options::alone("pools-again-3"), None).await;
    // Each of the two finds them as they are.
    for name in ["one", "two", "three"] {
        eventually("a preview is ready in a cell that waited", GONE, async || {
            house.preview(name, name, None).await;
            let made = house.until(name, "it is ready", PATIENCE, ready).await;
            let status = made.status.unwrap();
            if before.contains(&status.pod.unwrap().uid) {
                return Ok(());
            }
            house.delete(name).await;
            house.until_gone(name, PATIENCE).await;
            Err("it was made cold".to_owned())
        })
        .await;
    }
    until(&house, "pool", "it is full again", |s| {
        s.ready == 4 && s.claimed == 3 && s.warming == 0
    })
    .await;
    assert_eq!(uids().await.len(), 7, "no more than are wanted");
    retire(&house, "pool").await;
    for name in ["one", "two", "three"] {
        house.delete(name).await;
    }
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_scaled_and_rolled_and_what_previews_have_stays() {
    let house = House::take("pools-scaled", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-scaled"), None).await;
    offer(&house, "pool", 4, json!({})).await;
    until(&house, "pool", "it is full", |s| s.ready == 4 && is_full(s)).await;
    house.preview("stays", "stays", None).await;
    let before = house
        .until("stays", "it is ready", PATIENCE, ready)
        .await
        .status
        .unwrap();
    change(&house, "pool", json!({"replicas": 2})).await;
    let small = until(&house, "pool", "it is smaller", |s| {
        s.ready == 2 && s.warming == 0
    })
    .await;
    let since = |s: &PreviewPoolStatus| s.oldest.as_ref().unwrap().0;
    // So that those that come can be told from those that are there, whose time is told in seconds.
    eventually("they have waited for a while", GONE, async || {
        let waited = Timestamp::now().duration_since(since(&small));
        if waited > SignedDuration::from_secs(6) {
            Ok(())
        } else {
            Err(waited.to_string())
        }
    })
    .await;

    let pods: Api<Pod> = Api::all(house.client.clone());
    let uids = async || {
        let pods = pods
            .list_metadata(&ListParams::default().labels("vitrine.dev/pool"))
            .await
            .unwrap();
        pods.items
            .iter()
            .filter_map(ResourceExt::uid)
            .collect::<BTreeSet<_>>()
    };
    let old = uids().await;
    // The listing's own words are other ones now.
    let listings: Api<vitrine_crds::SkuListing> = Api::namespaced(house.client.clone(), &house.shop);
    // Another one than an earlier run has left.
    let new = format!("--of={}", before.pod.as_ref().unwrap().uid);
    let args = Patch::Merge(json!({"spec": {"preview": {"args": [new]}}}));
    listings
        .patch(LISTING, &PatchParams::default(), &args)
        .await
        .unwrap();
    eventually("those that wait are other ones", GONE, async || {
        let kept: Vec<_> = uids().await.intersection(&old).cloned().collect();
        let own = before.pod.as_ref().unwrap().uid.clone();
        if kept == [own] {
            Ok(())
        } else {
            Err(format!("{kept:?}"))
        }
    })
    .await;
    let full = until(&house, "pool", "it is full of them", |s| {
        s.ready == 2 && since(s) > since(&small) + SignedDuration::from_secs(3)
    })
    .await;
    assert_eq!(full.reason, None, "{full:?}");
    let after = house.previews().get("stays").await.unwrap().status.unwrap();
    assert_eq!((after.phase, after.pod), (Phase::Ready, before.pod));
    house.preview("new", "new", None).await;
    let new = house
        .until("new", "it is ready", PATIENCE, ready)
        .await
        .status
        .unwrap();
    assert_eq!(new.slots.len(), 1, "it was ready at once: {new:?}");
    retire(&house, "pool").await;
    for name in ["stays", "new"] {
        house.delete(name).await;
    }
    house.until_empty(GONE).await;
}
