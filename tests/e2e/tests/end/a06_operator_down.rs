//! Attack 6: there is no operator when a preview expires.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use vitrine_crds::StatusReason;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Shop, alone, assert_verified, now_ms},
};
use vitrine_kit::objects;
use vitrine_policies::names;

use super::{TALKER, cut, listen};

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_the_gateway_cuts_at_expiry_and_a_later_operator_proves_the_end() {
    let _alone = alone().await;
    let shop = Shop::open("orphan").await;
    shop.offer_script("talker", TALKER).await;
    // Its link is signed by a key that goes with this operator.
    shop.ask("stays", "talker", "5m").await;
    let stays = shop.ready("stays").await;
    shop.ask("talker", "talker", "12s").await;
    let live = shop.ready("talker").await;
    let operator = shop.vitrine.without_operator();
    let stream = listen(&shop, &live).await;
    assert!(now_ms() < live.expires_ms, "the operator took too long to go");
    let cut = cut(stream, Duration::from_secs(30)).await;
    let late = i128::from(cut) - i128::from(live.expires_ms);
    println!("without an operator: expiry to cut {late} ms");
    assert!((-100..=2000).contains(&late), "cut {late} ms after expiry");
    let gone = shop.vitrine.ask(&live.host, &format!("GET {}", live.open)).await;
    assert_eq!(gone.status, 410, "{gone:?}");
    assert!(
        shop.slots().get_opt(&live.slot).await.unwrap().is_some(),
        "nobody has freed the slot"
    );
    operator.back();
    let back = now_ms();
    let over = shop.over("talker").await;
    println!("operator back to nothing left {} ms", now_ms() - back);
    assert_verified(&over, StatusReason::TimeOver);
    shop.nothing_left(&live).await;
    // The next operator has another key, and the link of before is good as before.
    assert_eq!(stays.page(shop.vitrine, "/").await.body, "hello\n");
    shop.ask("new", "talker", "2m").await;
    let new = shop.ready("new").await;
    assert_eq!(new.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_the_kubelet_ends_a_pod_when_it_could_not_have_lived_longer() {
    let _alone = alone().await;
    let shop = Shop::open("bound").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"provisioningDeadline":"30s"}}"#,
        r#"{"spec":{"provisioningDeadline":"2m"}}"#,
    );
    let mut listing = objects::script("brief", &shop.vitrine.busybox, objects::SERVE);
    listing.spec.preview.max_ttl = Some("10s".parse().unwrap());
    shop.offer(&listing).await;
    shop.ask("brief", "brief", "10s").await;
    let live = shop.ready("brief").await;
    let operator = shop.vitrine.without_operator();
    let pods = shop.within::<Pod>(&live.cell);
    let bound = Duration::from_secs(30 + 10);
    eventually(
        "the kubelet ended it",
        bound + Duration::from_secs(30),
        async || {
            let pod = pods.get(names::POD).await.map_err(|error| error.to_string())?;
            let status = pod.status.unwrap_or_default();
            let runs = shop.processes(&live.pod);
            if status.reason.as_deref() == Some("DeadlineExceeded") && runs.is_empty() {
                Ok(())
            } else {
                Err(format!("{:?} {:?}: {runs}", status.phase, status.reason))
            }
        },
    )
    .await;
    let ended = now_ms();
    let late = i128::from(ended) - i128::from(live.expires_ms);
    println!("without an operator: expiry to the kubelet's end {late} ms");
    assert!(late > 0, "not before its time");
    operator.back();
    assert_verified(&shop.over("brief").await, StatusReason::TimeOver);
    policy.back();
    shop.close().await;
}
