//! Attack 3: the policy that confines is away for a moment while there is no operator to see it: a connection that is opened meanwhile
//! would live on.

use std::time::Duration;

use vitrine_crds::StatusReason;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Shop, alone, assert_verified, now_ms},
    streamer::{STREAMER, silent_since_end},
};
use vitrine_policies::names;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_opened_in_a_gap_that_the_operator_did_not_see_is_dead_within_seconds() {
    let _alone = alone().await;
    let shop = Shop::open("gap").await;
    let live = shop.live("gap", STREAMER, "3m").await;
    let operator = shop.vitrine.without_operator();
    let before = shop.vitrine.newest_hit();
    shop.vitrine
        .break_glass(&["-n", &live.cell, "delete", "networkpolicy", names::SEAL]);
    let streams = || {
        let hits = shop.vitrine.hits_from(std::slice::from_ref(&live.ip), before);
        hits.into_iter().filter(|hit| hit.bytes > 0).collect::<Vec<_>>()
    };
    let opened = eventually(
        "a stream is opened in the gap",
        Duration::from_secs(15),
        async || {
            streams()
                .first()
                .map(|hit| hit.at_ms)
                .ok_or_else(|| "none".to_owned())
        },
    )
    .await;
    // Nobody but sidecar and kubelet is there to end it.
    eventually("it is dead", Duration::from_secs(10), async || {
        let last = streams()
            .iter()
            .filter_map(|hit| hit.last_byte_ms)
            .max()
            .unwrap_or(0);
        if now_ms() > last + 1500 {
            println!(
                "without an operator the stream was dead {} ms after it was opened",
                last - opened
            );
            assert!(last - opened <= 5000, "it spoke for {} ms", last - opened);
            Ok(())
        } else {
            Err(format!("the last byte came {} ms ago", now_ms() - last))
        }
    })
    .await;
    operator.back();
    let over = shop.over("gap").await;
    assert_verified(&over, StatusReason::SealBroken);
    silent_since_end(&shop, &live, before).await;
    shop.close().await;
}
