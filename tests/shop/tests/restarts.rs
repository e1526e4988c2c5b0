//! Postgres loses its power while orders are made, paid and licensed: none is lost, doubled or half done.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use futures::{StreamExt, stream};
use serde_json::json;
use sqlx::Executor;
use vitrine_api::books;
use vitrine_shop_tests::{
    around::CLOCK,
    postgres::server,
    town::{CHECKOUT, Town, session_of, until, wants, within},
};
use vitrine_stripe::sim::Act;

/// Orders, of one unit each.
const ORDERS: usize = 24;
/// At once.
const AT_ONCE: usize = 4;
/// So often Postgres ends, after every few orders.
const RESTARTS: usize = 5;
/// A little more than a worker's lease (`vitrine_api::flows::worker::LEASE`): what it was at when the database went is somebody's again then.
const LEASE_SECONDS: i32 = 61;
/// So many leases follow one another at most: each step of an order may have been cut off.
const LEASES: usize = 20;

async fn count(town: &Town, of: &'static str) -> Result<i64, String> {
    let counted = sqlx::query_scalar(of).fetch_one(&town.pool).await;
    counted.map_err(|error| error.to_string())
}

/// Buys something, whatever happens to the database meanwhile: with the same key it is the same order.
async fn buys(town: &Town, buyer: usize) -> (String, String) {
    let (subject, key) = (format!("buyer{buyer}"), format!("k{buyer}"));
    let made = until(async || {
        match town
            .ask(&subject, "POST", CHECKOUT, Some(&key), Some(wants("notes", 1)))
            .await
        {
            (201, made) => Ok(made),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    town.stripe.act(&Act::Pay(session_of(&made))).unwrap();
    (subject, made["order"].as_str().unwrap().to_owned())
}

/// Waits until something is so. What a worker was at when the database went is taken up again when its lease is over: for that, the database's
/// clock is put forward now and then.
async fn comes_true<F: Future<Output = Result<(), String>>>(town: &Town, mut so: impl FnMut() -> F) {
    let mut seen = String::new();
    for _ in 0..LEASES {
        match within(Duration::from_secs(3), &mut so).await {
            Ok(()) => return,
            Err(other) => seen = other,
        }
        let put_forward = sqlx::query("UPDATE test_clock SET ahead = ahead + $1 * interval '1 second'");
        put_forward.bind(LEASE_SECONDS).execute(&town.pool).await.unwrap();
    }
    panic!("not within {LEASES} leases: {seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_ends_again_and_again_and_every_order_comes_to_its_end_once() {
    let mut town = Town::new().await;
    town.pool.execute(CLOCK).await.unwrap();
    let restarts = async {
        for restart in 1..=RESTARTS {
            let enough = i64::try_from(restart * ORDERS / (RESTARTS + 1)).unwrap();
            until(
                async || match count(&town, "SELECT count(*) FROM shop.orders").await {
                    Ok(orders) if orders >= enough => Ok(()),
                    other => Err(format!("{other:?} of {enough} orders")),
                },
            )
            .await;
            tokio::task::spawn_blocking(|| server().restart())
                .await
                .unwrap()
                .unwrap();
        }
    };
    let bought = stream::iter(0..ORDERS)
        .map(|buyer| buys(&town, buyer))
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>();
    let ((), bought) = tokio::join!(restarts, bought);

    for (subject, order) in &bought {
        let path = format!("/api/v1/marketplace/orders/{order}");
        comes_true(&town, async || {
            match town.ask(subject, "GET", &path, None, None).await {
                (200, seen) if seen["stage"] == json!("completed") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    comes_true(&town, async || {
        match town.shop.books().waiting_for_finance().await {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    town.ends().await;
    let orders = i64::try_from(ORDERS).unwrap();
    assert_eq!(count(&town, "SELECT count(*) FROM shop.orders").await, Ok(orders));
    assert_eq!(
        count(
            &town,
            "SELECT count(*) FROM shop.licences WHERE signature IS NOT NULL"
        )
        .await,
        Ok(orders)
    );
    // One session and one payment each, and the books are the same: a deposit, a reserve and a post each.
    let (sessions, intents) = {
        let stripe = town.stripe.stripe();
        (stripe.sessions().count(), stripe.intents().count())
    };
    assert_eq!((sessions, intents), (ORDERS, ORDERS));
    let (finance, key) = town.finance();
    let report = books::compare(&town.shop.books(), &finance, &[key])
        .await
        .unwrap();
    assert_eq!(
        (report.entries, report.equal, report.differing),
        (3 * ORDERS as u64, 3 * ORDERS as u64, 0),
        "{report:?}"
    );
}
