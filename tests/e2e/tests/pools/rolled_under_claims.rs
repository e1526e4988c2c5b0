//! Claims go on while what their previews are made of changes: the listing's image, the policy, the operator itself.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use vitrine_crds::{POLICY_NAME, PreviewPolicy, SkuListing};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE},
    operator::{Operator, Options, Post},
    soak,
};
use vitrine_policies::names;

use crate::{GONE, is_full, offer, ready, retire, until};

/// Cells that wait.
const CELLS: i32 = 12;
/// Visitors at once, so that the machine's speed sets the pace: at a pace of ours a slow machine had fallen behind while nothing was warm,
/// every slot was waited for, and the pool gave way to those who wait for good.
const AT_ONCE: usize = 6;
/// What the listing's image is after its change.
const IMAGE: &str =
    "vitrine.local/stub@sha256:2222222222222222222222222222222222222222222222222222222222222222";
/// What every preview must find shut after the policy's change.
const TARGET: &str = "203.0.113.11:80";
/// Vitrine's own image after the upgrade.
const OPERATOR: &str =
    "vitrine.local/operator@sha256:3333333333333333333333333333333333333333333333333333333333333333";
/// What the pod of a preview says of each change, in their order.
const CHANGES: [&str; 3] = [IMAGE, TARGET, OPERATOR];

/// One claim, once it was ready.
struct Claim {
    name: String,
    /// How many of the changes were made before it was created.
    after: usize,
    /// How many of them its pod is made by, the first one first.
    made_by: usize,
    warm: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_go_on_while_listing_policy_and_operator_change_and_none_gets_what_was_before() {
    let (pause, each) = if soak() {
        (Duration::from_millis(100), 100)
    } else {
        (Duration::from_millis(250), 8)
    };
    let house = House::take("pools-rolled", 1, "24h").await;
    let first = Operator::ready(&house.post, &Options::electing("before"), None).await;
    offer(&house, "pool", CELLS, json!({})).await;
    until(&house, "pool", "it is full", is_full).await;
    let (changes, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // The number of the last change after which some claim was warm.
    let warm_after = AtomicUsize::new(0);
    let (stop, stopped) = watch::channel(false);

    let arrivals = stream::unfold(0, |number| {
        let stopped = stopped.clone();
        async move {
            tokio::time::sleep(pause).await;
            (!*stopped.borrow()).then_some((number, number + 1))
        }
    });
    let one = async |number: usize| {
        let name = format!("claim-{number}");
        let after = changes.load(Ordering::SeqCst);
        house.preview(&name, &name, None).await;
        let claim = served_as(&house, name, after).await;
        served.fetch_add(1, Ordering::SeqCst);
        if claim.warm {
            warm_after.fetch_max(claim.after, Ordering::SeqCst);
        }
        house.delete(&claim.name).await;
        claim
    };
    let claims = arrivals.map(one).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    let many = async || {
        let before = served.load(Ordering::SeqCst);
        eventually("so many more claims are served", PATIENCE, async || {
            match served.load(Ordering::SeqCst) - before {
                enough if enough >= each => Ok(()),
                few => Err(format!("{few} of {each}")),
            }
        })
        .await;
    };
    let change = async || {
        let after = changes.fetch_add(1, Ordering::SeqCst) + 1;
        many().await;
        eventually("a claim is warm again", PATIENCE, async || {
            match warm_after.load(Ordering::SeqCst) {
                last if last >= after => Ok(()),
                last => Err(format!("after {last} of {after} changes")),
            }
        })
        .await;
        many().await;
    };
    let trouble = async {
        many().await;
        let image = Patch::Merge(json!({"spec": {"preview": {"image": IMAGE}}}));
        let listings: Api<SkuListing> = Api::namespaced(house.client.clone(), &house.shop);
        let patched = listings.patch(LISTING, &PatchParams::default(), &image).await;
        patched.unwrap();
        change().await;
        let targets = Patch::Merge(json!({"spec": {"isolation": {"internet": [TARGET]}}}));
        let policies: Api<PreviewPolicy> = Api::all(house.client.clone());
        let patched = policies
            .patch(POLICY_NAME, &PatchParams::default(), &targets)
            .await;
        patched.unwrap();
        change().await;
        let new = Post {
            image: OPERATOR.to_owned(),
            ..house.post.clone()
        };
        let second = Operator::ready(&new, &Options::electing("after"), None).await;
        first.terminate(PATIENCE);
        change().await;
        stop.send_replace(true);
        second
    };
    let (claims, _second) = tokio::join!(claims, trouble);

    for claim in &claims {
        assert!(
            claim.made_by >= claim.after,
            "{} was created after {} changes, and its pod was made by {}",
            claim.name,
            claim.after,
            claim.made_by
        );
    }
    for changes in 0..=CHANGES.len() {
        let of: Vec<_> = claims.iter().filter(|claim| claim.after == changes).collect();
        let warm = of.iter().filter(|claim| claim.warm).count();
        println!("  after {changes} changes: {} claims, {warm} warm", of.len());
        assert!(
            warm > 0,
            "after {changes} changes no claim of {} was warm",
            of.len()
        );
    }
    until(&house, "pool", "it is full again", is_full).await;
    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

/// Waits until a claim is ready, which it must be, and looks at what it got.
async fn served_as(house: &House, name: String, after: usize) -> Claim {
    let preview = house.until(&name, "it is ready", PATIENCE, ready).await;
    let status = preview.status.unwrap();
    let pods: Api<Pod> = Api::namespaced(house.client.clone(), &status.cell.unwrap());
    let pod = pods.get(names::POD).await.unwrap();
    assert_eq!(pod.metadata.uid, status.pod.map(|pod| pod.uid), "{name}");
    let made = serde_json::to_string(&pod.spec).unwrap();
    Claim {
        name,
        after,
        made_by: CHANGES.iter().take_while(|change| made.contains(*change)).count(),
        warm: status.slots.len() == 1,
    }
}
