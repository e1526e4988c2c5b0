//! Attack 1: a pod has an address of a family that the cluster's policies do not cover, and reaches neighbours by it.

use std::time::Duration;

use vitrine_crds::{Phase, StatusReason};
use vitrine_e2e::installed::{Shop, assert_verified, together};
use vitrine_kit::objects;

/// Gives the network namespace of a process IPv6, as a node does that has not turned it off.
const TURN_ON: &str = "nsenter -t ${p#/proc/} -n sh -c 'for s in all eth0; do echo 0 > /proc/sys/net/ipv6/conf/$s/disable_ipv6; done' && echo on";

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_that_gets_an_ipv6_address_is_ended() {
    let _together = together().await;
    let shop = Shop::open("ipv6").await;
    let live = shop.live("page", objects::SERVE, "3m").await;
    let one = format!("grep -q pause $p/comm && {TURN_ON}");
    assert_eq!(shop.each_process(&live.pod, &one), "on\n");
    let told = shop
        .until("page", "told", Duration::from_secs(20), |s| {
            s.phase == Phase::Ending || s.phase.is_terminal()
        })
        .await;
    let message = told.message.unwrap_or_default();
    assert!(message.contains("IPv6 addresses: fe80"), "{message}");
    assert_verified(&shop.over("page").await, StatusReason::IsolationBroken);
    shop.close().await;
}
