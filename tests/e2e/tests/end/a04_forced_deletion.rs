//! Attack 4: the pod is deleted by force: the object is gone, and its containers still run.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};
use vitrine_crds::{
    Phase, PreviewSandboxStatus, StatusReason,
    conditions::{self, types},
    preview_sandbox::EndResult,
};
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, Shop, alone, assert_verified, now_ms, together},
};
use vitrine_kit::objects;
use vitrine_policies::names;

fn force_delete(shop: &Shop, live: &Live) {
    shop.vitrine.break_glass(&[
        "-n",
        &live.cell,
        "delete",
        "pod",
        names::POD,
        "--force",
        "--grace-period=0",
        "--wait=false",
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_pod_deleted_by_force_is_proven_all_the_same() {
    let _together = together().await;
    let shop = Shop::open("force").await;
    let live = shop.live("page", objects::SERVE, "2m").await;
    force_delete(&shop, &live);
    let over = shop.over("page").await;
    assert_verified(&over, StatusReason::PodLost);
    shop.nothing_left(&live).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_vanished_is_unknown_and_keeps_its_slot_until_the_node_reports_it_gone() {
    let _alone = alone().await;
    let shop = Shop::open("vanished").await;
    let live = shop.live("page", objects::SERVE, "5m").await;
    let kubelet = shop.vitrine.without("kubelet", Action::Stop);
    let pods = shop.within::<Pod>(&live.cell);
    force_delete(&shop, &live);
    // First ours, then gone: the operator sees a pod that somebody deletes, and then none.
    shop.vitrine.break_glass(&[
        "-n",
        &live.cell,
        "patch",
        "pod",
        names::POD,
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    eventually("the pod vanishes", Duration::from_secs(10), async || {
        match pods
            .get_opt(names::POD)
            .await
            .map_err(|error| error.to_string())?
        {
            None => Ok(()),
            Some(pod) => Err(format!("{:?}", pod.metadata)),
        }
    })
    .await;
    let unknown = |s: &PreviewSandboxStatus| {
        conditions::find(&s.conditions, types::TORN_DOWN)
            .is_some_and(|c| c.status == "Unknown" && c.reason == "EndUnknown")
    };
    let told = shop
        .until("page", "unknown", Duration::from_secs(20), unknown)
        .await;
    assert_eq!(told.phase, Phase::Ending);
    assert!(
        told.message.unwrap_or_default().contains("node-1"),
        "the node is named"
    );
    assert!(told.receipt.is_none(), "nothing is proven");
    // It stays so for longer than the operator takes to ask a node again.
    let until = Instant::now() + Duration::from_secs(7);
    while Instant::now() < until {
        assert_ne!(shop.processes(&live.pod), "", "its containers still run");
        assert!(
            shop.slots().get_opt(&live.slot).await.unwrap().is_some(),
            "the slot is kept while containers run"
        );
        sleep(Duration::from_millis(500)).await;
    }
    kubelet.back();
    let back = now_ms();
    let over = shop.over("page").await;
    println!(
        "kubelet back to reported gone and nothing left {} ms",
        now_ms() - back
    );
    assert_eq!(
        over.receipt.as_ref().unwrap().result,
        EndResult::ReportedGone,
        "{over:?}"
    );
    shop.nothing_left(&live).await;
    shop.close().await;
}
