//! Attack 11: the product takes every port from which a connection could be made, so that a probe which takes its own failure for
//! silence calls everything shut.

use vitrine_crds::{Phase, StatusReason};
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone, assert_verified},
};
use vitrine_kit::{images, objects};

/// From the pod's network namespace, as anything in it would connect.
const CONNECT: &str =
    "grep -q pause $p/comm && nsenter -t ${p#/proc/} -n busybox nc -w 1 203.0.113.10 80 2>&1 < /dev/null";

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_takes_every_port_blinds_no_probe() {
    let _alone = alone().await;
    let shop = Shop::open("ports").await;
    let image = images::hostile().unwrap();
    shop.vitrine.cluster.import_image(&image).unwrap();
    let command = ["/hostile", "leak", "8090", "hold:32768-60999"].map(str::to_owned);
    let mut listing = objects::command("greedy", &image, &command);
    // The kernel's side of 28,000 sockets.
    listing.spec.preview.size.memory = "256Mi".to_owned();
    shop.offer(&listing).await;
    shop.ask("greedy", "greedy", "3m").await;
    let live = shop.ready("greedy").await;
    eventually("no port is left", READY, async || {
        let said = shop.each_process(&live.pod, CONNECT);
        if said.contains("assign requested address") {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;

    let netpol = shop.vitrine.without("netpol", Action::Stop);
    shop.vitrine.flush();
    let told = shop
        .until("greedy", "told", READY, |s| {
            s.phase == Phase::Ending || s.phase.is_terminal()
        })
        .await;
    netpol.back();
    assert_eq!(told.reason, Some(StatusReason::IsolationBroken), "{told:?}");
    // Only who can still connect knows what can be reached; who cannot knows after a while that nothing can be proven.
    let message = told.message.unwrap_or_default();
    assert!(message.contains("REACHED"), "{message}");
    assert_verified(&shop.over("greedy").await, StatusReason::IsolationBroken);
    shop.close().await;
}
