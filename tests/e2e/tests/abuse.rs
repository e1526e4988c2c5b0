//! What is taken for abuse on a real node: a miner is throttled or ended, and who knocks on closed doors and multiplies is blocked.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use vitrine_crds::{Phase, StatusReason, preview_sandbox::Measure};
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone},
};
use vitrine_kit::objects;

/// A kubelet counts anew every 10 to 30 seconds, and the shortest period is 10.
const SEEN: Duration = Duration::from_secs(90);
/// Mines, as far as anybody can tell from outside.
const MINE: &str = "(while :; do :; done) &";
/// Has many processes.
const MULTIPLY: &str = "n=0; while [ $n -lt 40 ]; do sleep 600 & n=$((n + 1)); done";
/// Asks the proxy for a pool, again and again.
const KNOCK: &str = r#"proxy=${HTTPS_PROXY#http://}
(while :; do printf 'CONNECT pool.example:3333 HTTP/1.1\r\nHost: pool.example\r\n\r\n' | nc -w 1 ${proxy%:*} ${proxy#*:}; sleep 1; done) &"#;
/// What they may reach, so that there is a proxy to ask.
const NAME: &str = "203-0-113-10.at.example";

const BEFORE: &str = r#"{"spec":{"abuse":null,"egress":{"allowedNames":[]}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_miner_is_throttled_a_graver_one_ended_and_who_knocks_on_closed_doors_is_blocked() {
    let _alone = alone().await;
    let shop = Shop::open("abuse").await;
    let rules = json!({"spec": {
        "abuse": {
            "sustainedCpu": {"percent": 70, "period": "10s", "points": 60}, "processes": {"count": 40, "points": 45},
            "egressDenials": {"count": 5, "points": 80}, "throttleAt": 50, "endAt": 100, "blockAt": 120, "blockFor": "1h"
        },
        "egress": {"allowedNames": [NAME]}
    }});
    let policy = shop.vitrine.with_policy(&rules.to_string(), BEFORE);
    let listing = |name: &str, script: &str| {
        let script = format!("{script}\n{}", objects::SERVE);
        let mut listing = objects::script(name, &shop.vitrine.busybox, &script);
        listing.spec.preview.egress = vec![NAME.to_owned()];
        listing
    };
    let kinds = [
        ("miner", MINE.to_owned()),
        ("many", format!("{MINE}\n{MULTIPLY}")),
        ("knocks", format!("{KNOCK}\n{MULTIPLY}")),
        // One that works no less honestly than it may is left alone.
        ("honest", String::new()),
    ];
    for (name, script) in &kinds {
        shop.offer(&listing(name, script)).await;
        shop.ask(name, name, "10m").await;
    }

    let found = shop
        .until("miner", "it is found", SEEN, |s| s.abuse.is_some())
        .await;
    let abuse = found.abuse.clone().unwrap();
    assert_eq!((abuse.score, abuse.measure), (60, Measure::Throttle), "{abuse:?}");
    assert!(
        abuse.reasons[0].contains("of its processor time for 10s"),
        "{abuse:?}"
    );
    let pods = shop.within::<Pod>(&found.cell.unwrap());
    eventually("the node gives it a tenth", SEEN, async || {
        let pod = pods.get("preview").await.map_err(|e| e.to_string())?;
        let status = pod.status.unwrap_or_default();
        let actual = status
            .container_statuses
            .unwrap_or_default()
            .first()
            .and_then(|c| c.resources.clone()?.limits?.remove("cpu"));
        match actual {
            Some(cpu) if cpu.0 == "5m" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    let ended = |name: &'static str| {
        let shop = &shop;
        async move {
            let over = shop
                .until(name, "it is ended", SEEN, |s| s.phase == Phase::Ended)
                .await;
            assert_eq!(over.receipt.unwrap().cause, StatusReason::Abuse, "{name}");
            over.abuse.unwrap()
        }
    };
    let many = ended("many").await;
    assert_eq!((many.score, many.measure), (105, Measure::End), "{many:?}");
    let knocks = ended("knocks").await;
    assert_eq!(knocks.measure, Measure::Block, "{knocks:?}");
    let reasons = knocks.reasons.join(", ");
    assert!(
        reasons.contains("names asked for that it may not reach") && reasons.contains("processes"),
        "{reasons}"
    );
    let blocked = format!("{}-knocks", shop.namespace);
    shop.ask_for(objects::preview("again", "honest", &blocked, Some("10m")))
        .await;
    let refused = shop
        .until("again", "it is refused", READY, |s| s.phase == Phase::Refused)
        .await;
    assert_eq!(refused.reason, Some(StatusReason::SubjectBlocked));

    for (name, findings) in [("miner", Some(Measure::Throttle)), ("honest", None)] {
        let lives = shop
            .until(name, "it lives", READY, |s| s.phase == Phase::Ready)
            .await;
        assert_eq!(lives.abuse.map(|found| found.measure), findings, "{name}");
    }
    shop.told("miner", "Abuse").await;
    shop.told("miner", "Throttled").await;
    drop(policy);
    shop.close().await;
}
