//! Attack 13: the pod's sandbox dies, and the kubelet would make another, with another address under the old promises.

use vitrine_crds::StatusReason;
use vitrine_e2e::installed::{Shop, assert_verified, together};
use vitrine_kit::objects;

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_whose_sandbox_is_killed_ends_and_never_gets_another_address() {
    let _together = together().await;
    let shop = Shop::open("sandbox").await;
    let live = shop.live("page", objects::SERVE, "3m").await;
    let kill = "grep -q pause $p/comm && kill -9 ${p#/proc/} && echo killed";
    assert_eq!(shop.each_process(&live.pod, kill), "killed\n");
    let over = shop.over("page").await;
    assert_verified(&over, StatusReason::ProductExited);
    let pod = over.pod.as_ref().unwrap();
    assert_eq!((&pod.uid, pod.ip.as_ref()), (&live.pod, Some(&live.ip)));
    shop.nothing_left(&live).await;
    shop.close().await;
}
