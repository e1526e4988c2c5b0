//! What is taken for abuse on a real node: a miner is throttled or ended, and who knocks on closed doors and multiplies is blocked.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandboxStatus, StatusReason, preview_sandbox::Measure};
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone},
};
use vitrine_kit::objects;

/// A kubelet counts anew every 10 to 30 seconds, and the shortest period is 10.
const SEEN: Duration = Duration::from_secs(90);
/// Mines, as far as anybody can tell from outside.
const MINE: &str = "(while :; do :; done) &";
/// Asks the proxy for a pool, again and again, with many processes.
const KNOCK: &str = r#"proxy=${HTTPS_PROXY#http://}
(while :; do printf 'CONNECT pool.example:3333 HTTP/1.1\r\nHost: pool.example\r\n\r\n' | nc -w 1 ${proxy%:*} ${proxy#*:}; sleep 0.2; done) &
n=0; while [ $n -lt 40 ]; do sleep 600 & n=$((n + 1)); done"#;

const BEFORE: &str = r#"{"spec":{"abuse":null,"egress":{"allowedNames":[]}}}"#;

fn rules(abuse: &serde_json::Value) -> String {
    json!({"spec": {"abuse": abuse, "egress": {"allowedNames": ["203-0-113-10.at.example"]}}}).to_string()
}

fn measure(status: &PreviewSandboxStatus) -> Option<Measure> {
    status.abuse.as_ref().map(|found| found.measure)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_is_throttled_and_a_graver_score_ends_it() {
    let _alone = alone().await;
    let shop = Shop::open("miner").await;
    let cpu = json!({"percent": 70, "period": "10s", "points": 60});
    let throttling = rules(&json!({"sustainedCpu": cpu, "throttleAt": 50}));
    let policy = shop.vitrine.with_policy(&throttling, BEFORE);
    let script = format!("{MINE}\n{}", objects::SERVE);
    shop.live("miner", &script, "10m").await;
    // One that works no less honestly than it may is left alone.
    shop.live("honest", objects::SERVE, "10m").await;
    let found = shop
        .until("miner", "it is found", SEEN, |s| s.abuse.is_some())
        .await;
    let abuse = found.abuse.clone().unwrap();
    assert_eq!((abuse.score, abuse.measure), (60, Measure::Throttle), "{abuse:?}");
    assert!(
        abuse.reasons[0].contains("of its processor time for 10s"),
        "{abuse:?}"
    );
    let cell = found.cell.unwrap();
    let pods = shop.within::<Pod>(&cell);
    eventually("the node gives it a tenth", SEEN, async || {
        let pod = pods.get("preview").await.map_err(|e| e.to_string())?;
        let status = pod
            .status
            .unwrap_or_default()
            .container_statuses
            .unwrap_or_default();
        let actual = status
            .first()
            .and_then(|c| c.resources.clone()?.limits?.remove("cpu"));
        match actual {
            Some(cpu) if cpu.0 == "5m" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let still = shop
        .until("miner", "it lives on", READY, |s| s.phase == Phase::Ready)
        .await;
    assert_eq!(measure(&still), Some(Measure::Throttle));
    let events = shop.events("miner").await;
    let told = |reason: &str| events.iter().any(|event| event.contains(reason));
    assert!(told("Abuse") && told("Throttled"), "{events:?}");

    let ending = rules(&json!({"sustainedCpu": cpu, "endAt": 50}));
    shop.vitrine
        .kubectl(&["patch", "previewpolicy", "default", "--type=merge", "-p", &ending]);
    shop.live("another", &script, "10m").await;
    let ended = shop
        .until("another", "it is ended", SEEN, |s| s.phase == Phase::Ended)
        .await;
    let receipt = ended.receipt.unwrap();
    assert_eq!(receipt.cause, StatusReason::Abuse);
    assert!(ended.message.unwrap_or_default().len() < 1000);
    let honest = shop
        .until("honest", "it lives", READY, |s| s.phase == Phase::Ready)
        .await;
    assert_eq!(measure(&honest), None);
    drop(policy);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knocks_on_closed_doors_and_multiplies_is_ended_and_gets_no_other_preview() {
    let _alone = alone().await;
    let shop = Shop::open("knocks").await;
    let blocking = rules(&json!({
        "egressDenials": {"count": 5, "points": 60}, "processes": {"count": 40, "points": 60}, "blockAt": 120, "blockFor": "1h"
    }));
    let policy = shop.vitrine.with_policy(&blocking, BEFORE);
    let mut listing = objects::script(
        "knocks",
        &shop.vitrine.busybox,
        &format!("{KNOCK}\n{}", objects::SERVE),
    );
    listing.spec.preview.egress = vec!["203-0-113-10.at.example".to_owned()];
    shop.offer(&listing).await;
    shop.ask("first", "knocks", "10m").await;
    let ended = shop
        .until("first", "it is ended", SEEN, |s| s.phase == Phase::Ended)
        .await;
    assert_eq!(ended.receipt.unwrap().cause, StatusReason::Abuse);
    let abuse = ended.abuse.unwrap();
    assert_eq!(abuse.measure, Measure::Block);
    let reasons = abuse.reasons.join(", ");
    assert!(
        reasons.contains("names asked for that it may not reach") && reasons.contains("processes"),
        "{reasons}"
    );
    let subject = format!("{}-first", shop.namespace);
    shop.ask_for(objects::preview("again", "knocks", &subject, Some("10m")))
        .await;
    let refused = shop
        .until("again", "it is refused", READY, |s| s.phase == Phase::Refused)
        .await;
    assert_eq!(refused.reason, Some(StatusReason::SubjectBlocked));
    shop.ask("somebody-else", "knocks", "10m").await;
    shop.until("somebody-else", "it is let in", READY, |s| {
        s.admitted_at.is_some()
    })
    .await;
    drop(policy);
    shop.close().await;
}
