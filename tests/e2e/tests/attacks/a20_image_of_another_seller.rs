//! Attack 20: a listing names another seller's image, which is in the mirror too and perhaps on the node already.

use vitrine_crds::{Phase, StatusReason};
use vitrine_e2e::installed::{READY, Shop, alone};
use vitrine_kit::objects;

#[tokio::test(flavor = "multi_thread")]
async fn where_each_seller_has_a_folder_no_other_sellers_image_is_run() {
    let _alone = alone().await;
    let shop = Shop::open("sellers").await;
    let policy = shop.vitrine.with_mirror(&["vitrine.local/{seller}"]);
    // The image is vitrine.local/busybox.
    for (seller, name) in [("busybox", "own"), ("busybo", "beside"), ("acme", "another")] {
        let mut listing = objects::script(name, &shop.vitrine.busybox, objects::SERVE);
        listing.spec.seller = seller.to_owned();
        shop.offer(&listing).await;
        shop.ask(name, name, "1m").await;
    }
    shop.ready("own").await;
    for (name, allowed) in [
        ("beside", "vitrine.local/busybo"),
        ("another", "vitrine.local/acme"),
    ] {
        let refused = shop
            .until(name, "refused", READY, |s| s.phase == Phase::Refused)
            .await;
        assert_eq!(refused.reason, Some(StatusReason::OutsideEnvelope), "{refused:?}");
        let message = refused.message.unwrap_or_default();
        assert!(
            message.ends_with(&format!("only what is in {allowed}")),
            "{message}"
        );
    }
    policy.back();
    shop.close().await;
}
