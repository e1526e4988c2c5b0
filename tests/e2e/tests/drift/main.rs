//! What somebody changes in a cell: the harmless is put back and the preview lives; the network policy is put back and the
//! preview ends, with every connection that was opened meanwhile.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a03_policy_deleted;

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use vitrine_crds::{Phase, StatusReason};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, Shop, assert_verified, now_ms, together},
    streamer::{STREAMER, silent_since_end},
};
use vitrine_kit::objects;
use vitrine_policies::names;

/// What is promised.
const RESTORED: Duration = Duration::from_secs(5);

fn get(shop: &Shop, cell: &str, what: &[&str]) -> Result<Value, String> {
    let text = shop
        .vitrine
        .try_kubectl(&[&["-n", cell, "get", "-o", "json"], what].concat())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Changes something, and waits until it is as it was, and until an event says so.
async fn restored(shop: &Shop, live: &Live, kind: &str, what: &[&str], part: &str, change: &[&str]) {
    let before = get(shop, &live.cell, what).unwrap().pointer(part).cloned();
    assert!(before.is_some(), "{kind} has no {part}");
    shop.vitrine.break_glass(&[&["-n", &live.cell], change].concat());
    let begun = now_ms();
    eventually(&format!("{kind} is restored"), RESTORED, async || {
        let now = get(shop, &live.cell, what)?;
        if now.pointer(part) == before.as_ref() {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;
    let took = now_ms() - begun;
    eventually("an event tells of it", RESTORED, async || {
        let events = shop.events(&live.name).await;
        let told = events
            .iter()
            .any(|event| event.starts_with("Restored: ") && event.contains(&format!(" the {kind} ")));
        if told { Ok(()) } else { Err(events.join("\n")) }
    })
    .await;
    println!("{kind} ({}) restored after {took} ms", change.join(" "));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_confines_without_the_network_is_restored_with_an_event_and_the_preview_lives() {
    let _together = together().await;
    let shop = Shop::open("drift").await;
    let live = shop.live("page", objects::SERVE, "3m").await;
    let cell = live.cell.clone();
    let pods = r#"{"spec":{"hard":{"count/pods":"9","limits.cpu":"8"}}}"#;
    let quota = ["resourcequota", names::SEAL];
    restored(
        &shop,
        &live,
        "ResourceQuota",
        &quota,
        "/spec/hard",
        &["patch", "resourcequota", names::SEAL, "--type=merge", "-p", pods],
    )
    .await;
    restored(
        &shop,
        &live,
        "ResourceQuota",
        &["resourcequota", names::CLOSED],
        "/spec/hard",
        &["delete", "resourcequota", names::CLOSED],
    )
    .await;
    restored(
        &shop,
        &live,
        "LimitRange",
        &["limitrange", names::SEAL],
        "/spec",
        &["delete", "limitrange", names::SEAL],
    )
    .await;
    let automount = r#"{"automountServiceAccountToken":true}"#;
    let account = ["serviceaccount", names::SERVICE_ACCOUNT];
    restored(
        &shop,
        &live,
        "ServiceAccount",
        &account,
        "/automountServiceAccountToken",
        &[
            "patch",
            "serviceaccount",
            names::SERVICE_ACCOUNT,
            "--type=merge",
            "-p",
            automount,
        ],
    )
    .await;
    restored(
        &shop,
        &live,
        "Namespace",
        &["namespace", &cell],
        "/metadata/labels",
        &["label", "namespace", &cell, "pod-security.kubernetes.io/enforce-"],
    )
    .await;
    // Without its label a watch that selects by label sees the object go: the change must be found all the same.
    for (kind, object) in [
        ("ResourceQuota", quota),
        ("LimitRange", ["limitrange", names::SEAL]),
        ("ServiceAccount", account),
    ] {
        let label = format!("{}-", names::CELL_LABEL);
        restored(
            &shop,
            &live,
            kind,
            &object,
            "/metadata/labels",
            &["label", object[0], object[1], &label],
        )
        .await;
    }
    let status = shop.until("page", "there", RESTORED, |_| true).await;
    assert_eq!(status.phase, Phase::Ready, "{:?}", status.message);
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

async fn seal(shop: &Shop, cell: &str) -> NetworkPolicy {
    shop.within::<NetworkPolicy>(cell).get(names::SEAL).await.unwrap()
}

/// Breaks the seal of a preview; it must be restored while the pod ends, and the preview must end because of it.
async fn ends(name: &str, breaks: impl Fn(&Shop, &Live)) {
    let _together = together().await;
    let shop = Shop::open(name).await;
    let live = shop.live(name, STREAMER, "3m").await;
    let spec = seal(&shop, &live.cell).await.spec;
    let (before, begun) = (shop.vitrine.newest_hit(), now_ms());
    breaks(&shop, &live);
    let policies = shop.within::<NetworkPolicy>(&live.cell);
    eventually("the seal is restored", RESTORED, async || {
        let list = policies.list(&kube::api::ListParams::default()).await;
        let list = list.map_err(|error| error.to_string())?.items;
        // A cell that is being removed already was restored before: its policies go last.
        match list.as_slice() {
            [only] if only.spec == spec => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let restored = now_ms() - begun;
    let ending = |s: &vitrine_crds::PreviewSandboxStatus| s.phase == Phase::Ending || s.phase.is_terminal();
    shop.until(name, "ending", RESTORED, ending).await;
    let told = now_ms() - begun;
    let over = shop.over(name).await;
    println!(
        "{name}: restored after {restored} ms, told after {told} ms, nothing left after {} ms",
        now_ms() - begun
    );
    assert_verified(&over, StatusReason::SealBroken);
    silent_since_end(&shop, &live, before).await;
    shop.close().await;
}

fn patch_seal(shop: &Shop, live: &Live, how: &str, patch: &str) {
    let seal = ["-n", &live.cell, "patch", "networkpolicy", names::SEAL];
    shop.vitrine
        .break_glass(&[&seal[..], &[how, "-p", patch]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_network_policy_is_restored_and_the_preview_ends() {
    ends("emptied", |shop, live| {
        let patch = r#"{"spec":{"ingress":null,"egress":null}}"#;
        patch_seal(shop, live, "--type=merge", patch);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_widened_network_policy_is_restored_and_the_preview_ends() {
    ends("widened", |shop, live| {
        let patch = r#"[{"op":"add","path":"/spec/egress/-","value":{}}]"#;
        patch_seal(shop, live, "--type=json", patch);
    })
    .await;
}

/// What came in while its quota was away is counted only once the controller-manager counts everything anew, every five minutes: so here it
/// is counted by hand.
#[tokio::test(flavor = "multi_thread")]
async fn more_in_a_cell_than_its_own_ends_the_preview() {
    ends("planted", |shop, live| {
        let counted = r#"{"status":{"used":{"count/secrets":"1"}}}"#;
        let quota = ["-n", &live.cell, "patch", "resourcequota", names::CLOSED];
        let how = ["--subresource=status", "--type=merge", "-p", counted];
        shop.vitrine.break_glass(&[&quota[..], &how].concat());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_network_policy_is_removed_and_the_preview_ends() {
    ends("foreign", |shop, live| {
        shop.vitrine.break_glass_create(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "foreign", "namespace": live.cell},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}
        }));
    })
    .await;
}
