//! What visitors may have of a preview is bounded and noted, goes to its own pod only, and a preview that nobody looks at ends.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a14_recycled_address;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{ListParams, LogParams},
};
use serde_json::Value;
use tokio::{io::AsyncReadExt, time::timeout};
use vitrine_crds::{Phase, StatusReason};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, Shop, alone, assert_verified},
};
use vitrine_kit::install::NAMESPACE;

/// A page of ten thousand bytes, and one that never ends.
const PAGES: &str = r#"mkdir -p /data/www/cgi-bin; echo hello > /data/www/index.html
head -c 10000 /dev/zero | tr '\0' x > /data/www/large
printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"; while echo tick; do sleep 0.2; done\n' > /data/www/cgi-bin/endless
chmod +x /data/www/cgi-bin/endless; exec httpd -f -p 8090 -h /data/www"#;

const BEFORE: &str =
    r#"{"spec":{"traffic":{"visitorBytes":"1Gi","requestsPerSecond":100,"unopened":"5m","idle":null}}}"#;

/// What the gateways have noted of a preview.
async fn noted(shop: &Shop, live: &Live) -> Vec<Value> {
    let pods = shop.within::<Pod>(NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=gateway");
    let mut records = vec![];
    for pod in pods.list(&params).await.unwrap() {
        let log = pods.logs(&pod.name_any(), &LogParams::default()).await.unwrap();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        records.extend(lines.filter(|record: &Value| record["previewUid"] == live.uid.as_str()));
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_requests_of_a_preview_are_bounded_and_each_request_is_noted_without_its_secrets() {
    let _alone = alone().await;
    let shop = Shop::open("traffic").await;
    let vitrine = shop.vitrine;
    let limits = r#"{"spec":{"traffic":{"visitorBytes":"25000","requestsPerSecond":2}}}"#;
    let policy = vitrine.with_policy(limits, BEFORE);
    let live = shop.live("pages", PAGES, "5m").await;
    let cookie = live.cookie(vitrine).await;
    let request = format!("GET /large\n{cookie}");
    let large = || vitrine.ask(&live.host, &request);
    for _ in 0..2 {
        let answer = large().await;
        assert_eq!((answer.status, answer.body.len()), (200, 10_000));
    }
    // Broken off: how much of it had left the gateway by then is a matter of milliseconds.
    let mut stream = vitrine
        .send(&live.host, &format!("{request}\nConnection: close"))
        .await;
    let mut broken = vec![];
    let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut broken)).await;
    assert!(read.is_ok() && broken.len() < 10_000, "{} bytes", broken.len());
    let spent = large().await;
    assert_eq!(spent.status, 403, "{spent:?}");

    // Who has no link uses nobody's rate up.
    for _ in 0..60 {
        assert_eq!(vitrine.ask(&live.host, "GET /").await.status, 403);
    }
    assert_eq!(large().await.status, 403, "spent, not too many");

    // Twenty at once fit into ten seconds' worth of two a second; of so many more, most do not.
    let mut statuses = vec![];
    for _ in 0..60 {
        statuses.push(large().await.status);
    }
    let too_many = statuses.iter().filter(|status| **status == 429).count();
    assert!(too_many >= 20, "{statuses:?}");

    let records = eventually("all are noted", Duration::from_secs(10), async || {
        let records = noted(&shop, &live).await;
        if records.len() >= 126 {
            Ok(records)
        } else {
            Err(format!("{} records", records.len()))
        }
    })
    .await;
    assert_eq!(records[0]["outcome"], "opened", "{:?}", records[0]);
    assert_eq!(
        (&records[1]["path"], &records[1]["sent"]),
        (&"/large".into(), &10_000.into())
    );
    assert_eq!(records[3]["outcome"], "spent", "{:?}", records[3]);
    assert_eq!(records[4]["outcome"], "spent", "{:?}", records[4]);
    assert_eq!(records[1]["preview"], format!("{}/pages", shop.namespace));
    let text = serde_json::to_string(&records).unwrap();
    let token = cookie.split('=').nth(1).unwrap();
    assert!(!text.contains(token), "no record holds the link");
    policy.back();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_that_nobody_opens_or_uses_any_more_ends_and_one_in_use_does_not() {
    let _alone = alone().await;
    let shop = Shop::open("deserted").await;
    let vitrine = shop.vitrine;
    let policy = vitrine.with_policy(r#"{"spec":{"traffic":{"unopened":"8s","idle":"8s"}}}"#, BEFORE);
    shop.offer_script("pages", PAGES).await;
    for name in ["unopened", "left", "watched"] {
        shop.ask(name, "pages", "5m").await;
    }
    let (left, watched) = (shop.ready("left").await, shop.ready("watched").await);
    assert_eq!(left.page(vitrine, "/").await.body, "hello\n");
    let cookie = watched.cookie(vitrine).await;
    let mut stream = vitrine
        .send(&watched.host, &format!("GET /cgi-bin/endless\n{cookie}"))
        .await;
    let watching = tokio::spawn(async move {
        let (mut buffer, mut bytes) = ([0; 1024], 0);
        while let Ok(read) = stream.read(&mut buffer).await {
            if read == 0 {
                break;
            }
            bytes += read;
        }
        bytes
    });
    let unopened = shop.over("unopened").await;
    assert_verified(&unopened, StatusReason::Unopened);
    let left = shop.over("left").await;
    assert_verified(&left, StatusReason::Idle);
    for (name, status) in [("unopened", &unopened), ("left", &left)] {
        let started = status.started_at.as_ref().unwrap().0;
        let expired = vitrine_crds::conditions::find(&status.conditions, "Expired").unwrap();
        let lived = expired.last_transition_time.0.duration_since(started);
        println!("{name} lived {lived:#}: {}", expired.message);
        assert!(lived.as_secs() >= 7, "{name} lived {lived:#}");
    }
    let still = shop.previews().get("watched").await.unwrap().status.unwrap();
    assert_eq!(still.phase, Phase::Ready, "somebody looks at it: {still:?}");
    assert!(!watching.is_finished(), "its stream goes on");
    watching.abort();
    shop.close().await;
    policy.back();
}
