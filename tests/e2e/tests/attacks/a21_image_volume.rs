//! Attack 21: a volume that the image declares is a folder of the node that can be written, past the read-only root.

use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, together},
};
use vitrine_kit::{images, objects};

/// Says what it can write.
const TRY: &str = r"mkdir -p /data/www
{ grep -c ' /declared ' /proc/mounts; echo x > /declared/x && echo written; echo x > /beside && echo written; echo x > /data/x && echo kept; } > /data/www/tried 2>&1
exec httpd -f -p 8090 -h /data/www";

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_the_image_declares_is_not_there() {
    let _together = together().await;
    let shop = Shop::open("volume").await;
    let image = images::busybox_with_volume("/declared").unwrap();
    shop.vitrine.cluster.import_image(&image).unwrap();
    shop.offer(&objects::script("volume", &image, TRY)).await;
    shop.ask("volume", "volume", "1m").await;
    let live = shop.ready("volume").await;
    let tried = eventually("it has tried", READY, async || {
        let page = live.page(shop.vitrine, "/tried").await;
        if page.status == 200 {
            Ok(page.body)
        } else {
            Err(format!("{page:?}"))
        }
    })
    .await;
    let lines: Vec<_> = tried.lines().collect();
    assert_eq!(
        (lines.first(), lines.last()),
        (Some(&"0"), Some(&"kept")),
        "{tried}"
    );
    assert!(
        tried.contains("Read-only file system") && !tried.contains("written"),
        "{tried}"
    );
    shop.close().await;
}
