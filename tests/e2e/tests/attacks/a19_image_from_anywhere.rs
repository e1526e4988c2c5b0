//! Attack 19: the node pulls what a listing names, from wherever that is and wherever its manifest leads.

use vitrine_crds::{Phase, StatusReason};
use vitrine_e2e::installed::{READY, Shop, together};
use vitrine_kit::objects;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_in_the_mirror_is_never_pulled() {
    let _together = together().await;
    let shop = Shop::open("anywhere").await;
    let mut listing = objects::script("elsewhere", &shop.vitrine.busybox, objects::SERVE);
    listing.spec.preview.image = format!("203.0.113.10/miner@sha256:{}", "a".repeat(64));
    shop.offer(&listing).await;
    shop.ask("elsewhere", "elsewhere", "1m").await;
    let refused = shop
        .until("elsewhere", "refused", READY, |s| s.phase == Phase::Refused)
        .await;
    assert_eq!(refused.reason, Some(StatusReason::OutsideEnvelope), "{refused:?}");
    let message = refused.message.unwrap_or_default();
    assert!(
        message.contains("allowed is only what is in vitrine.local"),
        "{message}"
    );
    assert!(
        refused.cell.is_none() && refused.pod.is_none(),
        "nothing was made"
    );
    shop.close().await;
}
