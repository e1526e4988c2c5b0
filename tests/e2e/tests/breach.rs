//! Isolation that breaks under a running preview: it ends within seconds, with the operator and without it.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use vitrine_crds::{Phase, StatusReason, preview_policy::NodeSetAside};
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, READY, Shop, alone, assert_verified, now_ms},
};
use vitrine_kit::objects;
use vitrine_policies::names;

/// Waits until the product of a preview is seen to have ended.
async fn killed(shop: &Shop, live: &Live) {
    let pods = shop.within::<Pod>(&live.cell);
    eventually("the product is killed", Duration::from_secs(20), async || {
        let pod = pods.get_opt(names::POD).await;
        let status = pod.map_err(|error| error.to_string())?.and_then(|pod| pod.status);
        let states = status.unwrap_or_default().container_statuses.unwrap_or_default();
        let over = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.terminated.is_some());
        if states.iter().all(over) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    })
    .await;
}

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
    let events = shop.events("page").await;
    assert!(
        events.iter().any(|event| event.starts_with("NodeSetAside")),
        "{events:?}"
    );
    let ready = shop
        .until(
            "next",
            "the node is trusted again",
            Duration::from_secs(90),
            |s| s.phase == Phase::Ready,
        )
        .await;
    assert!(ready.started_at.unwrap().0 >= aside[0].until.0);
    drop(policy);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_a_killed_sidecar_or_a_breach_ends_the_product_all_the_same() {
    let _alone = alone().await;
    let shop = Shop::open("unwatched").await;
    let blind = shop.live("blind", objects::SERVE, "3m").await;
    let leaking = shop.live("leaking", objects::SERVE, "3m").await;
    let operator = shop.vitrine.without_operator();

    let begun = now_ms();
    let kill = "tr '\\0' ' ' < $p/cmdline | grep -q 'probe watch' && kill -9 ${p#/proc/} && echo killed";
    assert_eq!(shop.each_process(&blind.pod, kill), "killed\n", "one sidecar");
    killed(&shop, &blind).await;
    println!(
        "sidecar killed: the product seen killed after {} ms",
        now_ms() - begun
    );

    let netpol = shop.vitrine.without("netpol", Action::Stop);
    let begun = now_ms();
    shop.vitrine.flush();
    killed(&shop, &leaking).await;
    let ms = now_ms() - begun;
    println!("chains flushed: the product seen killed after {ms} ms");
    assert!(ms <= 5000, "killed after {ms} ms");

    netpol.back();
    operator.back();
    for live in [&blind, &leaking] {
        assert_verified(&shop.over(&live.name).await, StatusReason::IsolationBroken);
    }
    shop.close().await;
}
