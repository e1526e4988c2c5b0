//! A preview that makes process after process stays within its own: the node's other pods do not notice.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, together},
};
use vitrine_kit::objects;

/// `podPidsLimit` of the development cluster's kubelet.
const LIMIT: usize = 512;
/// Tries to have far more, beside a product that can be looked at.
const BOMB: &str = "(n=0; while [ $n -lt 3000 ]; do sleep 300 & n=$((n + 1)); done) &";

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_kept_to_its_pod() {
    let _together = together().await;
    let shop = Shop::open("forks").await;
    let script = format!("{BOMB}\n{}", objects::SERVE);
    let mut bomb = objects::script("bomb", &shop.vitrine.busybox, &script);
    // So that processes run out before memory does.
    bomb.spec.preview.size.memory = "256Mi".to_owned();
    shop.offer(&bomb).await;
    shop.ask("bomb", "bomb", "1m").await;
    let isolated = shop
        .until("bomb", "isolated", READY, |s| s.isolation.is_some())
        .await;
    let pod = isolated.pod.unwrap().uid;
    let count = || shop.each_process(&pod, "echo").lines().count();
    eventually("it has made many", Duration::from_secs(30), async || {
        let now = count();
        if now > LIMIT / 2 {
            Ok(())
        } else {
            Err(format!("{now} processes"))
        }
    })
    .await;
    let most = (0..5).map(|_| count()).max().unwrap_or_default();
    println!("of 3000 processes {most} came to be");
    assert!(most <= LIMIT, "{most} processes of one pod");
    // A neighbour comes and lives meanwhile.
    let neighbour = shop.live("neighbour", objects::SERVE, "1m").await;
    assert_eq!(neighbour.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}
