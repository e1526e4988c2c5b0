//! Attack 14: the address of a preview's pod is another preview's by now, and the gateway would send a visitor to a stranger.

use std::time::Duration;

use vitrine_e2e::{
    eventually::eventually,
    installed::{Shop, together},
};
use vitrine_kit::objects;

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_led_to_another_previews_pod_notices() {
    let _together = together().await;
    let shop = Shop::open("mistaken").await;
    let vitrine = shop.vitrine;
    let (one, other) = (
        shop.live("one", objects::SERVE, "5m").await,
        shop.live("other", objects::SERVE, "5m").await,
    );
    assert_eq!(other.page(vitrine, "/").await.status, 200);
    // As if the first one's pod were gone, its address the second one's, and the watch behind.
    let lie = format!(r#"{{"status":{{"pod":{{"ip":"{}"}}}}}}"#, other.ip);
    vitrine.kubectl(&[
        "-n",
        &shop.namespace,
        "patch",
        "previewsandbox",
        &one.name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &lie,
    ]);
    eventually("the gateway notices", Duration::from_secs(10), async || {
        let answer = one.page(vitrine, "/").await;
        if answer.status == 502 {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    assert_eq!(
        other.page(vitrine, "/").await.status,
        200,
        "its own host leads there as before"
    );
    shop.close().await;
}
