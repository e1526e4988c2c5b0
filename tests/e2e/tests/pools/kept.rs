//! What keeps a pool full and sound while nobody asks: the age of its cells, the nodes of their pods, and limits.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use vitrine_crds::{POLICY_NAME, PreviewPolicy, preview_pool::ShortReason};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE},
    operator::{Operator, Options},
};
use vitrine_policies::names;

use crate::{GONE, is_full, offer, pools, ready, retire, until};

/// Each is renewed within a few of the operator's looks at an old one.
const RENEWED: Duration = Duration::from_secs(60);
/// Less than the time after which a cell is looked at even if nothing is told.
const TOLD: Duration = Duration::from_secs(30);
/// Longer than any time after which the operator tries again to take a slot.
const QUIET: Duration = Duration::from_secs(8);

/// The pods that wait and do not go: their uids and nodes.
async fn pods(house: &House) -> Vec<(String, String)> {
    let pods: Api<Pod> = Api::all(house.client.clone());
    let of_pools = ListParams::default().labels(names::POOL_LABEL);
    let pods = pods.list(&of_pools).await.unwrap().items.into_iter();
    let stays = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    stays
        .filter_map(|pod| Some((pod.uid()?, pod.spec?.node_name?)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_was_filled_at_once_is_renewed_for_its_age_and_not_empty_meanwhile() {
    let house = House::take("pools-aging", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-aging"), None).await;
    offer(&house, "pool", 4, json!({"maxAge": "10s"})).await;
    until(&house, "pool", "it is full", is_full).await;
    let first: BTreeSet<_> = pods(&house).await.into_iter().map(|(uid, _)| uid).collect();
    let mut fewest = 4;
    eventually("all that were there at first were renewed", RENEWED, async || {
        let status = pools(&house)
            .get("pool")
            .await
            .map_err(|error| error.to_string())?;
        fewest = fewest.min(status.status.unwrap_or_default().ready);
        let left = pods(&house)
            .await
            .into_iter()
            .filter(|(uid, _)| first.contains(uid));
        match left.count() {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
    // One of four at a time; the next may go while the status does not say yet that the one before is back.
    assert!(fewest >= 2, "{fewest} were ready");
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_on_a_node_that_is_set_aside_is_handed_out_to_nobody_and_made_elsewhere() {
    let house = House::take("pools-aside", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-aside"), None).await;
    offer(&house, "pool", 2, json!({})).await;
    until(&house, "pool", "it is full", is_full).await;
    let there = pods(&house).await;
    let nodes: BTreeSet<_> = there.iter().map(|(_, node)| node.clone()).collect();
    let until_when = Timestamp::from_second(Timestamp::now().as_second() + 600).unwrap();
    let aside: Vec<_> = nodes
        .iter()
        .map(|node| json!({"name": node, "until": until_when.to_string(), "reason": "a test"}))
        .collect();
    let policies: Api<PreviewPolicy> = Api::all(house.client.clone());
    let set = async |aside: serde_json::Value| {
        let patch = Patch::Merge(json!({"status": {"nodesSetAside": aside}}));
        let params = PatchParams::default();
        policies.patch_status(POLICY_NAME, &params, &patch).await.unwrap();
    };
    set(json!(aside)).await;
    // As soon as the operator's watch has it; a preview that was asked for before may have had one.
    eventually("a preview is ready in another pod", GONE, async || {
        house.preview("anna", "anna", None).await;
        let made = house.until("anna", "it is ready", PATIENCE, ready).await;
        let pod = made.status.unwrap().pod.unwrap().uid;
        house.delete("anna").await;
        house.until_gone("anna", GONE).await;
        if there.iter().any(|(uid, _)| *uid == pod) {
            Err("it had one that waited there".to_owned())
        } else {
            Ok(())
        }
    })
    .await;
    eventually("none waits there", TOLD, async || {
        let now = pods(&house).await;
        let stays: Vec<_> = now.iter().filter(|(_, node)| nodes.contains(node)).collect();
        if stays.is_empty() && !now.is_empty() {
            Ok(())
        } else {
            Err(format!("{stays:?} of {now:?}"))
        }
    })
    .await;
    until(&house, "pool", "it is full again", is_full).await;
    set(json!([])).await;
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_pool_is_short_is_told_and_nothing_is_tried_in_vain_meanwhile() {
    let house = House::take("pools-short", 1, "24h").await;
    house
        .policy(json!({"limits": {"perListing": 3}, "pools": {"maxReplicas": 5}, "retention": "24h"}))
        .await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-short"), None).await;
    offer(
        &house,
        "astray",
        1,
        json!({"listingRef": {"name": "nobody-sells-it"}}),
    )
    .await;
    until(&house, "astray", "it says why", |s| {
        s.ready == 0 && s.reason == Some(ShortReason::ListingNotFound)
    })
    .await;
    retire(&house, "astray").await;
    offer(&house, "pool", 5, json!({})).await;
    until(&house, "pool", "it has what its listing may have", |s| {
        s.ready == 3 && s.reason == Some(ShortReason::WaitingForSlot)
    })
    .await;
    let mark = house.mark();
    tokio::time::sleep(QUIET).await;
    let writes = house.writes(mark);
    let by_operator = writes
        .iter()
        .filter(|w| !w.is_aside() && w.user.starts_with("vitrine-e2e:"));
    let labels: Vec<_> = by_operator.map(|w| w.label()).collect();
    let of_slots = |label: &&String| label.ends_with(" leases") || label.ends_with(" namespaces");
    assert_eq!(labels.iter().filter(of_slots).count(), 0, "{labels:?}");
    assert!(labels.len() < 20, "{labels:?}");

    house
        .policy(json!({"limits": {"perListing": 9}, "pools": {"maxReplicas": 4}, "retention": "24h"}))
        .await;
    let most = until(&house, "pool", "it has what a pool may have", |s| {
        s.ready == 4 && s.reason == Some(ShortReason::OutsideEnvelope)
    })
    .await;
    assert!(most.message.unwrap_or_default().contains("maxReplicas"));
    assert_eq!(pods(&house).await.len(), 4);
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}
