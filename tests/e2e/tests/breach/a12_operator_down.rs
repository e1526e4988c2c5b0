//! Attack 12: isolation breaks, or its watchman is killed, while there is no operator.

use vitrine_crds::StatusReason;
use vitrine_devcluster::Action;
use vitrine_e2e::installed::{Shop, alone, assert_verified, now_ms};
use vitrine_kit::objects;

use super::{blamed_its_node, killed};

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_a_killed_sidecar_or_a_breach_ends_the_product_all_the_same() {
    let _alone = alone().await;
    let shop = Shop::open("unwatched").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"isolation":{"nodeQuarantine":"20s"}}}"#,
        r#"{"spec":{"isolation":{"nodeQuarantine":null}}}"#,
    );
    let blind = shop.live("blind", objects::SERVE, "3m").await;
    let leaking = shop.live("leaking", objects::SERVE, "3m").await;
    let operator = shop.vitrine.without_operator();

    let begun = now_ms();
    let kill = "tr '\\0' ' ' < $p/cmdline | grep -q 'probe watch' && kill -9 ${p#/proc/} && echo killed";
    assert_eq!(shop.each_process(&blind.pod, kill), "killed\n", "one sidecar");
    killed(&shop, &blind).await;
    println!(
        "sidecar killed: the product seen killed after {} ms",
        now_ms() - begun
    );

    let netpol = shop.vitrine.without("netpol", Action::Stop);
    let begun = now_ms();
    shop.vitrine.flush();
    killed(&shop, &leaking).await;
    let ms = now_ms() - begun;
    println!("chains flushed: the product seen killed after {ms} ms");
    assert!(ms <= 5000, "killed after {ms} ms");

    netpol.back();
    operator.back();
    for live in [&blind, &leaking] {
        assert_verified(&shop.over(&live.name).await, StatusReason::IsolationBroken);
    }
    // What the sidecar saw is not forgotten because another one was started after it.
    assert!(blamed_its_node(&shop, "leaking").await);
    assert!(!blamed_its_node(&shop, "blind").await);
    policy.back();
    shop.close().await;
}
