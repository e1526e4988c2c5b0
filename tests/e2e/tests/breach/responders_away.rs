//! Without a responder nobody can tell whether a preview is isolated: previews end, and no node is blamed for it.

use std::time::{Duration, Instant};

use vitrine_crds::{Phase, StatusReason};
use vitrine_devcluster::Place;
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone, assert_verified},
};
use vitrine_kit::{install::NAMESPACE, objects};
use vitrine_policies::names;

use super::blamed_its_node;

/// For how long a preview may be unproven, as the sidecar has it.
const UNPROVEN: Duration = Duration::from_secs(15);
const RESPONDERS: &str = "deployment/vitrine-responder";

/// Waits until so many responders answer.
async fn answering(shop: &Shop, count: &str) {
    eventually(&format!("{count:?} responders answer"), READY, async || {
        let ready = [
            "-n",
            NAMESPACE,
            "get",
            RESPONDERS,
            "-o",
            "jsonpath={.status.readyReplicas}",
        ];
        let ready = shop.vitrine.try_kubectl(&ready)?;
        if ready == count { Ok(()) } else { Err(ready) }
    })
    .await;
}

/// Everything to an address vanishes, as if its machine had died; what looks after it from its own node sees nothing.
struct Blackhole<'a>(&'a Shop, String);

impl<'a> Blackhole<'a> {
    fn dig(shop: &'a Shop, ip: &str) -> Self {
        let hole = Self(shop, ip.to_owned());
        hole.rule("-I").unwrap();
        hole
    }

    fn rule(&self, verb: &str) -> Result<(), String> {
        let rule = ["iptables", "-w", verb, "FORWARD", "-d", &self.1, "-j", "DROP"];
        let done = self.0.vitrine.cluster.exec(Place::Node, &rule);
        let done = done.map_err(|error| error.to_string())?;
        if done.code == 0 {
            Ok(())
        } else {
            Err(format!("{done:?}"))
        }
    }
}

impl Drop for Blackhole<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.rule("-D") {
            eprintln!("the responder stays out of reach: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responder_whose_machine_died_ends_no_preview_while_there_is_another() {
    let _alone = alone().await;
    let shop = Shop::open("responder").await;
    answering(&shop, "2").await;
    let live = shop.live("page", objects::SERVE, "5m").await;
    let ip = "jsonpath={.items[0].status.podIP}";
    let selector = "app.kubernetes.io/component=responder";
    let ip = shop
        .vitrine
        .kubectl(&["-n", NAMESPACE, "get", "pods", "-l", selector, "-o", ip]);
    let hole = Blackhole::dig(&shop, &ip);
    let begun = Instant::now();
    eventually("far longer than a preview may be unproven", READY, async || {
        let passed = begun.elapsed();
        if passed > UNPROVEN * 2 {
            Ok(())
        } else {
            Err(format!("{passed:?}"))
        }
    })
    .await;
    let words = shop
        .vitrine
        .kubectl(&["-n", &live.cell, "logs", names::POD, "-c", names::WATCH]);
    drop(hole);
    assert!(
        words.contains("the canary does not answer"),
        "it did not notice: {words}"
    );
    let now = shop.until("page", "it is there", READY, |_| true).await;
    assert_eq!(now.phase, Phase::Ready, "{now:?}");
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_responder_previews_end_as_unproven_and_no_node_is_blamed() {
    let _alone = alone().await;
    let shop = Shop::open("responders").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"isolation":{"nodeQuarantine":"10m"},"proofDeadline":"5s"}}"#,
        r#"{"spec":{"isolation":{"nodeQuarantine":null},"proofDeadline":"30s"}}"#,
    );
    shop.live("page", objects::SERVE, "5m").await;
    let responders = shop.vitrine.without_responders();
    let over = shop.over("page").await;
    shop.ask("next", "page", "1m").await;
    let next = shop.over("next").await;
    responders.back();
    answering(&shop, "2").await;
    assert_verified(&over, StatusReason::Unproven);
    assert_eq!(next.reason, Some(StatusReason::Unproven), "{next:?}");
    for name in ["page", "next"] {
        assert!(!blamed_its_node(&shop, name).await, "{name}");
    }
    // And all is well again.
    shop.ask("last", "page", "1m").await;
    shop.ready("last").await;
    policy.back();
    shop.close().await;
}
