//! Attack 10: the chains that enforce are flushed under a running preview, and nothing repairs them.

use std::time::Duration;

use vitrine_crds::{Phase, StatusReason, preview_policy::NodeSetAside};
use vitrine_devcluster::Action;
use vitrine_e2e::installed::{READY, Shop, alone, assert_verified, now_ms};
use vitrine_kit::objects;

use super::{blamed_its_node, killed};

#[tokio::test(flavor = "multi_thread")]
async fn chains_flushed_under_a_running_preview_end_it_within_five_seconds_and_its_node_gets_no_other() {
    let _alone = alone().await;
    let shop = Shop::open("flushed").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"isolation":{"nodeQuarantine":"40s"}}}"#,
        r#"{"spec":{"isolation":{"nodeQuarantine":null}}}"#,
    );
    let live = shop.live("page", objects::SERVE, "3m").await;
    // Afterwards the controller makes its rules anew: it would look by itself only every five minutes (attacks, 10).
    let netpol = shop.vitrine.without("netpol", Action::Stop);
    let flushed = now_ms();
    shop.vitrine.flush();
    let told = shop
        .until("page", "told", Duration::from_secs(20), |s| {
            s.phase == Phase::Ending || s.phase.is_terminal()
        })
        .await;
    let told_ms = now_ms() - flushed;
    killed(&shop, &live).await;
    let killed_ms = now_ms() - flushed;
    shop.until("page", "proven to have ended", Duration::from_secs(20), |s| {
        s.receipt.is_some()
    })
    .await;
    let ended_ms = now_ms() - flushed;
    let over = shop.over("page").await;
    let over_ms = now_ms() - flushed;
    netpol.back();
    assert_eq!(told.reason, Some(StatusReason::IsolationBroken), "{told:?}");
    println!(
        "from the flush: told after {told_ms} ms, the product seen killed after {killed_ms} ms, \
         end proven after {ended_ms} ms, nothing left after {over_ms} ms"
    );
    for (what, ms) in [
        ("told", told_ms),
        ("killed", killed_ms),
        ("proven to have ended", ended_ms),
    ] {
        assert!(ms <= 5000, "{what} after {ms} ms");
    }
    assert_verified(&over, StatusReason::IsolationBroken);
    assert!(live.expires_ms > now_ms(), "not its time but the breach ended it");

    // The only node: whoever comes now waits until it is trusted again.
    shop.ask("next", "page", "1m").await;
    let waits = shop
        .until("next", "it waits", READY, |s| s.queue_position.is_some())
        .await;
    assert_eq!(waits.reason, Some(StatusReason::WaitingForCapacity), "{waits:?}");
    let aside = shop.vitrine.kubectl(&[
        "get",
        "previewpolicy",
        "default",
        "-o",
        "jsonpath={.status.nodesSetAside}",
    ]);
    let aside: Vec<NodeSetAside> = serde_json::from_str(&aside).unwrap();
    assert!(aside[0].reason.starts_with("isolation broken"), "{aside:?}");
    assert!(blamed_its_node(&shop, "page").await);
    let ready = shop
        .until(
            "next",
            "the node is trusted again",
            Duration::from_secs(90),
            |s| s.phase == Phase::Ready,
        )
        .await;
    assert!(ready.started_at.unwrap().0 >= aside[0].until.0);
    policy.back();
    shop.close().await;
}
