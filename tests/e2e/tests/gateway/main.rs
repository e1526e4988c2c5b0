//! The gateway is the only way in: by the link, for its own preview, until its end; WebSockets included.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a23_one_origin;
mod a24_link_leaks;

use std::time::Duration;

use kube::ResourceExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, READY, Shop, now_ms, together},
};
use vitrine_kit::objects;
use vitrine_policies::names;

/// Answers every upgrade alike and returns each byte: enough of a WebSocket for whoever does not look into frames.
const ECHO: &str = r"cat > /data/echo <<'END'
#!/bin/sh
upgrade=
while read -r line; do
  case $line in [Uu]pgrade:*) upgrade=1;; esac
  [ ${#line} -le 1 ] && break
done
[ -n $upgrade ] && printf 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n'
exec cat
END
chmod +x /data/echo; exec nc -ll -p 8090 -e /data/echo";

#[tokio::test(flavor = "multi_thread")]
async fn only_the_link_opens_a_preview() {
    let _together = together().await;
    let shop = Shop::open("gateway").await;
    let vitrine = shop.vitrine;
    let live = shop.live("page", objects::SERVE, "2m").await;

    assert_eq!(
        vitrine.ask(&live.host, "GET /").await.status,
        403,
        "without a link"
    );
    let changed = format!("GET {}x", live.open);
    assert_eq!(
        vitrine.ask(&live.host, &changed).await.status,
        403,
        "a changed link"
    );
    let wrong = "GET /\nCookie: __Host-vitrine-preview=eyJsIjoieCJ9.AAAA";
    assert_eq!(
        vitrine.ask(&live.host, wrong).await.status,
        403,
        "a made up cookie"
    );
    let opened = vitrine.ask(&live.host, &format!("GET {}", live.open)).await;
    assert_eq!((opened.status, opened.header("location")), (303, Some("/")));
    assert_eq!(live.page(vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_told_how_far_a_preview_is() {
    let _together = together().await;
    let shop = Shop::open("early").await;
    shop.offer_script("page", objects::SERVE).await;
    let subject = format!("{}-subject", shop.namespace);
    let of_subject = |name: &str| objects::preview(name, "page", &subject, Some("2m"));
    shop.ask_for(of_subject("first")).await;
    shop.ready("first").await;
    let waits = shop.ask_for(of_subject("second")).await;
    shop.until("second", "it waits for its turn", READY, |s| {
        s.queue_position.is_some()
    })
    .await;
    let host = format!("{}.previews.localhost", names::host_label(&waits.uid().unwrap()));
    let status = eventually("the gateway knows it", READY, async || {
        match shop.vitrine.ask(&host, "GET /").await.status {
            404 => Err("not yet".to_owned()),
            status => Ok(status),
        }
    })
    .await;
    assert_eq!(status, 403);
    shop.close().await;
}

/// Opens a WebSocket to the echo and reads the answer's head.
async fn websocket(shop: &Shop, live: &Live) -> TcpStream {
    let cookie = live.cookie(shop.vitrine).await;
    let request = format!(
        "GET /ws\n{cookie}\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    );
    let mut stream = shop.vitrine.send(&live.host, &request).await;
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(Duration::from_secs(10), stream.read_u8()).await;
        head.push(
            byte.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&head)))
                .unwrap(),
        );
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept"), "{head}");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_carried_both_ways_and_other_upgrades_are_refused() {
    let _together = together().await;
    let shop = Shop::open("websocket").await;
    let live = shop.live("echo", ECHO, "2m").await;
    let mut stream = websocket(&shop, &live).await;
    for n in 0..3 {
        // A masked text frame, as a browser sends it.
        let frame = [0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2, n];
        stream.write_all(&frame).await.unwrap();
        let mut back = [0; 9];
        timeout(Duration::from_secs(10), stream.read_exact(&mut back))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(back, frame);
    }
    let cookie = live.cookie(shop.vitrine).await;
    let h2c = format!("GET /\n{cookie}\nConnection: Upgrade\nUpgrade: h2c");
    assert_eq!(shop.vitrine.ask(&live.host, &h2c).await.status, 400);
    // Whoever follows the preview is cut when it is ended early, too.
    shop.previews()
        .delete("echo", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    let cut = timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await;
    assert!(matches!(cut, Ok(Ok(0) | Err(_))), "{cut:?}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_websocket_is_cut_when_its_previews_time_is_over() {
    let _together = together().await;
    let shop = Shop::open("websocket-end").await;
    let live = shop.live("echo", ECHO, "6s").await;
    let mut stream = websocket(&shop, &live).await;
    let mut last = 0;
    let cut = timeout(Duration::from_secs(20), async {
        let mut back = [0; 4];
        while stream.write_all(b"more").await.is_ok() && stream.read_exact(&mut back).await.is_ok() {
            assert_eq!(back, *b"more");
            last = now_ms();
            // Somebody who types fast.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    cut.await.expect("the WebSocket is cut");
    // Times in a status are whole seconds, cut off.
    let after = i128::from(last) - i128::from(live.expires_ms);
    println!("the last answer came {after} ms after expiry");
    assert!((-500..=2000).contains(&after), "{after} ms after expiry");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_its_end_a_preview_answers_gone() {
    let _together = together().await;
    let shop = Shop::open("gone").await;
    let live = shop.live("page", objects::SERVE, "5s").await;
    let cookie = live.cookie(shop.vitrine).await;
    shop.over("page").await;
    for request in [
        format!("GET {}", live.open),
        format!("GET /\n{cookie}"),
        "GET /".to_owned(),
    ] {
        assert_eq!(
            shop.vitrine.ask(&live.host, &request).await.status,
            410,
            "{request}"
        );
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_reaches_a_preview_neither_directly_nor_its_sidecar() {
    let _together = together().await;
    let shop = Shop::open("direct").await;
    let live = shop.live("page", objects::SERVE, "2m").await;
    // The gateway's own port shows that this pod can reach what it may.
    let gateway = shop.house("vitrine-gateway").await;
    let script = format!(
        r#"t() {{ nc -w 2 $1 $2 -e /bin/sh -c "echo reached $3 >> /data/seen" < /dev/null > /dev/null 2>&1; }}
t {gateway} 80 gateway; t {ip} 8090 product; t {ip} 20100 sidecar; cat /data/seen > /dev/termination-log"#,
        ip = live.ip
    );
    shop.bare_pod(&shop.namespace, "neighbour", &script).await;
    let said = shop.last_words(&shop.namespace, "neighbour").await;
    assert_eq!(said, "reached gateway\n");
    eventually(
        "the product still answers its visitors",
        Duration::from_secs(5),
        async || {
            let page = live.page(shop.vitrine, "/").await;
            if page.status == 200 {
                Ok(())
            } else {
                Err(format!("{page:?}"))
            }
        },
    )
    .await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_stays_in_when_the_preview_is_extended_and_the_old_link_opens_no_more() {
    let _together = together().await;
    let shop = Shop::open("extended").await;
    let vitrine = shop.vitrine;
    let live = shop.live("page", objects::SERVE, "15s").await;
    let cookie = live.cookie(vitrine).await;
    let longer = r#"{"spec":{"ttl":"90s"}}"#;
    let extend = [
        "-n",
        &shop.namespace,
        "patch",
        "previewsandbox",
        "page",
        "--type=merge",
        "-p",
        longer,
    ];
    vitrine.kubectl(&extend);
    eventually("the first end is past", READY, async || {
        let left = live.expires_ms.saturating_sub(now_ms());
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} ms"))
        }
    })
    .await;
    let page = vitrine.ask(&live.host, &format!("GET /\n{cookie}")).await;
    assert_eq!((page.status, page.body.as_str()), (200, "hello\n"), "{page:?}");
    let old = vitrine.ask(&live.host, &format!("GET {}", live.open)).await;
    assert_eq!(old.status, 410, "{old:?}");
    let longer = shop.ready("page").await;
    assert_eq!(longer.page(vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

/// Server-sent events (WHATWG HTML, 9.2): one every half second, without end.
const EVENTS: &str = r"mkdir -p /data/www/cgi-bin; echo hello > /data/www/index.html
cat > /data/www/cgi-bin/events <<'END'
#!/bin/sh
printf 'Content-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n'
while :; do printf 'data: tick\n\n'; sleep 0.5; done
END
chmod +x /data/www/cgi-bin/events; exec httpd -f -p 8090 -h /data/www";

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_arrive_one_by_one_as_they_are_sent() {
    let _together = together().await;
    let shop = Shop::open("events").await;
    let vitrine = shop.vitrine;
    let live = shop.live("page", EVENTS, "2m").await;
    let cookie = live.cookie(vitrine).await;
    let mut stream = vitrine
        .send(&live.host, &format!("GET /cgi-bin/events\n{cookie}"))
        .await;
    let (mut seen, mut arrivals) = (String::new(), vec![]);
    while arrivals.len() < 4 {
        let mut bytes = [0; 1024];
        let length = timeout(READY, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert!(length > 0, "it hung up after {seen:?}");
        seen += &String::from_utf8_lossy(&bytes[..length]);
        let now = seen.matches("data: tick").count();
        arrivals.resize(now, now_ms());
    }
    assert!(
        seen.to_lowercase().contains("content-type: text/event-stream"),
        "{seen}"
    );
    // Gathered up, all would have come at once.
    let spread = arrivals.last().unwrap() - arrivals.first().unwrap();
    assert!(spread >= 1000, "four events within {spread} ms: {seen}");
    shop.close().await;
}
