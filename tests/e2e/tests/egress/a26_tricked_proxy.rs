//! Attack 26: the proxy is tricked into leading inside, or to another name than the one that is allowed, or on after its time.

use vitrine_devcluster::Hit;
use vitrine_e2e::installed::{Shop, alone, now_ms};

use super::{
    BEFORE, FAR, INSIDE, NOT_LISTED, allowing, closed, connect, everything, product, proxies, stream,
};

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_names_at_public_addresses_are_reached_and_tls_must_ask_for_the_same_name() {
    let _alone = alone().await;
    let shop = Shop::open("egress").await;
    let policy = shop.vitrine.with_policy(&allowing(&everything(), ""), BEFORE);
    let listed: Vec<_> = [FAR].into_iter().chain(INSIDE).collect();
    let live = product(&shop, "egress", &listed, "5m").await;
    let proxies = proxies(&shop).await;
    let hits = |after: u64| shop.vitrine.hits_from(&proxies, after);

    // Two that must arrive: without them "blocked" would mean nothing.
    let before = shop.vitrine.newest_hit();
    let page = connect(&shop, &live, "CONNECT", &format!("{FAR}:80"), "PLAIN").await;
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    assert!(page.contains("the internet at 203.0.113.10:80 answers"), "{page}");
    let page = connect(&shop, &live, "CONNECT", &format!("{FAR}:443"), "GOOD").await;
    assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
    let arrived: Vec<_> = hits(before)
        .iter()
        .map(|hit: &Hit| (hit.destination.port(), hit.bytes > 0))
        .collect();
    assert_eq!(arrived, [(80, true), (443, true)]);

    // The name is right and the hello is not: nothing that the product says goes out.
    let before = shop.vitrine.newest_hit();
    for words in ["OTHER", "PLAIN"] {
        connect(&shop, &live, "CONNECT", &format!("{FAR}:443"), words).await;
    }
    let arrived: Vec<_> = hits(before).iter().map(|hit| hit.bytes).collect();
    assert_eq!(arrived, [0, 0], "a connection each, and no byte");

    let before = shop.vitrine.newest_hit();
    let refused = |status: u16| format!("HTTP/1.1 {status} ");
    let mut asked = vec![
        ("CONNECT", format!("{NOT_LISTED}:443"), 403),
        ("CONNECT", "evil.example:443".to_owned(), 403),
        ("CONNECT", format!("{FAR}:8080"), 403),
        ("CONNECT", format!("{FAR}.:443"), 403),
        ("CONNECT", "203.0.113.10:443".to_owned(), 403),
        ("CONNECT", "[::ffff:203.0.113.10]:443".to_owned(), 403),
        ("GET", format!("http://{FAR}/"), 405),
    ];
    asked.extend(INSIDE.map(|name| ("CONNECT", format!("{name}:80"), 403)));
    for (method, target, status) in &asked {
        let page = connect(&shop, &live, method, target, "PLAIN").await;
        assert!(page.starts_with(&refused(*status)), "{method} {target}: {page}");
    }
    let arrived = hits(before);
    assert!(arrived.is_empty(), "{arrived:?}");
    println!(
        "2 of 2 allowed ways lead out, {} of {} others lead nowhere",
        asked.len() + 2,
        asked.len() + 2
    );

    // A preview without names has no way to the proxy at all, whatever it is told.
    let without = product(&shop, "without", &[], "5m").await;
    let page = connect(&shop, &without, "CONNECT", &format!("{FAR}:80"), "PLAIN").await;
    assert_eq!(page, "no way out: none\n");
    let proxy = shop.house("vitrine-egress").await;
    for address in std::iter::once(&proxy).chain(&proxies) {
        let page = without
            .page(shop.vitrine, &format!("/cgi-bin/knock?{address}:3128"))
            .await;
        assert_eq!(page.body, "shut\n", "{address}");
        let page = live
            .page(shop.vitrine, &format!("/cgi-bin/knock?{address}:3128"))
            .await;
        assert_eq!(page.body, "reached\n", "{address}");
    }
    policy.back();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_ends_when_its_name_is_taken_off_the_list_and_when_its_preview_ends() {
    let _alone = alone().await;
    let shop = Shop::open("egress-end").await;
    let policy = shop.vitrine.with_policy(&allowing(&[FAR], ""), BEFORE);
    let proxies = proxies(&shop).await;
    let live = product(&shop, "tunnel", &[FAR], "20s").await;

    let (_first, id) = stream(&shop, &live, &proxies).await;
    let shut = now_ms();
    shop.vitrine.patch_policy(&allowing(&[], ""));
    let told = now_ms();
    let last = closed(&shop, &proxies, id).await;
    println!(
        "name taken off to the last byte outside: {} ms",
        i128::from(last) - i128::from(shut)
    );
    assert!(last <= told + 2000, "it went on for {} ms", last - told);
    let page = connect(&shop, &live, "CONNECT", &format!("{FAR}:80"), "PLAIN").await;
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");

    shop.vitrine.patch_policy(&allowing(&[FAR], ""));
    let (_second, id) = stream(&shop, &live, &proxies).await;
    let last = closed(&shop, &proxies, id).await;
    let late = i128::from(last) - i128::from(live.expires_ms);
    println!("expiry to the last byte outside: {late} ms");
    assert!((-1000..=2000).contains(&late), "{late} ms");
    policy.back();
    shop.close().await;
}
