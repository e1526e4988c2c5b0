//! Attack 25: requests and answers that two programs read in two ways: a length and chunks at once, another HTTP in the middle of
//! one, a change of protocols that nobody asked for.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vitrine_e2e::installed::{Shop, together};

/// Answers with the head of the request as it came, or switches protocols unasked.
const RAW: &str = r#"cat > /data/raw <<'END'
#!/bin/sh
read -r first
head=$first
while read -r line; do [ ${#line} -le 1 ] && break; head="$head
$line"; done
case $first in *unasked*) printf 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n'; exec cat;; esac
printf 'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' ${#head} "$head"
END
chmod +x /data/raw; exec nc -ll -p 8090 -e /data/raw"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_in_two_ways_is_read_in_one() {
    let _together = together().await;
    let shop = Shop::open("framing").await;
    let live = shop.live("raw", RAW, "2m").await;
    let vitrine = shop.vitrine;
    let cookie = live.cookie(vitrine).await;

    let both =
        format!("POST /both\n{cookie}\nConnection: close\nContent-Length: 4\nTransfer-Encoding: chunked");
    let mut stream = vitrine.send(&live.host, &both).await;
    stream
        .write_all(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let seen = answers.to_lowercase();
    assert!(seen.contains("post /both"), "the product was asked: {answers}");
    let (_, product) = seen.split_once("post /both").unwrap();
    let framings = ["content-length:", "transfer-encoding:"].map(|name| product.matches(name).count());
    assert!(framings.iter().sum::<usize>() <= 1, "{answers}");
    assert!(!seen.contains("smuggled"), "{answers}");

    let unasked = vitrine.ask(&live.host, &format!("GET /unasked\n{cookie}")).await;
    assert!([400, 502].contains(&unasked.status), "{unasked:?}");
    shop.close().await;
}
