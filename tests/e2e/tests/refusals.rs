//! A preview that asks for more than the platform allows is refused at its creation, one that asks for more than its listing
//! offers within a second; both are told which field, what it asked and what is allowed, and nothing is made for them.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace};
use kube::{
    Api, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use vitrine_crds::{Phase, PreviewSandbox, StatusReason, conditions};
use vitrine_e2e::installed::{Shop, alone, installed, now_ms, together};
use vitrine_kit::objects;
use vitrine_policies::names;

/// A preview of the shop's page with these fields more.
fn wishing(shop: &Shop, name: &str, wish: Value) -> PreviewSandbox {
    let mut spec = json!({"listingRef": {"name": "page"}, "subject": shop.namespace});
    spec.as_object_mut()
        .unwrap()
        .extend(wish.as_object().unwrap().clone());
    PreviewSandbox::new(name, serde_json::from_value(spec).unwrap())
}

async fn refused(name: &str, wish: Value, field: &str, asked: &str, allowed: &str) {
    let shop = Shop::open(name).await;
    shop.offer_script("page", objects::SERVE).await;
    let begun = now_ms();
    let preview = shop.ask_for(wishing(&shop, name, wish)).await;
    let status = shop
        .until(name, "refused", Duration::from_secs(1), |s| {
            s.phase == Phase::Refused
        })
        .await;
    println!("{name}: refused after {} ms", now_ms() - begun);
    assert_eq!(status.reason, Some(StatusReason::OutsideEnvelope));
    let message = status.message.clone().unwrap_or_default();
    assert_eq!(message, format!("{field} asks for {asked}, allowed is {allowed}"));
    let admitted = conditions::find(&status.conditions, conditions::types::ADMITTED).unwrap();
    assert_eq!(
        (admitted.status.as_str(), admitted.reason.as_str()),
        ("False", "OutsideEnvelope")
    );
    assert_eq!(admitted.message, message);

    let uid = preview.uid().unwrap();
    let namespaces: Api<Namespace> = Api::all(shop.client.clone());
    assert!(namespaces.get_opt(&names::cell(&uid)).await.unwrap().is_none());
    let leases: Api<Lease> = shop.within("vitrine-slots");
    let slots = leases.list(&ListParams::default()).await.unwrap().items;
    let holder = |lease: &Lease| lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
    assert!(slots.iter().all(|lease| holder(lease).as_ref() != Some(&uid)));
    shop.close().await;
}

/// At once, by the API server, to whoever asks.
async fn refused_at_create(name: &str, wish: Value, said: &str) {
    let shop = Shop::open(name).await;
    shop.offer_script("page", objects::SERVE).await;
    let made = shop
        .previews()
        .create(&PostParams::default(), &wishing(&shop, name, wish))
        .await;
    let message = made.unwrap_err().to_string();
    assert!(
        message.contains("'vitrine-envelope'") && message.contains(said),
        "{message}"
    );
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_outside_the_envelope_is_refused() {
    let _together = together().await;
    let said = "spec.ttl asks for 2h, allowed is 5s to 30m";
    refused_at_create("long", json!({"ttl": "2h"}), said).await;
    let said = "spec.ttl asks for 1s, allowed is 5s to 30m";
    refused_at_create("short", json!({"ttl": "1s"}), said).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_or_names_outside_the_envelope_are_refused() {
    let _together = together().await;
    let size = json!({"size": {"cpu": "64", "memory": "32Mi", "ephemeralStorage": "8Mi"}});
    refused_at_create("huge", size, "spec.size.cpu asks for 64, allowed is at most ").await;
    let size = json!({"size": {"cpu": "50m", "memory": "64Gi", "ephemeralStorage": "8Mi"}});
    refused_at_create("fat", size, "spec.size.memory asks for 64Gi, allowed is at most ").await;
    let size = json!({"size": {"cpu": "50m", "memory": "32Mi", "ephemeralStorage": "8Ti"}});
    let said = "spec.size.ephemeralStorage asks for 8Ti, allowed is at most ";
    refused_at_create("wordy", size, said).await;
    let egress = json!({"egress": ["evil.example"]});
    refused_at_create(
        "far",
        egress,
        "spec.egress asks for evil.example, allowed is nothing",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_larger_than_the_listing_is_refused() {
    let _together = together().await;
    let size = json!({"size": {"cpu": "200m", "memory": "32Mi", "ephemeralStorage": "8Mi"}});
    refused("large", size, "spec.size.cpu", "200m", "at most 50m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_longer_than_its_trust_level_may_have_is_refused() {
    let _alone = alone().await;
    let policy = installed().await.with_policy(
        r#"{"spec":{"trustLevels":{"anonymous":{"maxTtl":"1m"}}}}"#,
        r#"{"spec":{"trustLevels":{"anonymous":{"maxTtl":null}}}}"#,
    );
    let said = "spec.ttl asks for 2m, allowed is 5s to 1m";
    refused_at_create("untrusted", json!({"ttl": "2m"}), said).await;
    policy.back();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_egress_wider_than_the_listing_is_refused() {
    // What the platform allows is what another test is refused by.
    let _alone = alone().await;
    let policy = installed().await.with_policy(
        r#"{"spec":{"egress":{"allowedNames":["far.example"]}}}"#,
        r#"{"spec":{"egress":{"allowedNames":[]}}}"#,
    );
    let egress = json!({"egress": ["far.example"]});
    refused("wide", egress, "spec.egress", "\"far.example\"", "nothing").await;
    policy.back();
}
