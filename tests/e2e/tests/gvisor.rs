//! A preview under gVisor: its system calls never reach the node's kernel, and all else holds as for any other preview.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use vitrine_crds::{Phase, StatusReason};
use vitrine_devcluster::GVISOR;
use vitrine_e2e::installed::{READY, Shop, alone, assert_verified};
use vitrine_kit::objects;

/// Shows under which kernel it runs.
const SHOW: &str = "mkdir -p /data/www; cat /proc/version > /data/www/version; dmesg > /data/www/dmesg 2>&1";

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_runs_under_gvisor_where_the_platform_lets_it_choose() {
    let _alone = alone().await;
    let shop = Shop::open("gvisor").await;
    let listing = |name: &str| {
        let mut listing = objects::script(
            name,
            &shop.vitrine.busybox,
            &format!("{SHOW}\n{}", objects::SERVE),
        );
        // gVisor's own memory is the pod's.
        listing.spec.preview.size.memory = "256Mi".to_owned();
        listing.spec.preview.size.cpu = "250m".to_owned();
        listing.spec.preview.runtime_class = Some(GVISOR.to_owned());
        listing
    };
    shop.offer(&listing("caged")).await;
    shop.ask("too-early", "caged", "1m").await;
    let refused = shop
        .until("too-early", "refused", READY, |s| s.phase == Phase::Refused)
        .await;
    let message = refused.message.unwrap();
    assert!(
        message.contains("SkuListing spec.preview.runtimeClass asks for gvisor, allowed is nothing"),
        "{message}"
    );

    // Refused, it would be judged anew by another policy, and run beside those that are looked at.
    shop.previews()
        .delete("too-early", &kube::api::DeleteParams::default())
        .await
        .unwrap();

    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"runtimes":{"allowed":["gvisor"]}}}"#,
        r#"{"spec":{"runtimes":{"allowed":[]}}}"#,
    );
    shop.ask("caged", "caged", "1m").await;
    let live = shop.ready("caged").await;
    assert_eq!(
        live.status.envelope.as_ref().unwrap().runtime_class.as_deref(),
        Some(GVISOR)
    );
    // What no Linux says of itself (gVisor, `pkg/sentry/kernel/syslog.go`).
    let log = live.page(shop.vitrine, "/dmesg").await.body;
    assert!(log.contains("Starting gVisor"), "{log}");
    let node = std::fs::read_to_string("/proc/version").unwrap();
    let version = live.page(shop.vitrine, "/version").await.body;
    assert_ne!(version.trim(), node.trim());
    let shut = live.status.isolation.as_ref().unwrap();
    assert!(
        shut.targets
            .iter()
            .all(|target| target.inside.starts_with("shut") && target.outside == "up"),
        "{shut:?}"
    );
    shop.previews()
        .delete("caged", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    drop(policy);

    // The platform can also let nothing run otherwise.
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"runtimes":{"default":"gvisor"}}}"#,
        r#"{"spec":{"runtimes":{"default":null}}}"#,
    );
    let mut plain = listing("plain");
    plain.spec.preview.runtime_class = None;
    shop.offer(&plain).await;
    shop.ask("plain", "plain", "8s").await;
    let live = shop.ready("plain").await;
    let log = live.page(shop.vitrine, "/dmesg").await.body;
    assert!(log.contains("Starting gVisor"), "{log}");
    assert_verified(&shop.over("plain").await, StatusReason::TimeOver);
    drop(policy);
    shop.close().await;
}
