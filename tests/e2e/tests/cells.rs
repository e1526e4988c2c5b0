//! A cell goes from preview to preview, and only to one that may have it.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod, ResourceQuota};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use vitrine_crds::{Phase, PreviewSandbox, PreviewSandboxStatus, StatusReason, preview_sandbox::TrustLevel};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE, strip},
    operator::{Operator, Options},
};
use vitrine_kit::objects;
use vitrine_policies::names;

/// A sweep comes every 15 s, and a namespace takes its time to go.
const SWEPT: Duration = Duration::from_secs(40);

async fn rules(house: &House, cells: Value) {
    let fields = json!({"limits": {"perSubject": 1}, "retention": "24h", "cells": cells});
    house.policy(fields).await;
}

fn ready(preview: &PreviewSandbox) -> bool {
    preview.phase() == Phase::Ready
}

async fn ready_status(house: &House, name: &str) -> PreviewSandboxStatus {
    house
        .until(name, "it is ready", PATIENCE, ready)
        .await
        .status
        .unwrap()
}

/// Lives for a second; its last status.
async fn life(house: &House, name: &str) -> PreviewSandboxStatus {
    house.preview(name, name, Some("1s")).await;
    let over = |preview: &PreviewSandbox| preview.phase().is_terminal();
    house.until(name, "it ends", PATIENCE, over).await.status.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_has_the_cell_of_one_that_is_over_with_another_epoch_and_another_pod() {
    let house = House::take("cells", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells"), None).await;
    let mark = house.mark();
    let first = life(&house, "first").await;
    let free = house.cells().await;
    assert_eq!(free.len(), 1);
    let (name, record) = &free[0];
    assert_eq!(Some(name), first.cell.as_ref());
    assert_eq!((&record.tenant, record.uses), (&None, 1));
    let second = life(&house, "second").await;
    assert_eq!(second.phase, Phase::Ended, "{second:?}");
    assert_eq!(second.cell, first.cell);
    let (before, after) = (first.pod.unwrap(), second.pod.unwrap());
    assert!(before.uid != after.uid && before.nonce != after.nonce);
    // What confines it is the same, and was made once.
    assert_eq!(first.seal, second.seal);
    let writes = house.writes(mark);
    let made = |label: &str| {
        writes
            .iter()
            .filter(|w| w.is_done() && w.label() == label)
            .count()
    };
    assert_eq!((made("create namespaces"), made("delete namespaces")), (1, 0));
    assert_eq!((made("create networkpolicies"), made("create pods")), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_that_live_at_once_have_a_cell_each() {
    let house = House::take("cells-at-once", 1, "24h").await;
    let operators = join_all(["one", "two", "three"].map(|name| {
        let options = Options::alone(name);
        let house = &house;
        async move { Operator::ready(&house.post, &options, None).await }
    }))
    .await;
    for round in 0..3 {
        let names: Vec<_> = (0..8).map(|number| format!("r{round}-p{number}")).collect();
        for name in &names {
            house.preview(name, name, None).await;
        }
        let live = join_all(names.iter().map(|name| ready_status(&house, name))).await;
        let had: BTreeSet<_> = live.iter().map(|status| status.cell.clone().unwrap()).collect();
        assert_eq!(had.len(), names.len(), "round {round}: {had:?}");
        for name in &names {
            house.delete(name).await;
        }
        house.until_empty(PATIENCE).await;
        let free = house.cells().await;
        // Nobody made one where one was free, as far as the operators' watches could tell.
        assert!((8..=11).contains(&free.len()), "round {round}: {}", free.len());
        assert!(free.iter().all(|(_, record)| record.tenant.is_none()), "{free:?}");
    }
    assert!(operators.iter().all(Operator::runs));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_trust_level_another_size_or_another_seller_gets_another_cell() {
    let house = House::take("cells-lots", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-lots"), None).await;
    let first = life(&house, "first").await.cell;
    let mut known = objects::preview("known", LISTING, "known", Some("1m"));
    known.spec.trust_level = TrustLevel::SignedIn;
    let mut small = objects::preview("small", LISTING, "small", Some("1m"));
    small.spec.size =
        serde_json::from_value(json!({"cpu": "5m", "memory": "1Mi", "ephemeralStorage": "512Ki"})).unwrap();
    for preview in [known, small] {
        house.create(&preview).await;
        let had = ready_status(&house, &preview.name_any()).await.cell;
        assert_ne!(had, first, "{}", preview.name_any());
    }
    house.preview("alike", "alike", None).await;
    assert_eq!(ready_status(&house, "alike").await.cell, first);
    // Its own listing, with the same image and size, but another seller.
    house.list_of("rivals", "rival").await;
    house.delete("alike").await;
    house.until_gone("alike", PATIENCE).await;
    house
        .create(&objects::preview("rivals", "rivals", "rivals", Some("1m")))
        .await;
    assert_ne!(ready_status(&house, "rivals").await.cell, first);
}

/// While it was missing anything may have been put there.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_whose_quota_was_missing_for_a_while_is_nobody_s_after_the_preview_that_has_it() {
    let house = House::take("cells-mended", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-mended"), None).await;
    house.preview("mended", "mended", None).await;
    let cell = ready_status(&house, "mended").await.cell.unwrap();
    let quotas: Api<ResourceQuota> = Api::namespaced(house.client.clone(), &cell);
    let before = quotas.get(names::CLOSED).await.unwrap().uid();
    quotas
        .delete(names::CLOSED, &DeleteParams::default())
        .await
        .unwrap();
    eventually("it is put back", PATIENCE, async || {
        match quotas.get_opt(names::CLOSED).await {
            Ok(Some(quota)) if quota.uid() != before => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    house.delete("mended").await;
    house.until_gone("mended", PATIENCE).await;
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let left = namespaces.get_opt(&cell).await.unwrap();
    assert!(
        left.is_none_or(|left| left.metadata.deletion_timestamp.is_some()),
        "it is used again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_removed_after_an_end_that_leaves_a_doubt() {
    let house = House::take("cells-doubt", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-doubt"), None).await;
    house.preview("lost", "lost", None).await;
    let cell = ready_status(&house, "lost").await.cell.unwrap();
    let pods: Api<Pod> = Api::namespaced(house.client.clone(), &cell);
    pods.delete(names::POD, &DeleteParams::default()).await.unwrap();
    let over = |preview: &PreviewSandbox| preview.phase().is_terminal();
    let status = house
        .until("lost", "it ends", PATIENCE, over)
        .await
        .status
        .unwrap();
    assert_eq!(status.reason, Some(StatusReason::PodLost));
    assert!(house.cells().await.iter().all(|(name, _)| *name != cell));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_used_as_often_as_the_policy_says_and_kept_as_long() {
    let house = House::take("cells-kept", 1, "24h").await;
    rules(&house, json!({"maxUses": 2, "keepFree": "5s"})).await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-kept"), None).await;
    let mut had = vec![];
    for name in ["one", "two", "three"] {
        had.push(life(&house, name).await.cell.unwrap());
    }
    assert_eq!(had[0], had[1]);
    assert_ne!(had[1], had[2], "it was used twice");
    eventually("the third's is not kept for ever", SWEPT, async || {
        let left = house.cells().await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    rules(&house, json!({"mode": "Fresh"})).await;
    let fresh = life(&house, "fresh").await.cell.unwrap();
    assert!(house.cells().await.iter().all(|(name, _)| *name != fresh));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_in_a_free_cell_is_put_back_or_the_cell_is_removed_before_a_pod_is_made() {
    let house = House::take("cells-drift", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-drift"), None).await;
    let cell = life(&house, "first").await.cell.unwrap();
    let ranges: Api<LimitRange> = Api::namespaced(house.client.clone(), &cell);
    let wide = Patch::Merge(json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "64"}}]}}));
    ranges
        .patch(names::SEAL, &PatchParams::default(), &wide)
        .await
        .unwrap();
    let mark = house.mark();
    let second = life(&house, "second").await;
    assert_eq!(
        (second.phase, second.cell.as_ref()),
        (Phase::Ended, Some(&cell)),
        "{second:?}"
    );
    let writes = house.writes(mark);
    let when = |label: &str| {
        let mut of = writes.iter().filter(|w| w.is_done() && w.label() == label);
        of.find(|w| w.namespace.as_ref() == Some(&cell) && w.user.starts_with("vitrine-e2e:"))
            .unwrap()
            .received
    };
    assert!(when("update limitranges") < when("create pods"));
    assert!(
        house
            .cells()
            .await
            .iter()
            .all(|(name, record)| *name != cell || record.going),
        "nobody has it after that"
    );

    let cell = life(&house, "another").await.cell.unwrap();
    // A network policy beside ours opens what ours shuts.
    let policies: Api<k8s_openapi::api::networking::v1::NetworkPolicy> =
        Api::namespaced(house.client.clone(), &cell);
    let open = serde_json::from_value(json!({
        "metadata": {"name": "open"}, "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
    }));
    policies
        .create(&kube::api::PostParams::default(), &open.unwrap())
        .await
        .unwrap();
    let mark = house.mark();
    let third = life(&house, "third").await;
    assert_eq!(
        (third.phase, third.reason),
        (Phase::Failed, Some(StatusReason::SealBroken)),
        "{third:?}"
    );
    let writes = house.writes(mark);
    assert!(
        !writes
            .iter()
            .any(|w| w.label() == "create pods" && w.namespace.as_ref() == Some(&cell))
    );
    assert!(house.cells().await.iter().all(|(name, _)| *name != cell));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_that_somebody_took_for_a_preview_that_is_over_or_gone_is_nobodys_again() {
    let house = House::take("cells-taken", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("cells-taken"), None).await;
    let over = house.preview("over", "over", Some("1s")).await;
    let ended = |preview: &PreviewSandbox| preview.phase().is_terminal();
    house.until("over", "it ends", PATIENCE, ended).await;
    let gone = house.preview("gone", "gone", None).await;
    let gone_cell = ready_status(&house, "gone").await.cell.unwrap();
    let free = life(&house, "beside").await.cell.unwrap();
    // As an operator that was slower than the end does it.
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let claim = Patch::Merge(json!({"metadata": {"annotations": {
        names::PREVIEW_ANNOTATION: format!("{}/over", house.shop), names::PREVIEW_UID_ANNOTATION: over.uid().unwrap()
    }}}));
    namespaces
        .patch(&free, &PatchParams::default(), &claim)
        .await
        .unwrap();
    strip(&house.previews(), "gone").await;
    eventually("one is free, the other is removed", SWEPT, async || {
        let left = house.cells().await;
        let right = left
            .iter()
            .all(|(name, record)| name == &free && record.tenant.is_none());
        if right && left.len() == 1 {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    assert!(gone.uid().is_some() && gone_cell != free);
    for name in ["over", "beside"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}
