//! Attack 23: products that share an origin read each other's cookies and storage, and their visitors' pages.

use vitrine_e2e::installed::{Shop, together};
use vitrine_kit::objects;

#[tokio::test(flavor = "multi_thread")]
async fn each_preview_has_a_host_of_its_own_and_its_link_opens_no_other() {
    let _together = together().await;
    let shop = Shop::open("origin").await;
    let vitrine = shop.vitrine;
    let one = shop.live("one", objects::SERVE, "2m").await;
    let other = shop.live("other", objects::SERVE, "2m").await;
    assert_ne!(one.host, other.host);
    let cookie = one.cookie(vitrine).await;
    for (what, host, request) in [
        (
            "a link at another host",
            other.host.as_str(),
            format!("GET {}", one.open),
        ),
        (
            "a cookie at another host",
            &other.host,
            format!("GET /\n{cookie}"),
        ),
        (
            "another preview as a path",
            &one.host,
            format!("GET /{}/\n{cookie}", other.host),
        ),
        (
            "a host that no preview has",
            "p-00000000000000000000.previews.localhost",
            format!("GET /\n{cookie}"),
        ),
        (
            "the host above all of them",
            "previews.localhost",
            format!("GET /{}/\n{cookie}", one.host),
        ),
    ] {
        let answer = vitrine.ask(host, &request).await;
        assert!(matches!(answer.status, 403 | 404), "{what}: {answer:?}");
    }
    assert_eq!(one.page(vitrine, "/").await.status, 200);
    shop.close().await;
}
