//! The operator as a process: it says what it misses, counts what it does, and ends when told.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::Service, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, CustomResourceExt, ResourceExt,
    api::{DeleteParams, PostParams},
};
use vitrine_crds::{Phase, PreviewSandbox, SkuListing};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE},
    operator::{self, Operator, Options},
};
use vitrine_kit::install::NAMESPACE;

/// How long the operator may take to end.
const END: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_operator_in_time_and_in_order() {
    let house = House::take("sigterm", 1, "24h").await;
    let operator = Operator::ready(&house.post, &Options::electing("leading"), None).await;
    house.preview("running", "anna", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.until("running", "it is ready", PATIENCE, ready).await;
    let standby = Operator::ready(&house.post, &Options::electing("standby"), None).await;
    let status = standby.terminate(END);
    assert_eq!(status.code(), Some(0), "as a standby: {}", standby.last_words());
    let status = operator.terminate(END);
    assert_eq!(status.code(), Some(0), "as the leader: {}", operator.last_words());
    assert_eq!(house.leader().await, None, "leadership is given up");
    // The preview outlives its operator, and the next one ends it.
    let _next = Operator::ready(&house.post, &Options::electing("next"), None).await;
    house.delete("running").await;
    house.until_empty(PATIENCE).await;
}

/// Waits until `/readyz` says 503 with this text.
async fn misses(operator: &Operator, what: &str) {
    eventually(&format!("/readyz names {what}"), PATIENCE, async || {
        assert_eq!(
            operator.get("/healthz").await.map_or(200, |answer| answer.status),
            200,
            "it lives"
        );
        match operator.get("/readyz").await {
            Some(answer) if answer.status == 503 && answer.body.contains(what) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn becomes_ready(operator: &Operator) {
    eventually("/readyz says so", PATIENCE, async || {
        match operator.get("/readyz").await {
            Some(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_the_installation_lacks() {
    let house = House::take("readiness", 1, "24h").await;
    let services: Api<Service> = Api::namespaced(house.client.clone(), NAMESPACE);
    services
        .delete("vitrine-responder", &DeleteParams::default())
        .await
        .unwrap();
    let operator = Operator::start(&house.post, &Options::alone("no-responder"), None);
    misses(&operator, "vitrine-responder").await;
    house.service("vitrine-responder").await;
    becomes_ready(&operator).await;
    drop(operator);

    let crds: Api<CustomResourceDefinition> = Api::all(house.client.clone());
    let name = SkuListing::crd().name_any();
    let mut crd = crds.get(&name).await.unwrap();
    crds.delete(&name, &DeleteParams::default()).await.unwrap();
    eventually("the resource is served no more", PATIENCE, async || {
        let listings: Api<SkuListing> = Api::all(house.client.clone());
        let listed = listings.list(&Default::default()).await;
        listed.map_or(Ok(()), |_| Err("it is served still".to_owned()))
    })
    .await;
    let operator = Operator::start(&house.post, &Options::alone("no-listings"), None);
    misses(&operator, &name).await;
    crd.metadata.resource_version = None;
    crd.metadata.uid = None;
    crds.create(&PostParams::default(), &crd).await.unwrap();
    becomes_ready(&operator).await;
    // And it works as well.
    eventually("a listing is stored", PATIENCE, async || {
        let listings: Api<SkuListing> = Api::namespaced(house.client.clone(), &house.shop);
        let made = listings
            .create(&PostParams::default(), &vitrine_kit::objects::stub(LISTING, ""))
            .await;
        made.map(drop).map_err(|error| error.to_string())
    })
    .await;
    house.preview("after", "anna", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.until("after", "it is ready", PATIENCE, ready).await;
    house.delete("after").await;
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn production_starts_with_a_lasting_receipt_key_only() {
    let folder = operator::folder("profile");
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        format!("--receipt-key={}", path.display())
    };
    let sound = file("sound.pem", operator::KEY);
    let broken = file("broken.pem", "no key");
    let words = |key: Option<&String>, profile: &str| {
        let output = std::process::Command::new(operator::program())
            .args(["run", "--image", "vitrine.local/operator@sha256:0", profile])
            .args(key)
            // Nothing answers there: who gets so far has accepted the key.
            .env("KUBECONFIG", folder.join("none"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refused = words(None, "--profile=production");
    assert!(
        refused.contains("signs no receipts with a key that is gone"),
        "{refused}"
    );
    assert!(
        refused.contains("openssl genpkey -algorithm ed25519"),
        "{refused}"
    );
    let refused = words(Some(&broken), "--profile=production");
    assert!(
        refused.contains("broken.pem: not an Ed25519 private key"),
        "{refused}"
    );
    for (key, profile) in [
        (Some(&sound), "--profile=production"),
        (None, "--profile=development"),
    ] {
        let accepted = words(key, profile);
        assert!(
            accepted.contains("no Kubernetes cluster is configured"),
            "{accepted}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_a_preview_from_its_creation_to_its_end() {
    let house = House::take("metrics", 1, "24h").await;
    let operator = Operator::ready(&house.post, &Options::alone("metrics"), None).await;
    house.preview("counted", "anna", Some("1s")).await;
    let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase.is_terminal());
    house.until("counted", "it ends", PATIENCE, over).await;
    // The gauges are set by the sweep, every 15 s.
    let metrics = eventually("the gauges follow", PATIENCE, async || {
        let metrics = operator.get("/metrics").await.ok_or("no answer")?.body;
        if metrics.contains("vitrine_previews{phase=\"Ended\"} 1") {
            Ok(metrics)
        } else {
            Err(metrics)
        }
    })
    .await;
    for line in [
        "vitrine_preview_ends_total{cause=\"TimeOver\"} 1",
        "vitrine_preview_ready_seconds_count 1",
        "vitrine_preview_end_seconds_count 1",
        "vitrine_previews{phase=\"Ready\"} 0",
        "vitrine_reconciles_total{outcome=\"ok\"}",
        "vitrine_malformed_objects_total 0",
        "vitrine_orphans_removed_total 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing:\n{metrics}");
    }
    for family in metrics.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        assert!(family.starts_with("vitrine_"), "{family}");
    }
    house.delete("counted").await;
    house.until_empty(PATIENCE).await;
}
