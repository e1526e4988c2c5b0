//! Without a responder nobody can tell whether a preview is isolated: previews end, and no node is blamed for it.

use vitrine_crds::StatusReason;
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone, assert_verified},
};
use vitrine_kit::{install::NAMESPACE, objects};

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

#[tokio::test(flavor = "multi_thread")]
async fn one_responder_that_dies_ends_no_preview_and_none_at_all_ends_it_as_unproven_without_blaming_its_node()
 {
    let _alone = alone().await;
    let shop = Shop::open("responders").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"isolation":{"nodeQuarantine":"10m"},"proofDeadline":"5s"}}"#,
        r#"{"spec":{"isolation":{"nodeQuarantine":null},"proofDeadline":"30s"}}"#,
    );
    let live = shop.live("page", objects::SERVE, "5m").await;
    answering(&shop, "2").await;
    let pods = [
        "-n",
        NAMESPACE,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/component=responder",
        "-o",
        "name",
    ];
    let pods = shop.vitrine.kubectl(&pods);
    let one = pods.lines().next().unwrap();
    shop.vitrine
        .kubectl(&["-n", NAMESPACE, "delete", "--force", "--grace-period=0", one]);
    answering(&shop, "2").await;
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");

    let responders = shop.vitrine.without_responders();
    let over = shop.over("page").await;
    shop.ask("next", "page", "1m").await;
    let next = shop.over("next").await;
    responders.back();
    answering(&shop, "2").await;
    assert_verified(&over, StatusReason::Unproven);
    assert_eq!(next.reason, Some(StatusReason::Unproven), "{next:?}");
    let aside = [
        "get",
        "previewpolicy",
        "default",
        "-o",
        "jsonpath={.status.nodesSetAside}",
    ];
    assert_eq!(shop.vitrine.kubectl(&aside), "");

    // And all is well again.
    shop.ask("last", "page", "1m").await;
    shop.ready("last").await;
    policy.back();
    shop.close().await;
}
