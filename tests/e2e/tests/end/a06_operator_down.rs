//! Attack 6: there is no operator when a preview expires.

use std::time::Duration;

use vitrine_crds::StatusReason;
use vitrine_e2e::installed::{Shop, alone, assert_verified, now_ms};

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
