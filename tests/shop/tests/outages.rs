//! What a shop does while somebody it needs is away: nothing is lost, nothing is done twice, and it goes on by itself.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::Executor;
use vitrine_shop_tests::{
    around::CLOCK,
    town::{Plan, Town, until, within},
};
use vitrine_stripe::sim::{Act, Limits};

/// Orders that are paid meanwhile.
const ORDERS: usize = 6;

async fn minutes_go_by(town: &Town, minutes: i32) {
    sqlx::query("UPDATE test_clock SET ahead = ahead + make_interval(mins => $1)")
        .bind(minutes)
        .execute(&town.pool)
        .await
        .unwrap();
}

async fn one<T>(pool: &sqlx::PgPool, sql: &'static str) -> T
where
    T: Send + Unpin + sqlx::Type<sqlx::Postgres> + for<'r> sqlx::Decode<'r, sqlx::Postgres>,
{
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// FIN-02: nothing is licensed that Finance has not acknowledged, however long it is away, and all of it when it is back.
#[tokio::test]
async fn finance_is_away_for_ten_minutes_and_nothing_is_licensed_meanwhile() {
    let mut town = Town::new().await;
    town.pool.execute(CLOCK).await.unwrap();
    town.finance_is_up(false);
    let mut orders = vec![];
    for number in 0..ORDERS {
        let buyer = format!("buyer-{number}");
        let (order, session) = town.orders(&buyer, "notes", 1).await;
        town.stripe.act(&Act::Pay(session)).unwrap();
        // Paid, which everybody may see.
        let seen = town.reaches(&buyer, &order, "awaiting_finance").await;
        assert_eq!(seen["payment"]["paymentStatus"], "succeeded");
        orders.push((buyer, order));
    }
    for _ in 0..10 {
        minutes_go_by(&town, 1).await;
        // Whatever is to be tried by then was tried.
        until(async || {
            let due = "SELECT count(*) FROM shop.tasks WHERE next_try_at <= shop.now()";
            match one::<i64>(&town.pool, due).await {
                0 => Ok(()),
                due => Err(due.to_string()),
            }
        })
        .await;
        let licences: i64 = one(&town.pool, "SELECT count(*) FROM shop.licences").await;
        assert_eq!(licences, 0);
        let entries: i64 = one(&town.books, "SELECT count(*) FROM ledger.entries").await;
        assert_eq!(entries, 0);
    }
    // It was asked again and again, and more seldom each time.
    let tries: i64 = one(&town.pool, "SELECT min(tries)::bigint FROM shop.tasks").await;
    assert!((5..30).contains(&tries), "{tries}");
    town.finance_is_up(true);
    // Nobody waits for longer than this to ask again (`api/src/flows/worker.rs`).
    minutes_go_by(&town, 5).await;
    for (buyer, order) in &orders {
        let done = town.reaches(buyer, order, "completed").await;
        assert_eq!(done["held"], Value::Array(vec![]), "{done}");
    }
    // By then the shop's clock is a quarter of an hour ahead. When something was paid, Stripe says (CHK-31).
    let (late, session) = town.orders("late", "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    let done = town.reaches("late", &late, "completed").await;
    let payment = &done["payment"];
    assert_eq!(payment["method"], "card", "{done}");
    assert!(
        payment["paymentIntentId"].as_str().unwrap().starts_with("pi_"),
        "{done}"
    );
    assert_eq!(payment["paymentStatus"], "succeeded", "{done}");
    let paid_at: Timestamp = done["payment"]["paidAt"].as_str().unwrap().parse().unwrap();
    let since = Timestamp::now().duration_since(paid_at);
    assert!((0..120).contains(&since.as_secs()), "{since:#}");
    // Each once: what was asked for again and again is one entry.
    let licences: i64 = one(&town.pool, "SELECT count(*) FROM shop.licences").await;
    assert_eq!(usize::try_from(licences).unwrap(), ORDERS + 1);
    let reserved: i64 = one(
        &town.books,
        "SELECT count(*) FROM ledger.entries WHERE kind = 'reserve'",
    )
    .await;
    assert_eq!(usize::try_from(reserved).unwrap(), ORDERS + 1);
    town.ends().await;
}

/// Stripe takes fewer requests than the shop thinks that it may send. It finds that out by few, and every order is licensed all the same.
#[tokio::test]
async fn a_stripe_that_takes_less_than_was_thought_is_not_stormed() {
    const BUYERS: usize = 20;
    let mut town = Town::built(Plan {
        stripe_rate: 40,
        ..Plan::default()
    })
    .await;
    let mut orders = vec![];
    for number in 0..BUYERS {
        let buyer = format!("buyer-{number}");
        let (order, session) = town.orders(&buyer, "notes", 1).await;
        orders.push((buyer, order, session));
    }
    town.stripe.stripe().limit(Limits {
        account: 20,
        endpoint: 20,
    });
    let before = town.stripe.asked().len();
    for (_, _, session) in &orders {
        town.stripe.act(&Act::Pay(session.clone())).unwrap();
    }
    for (buyer, order, _) in &orders {
        let done = within(Duration::from_secs(60), async || {
            let path = format!("/api/v1/marketplace/orders/{order}");
            let (_, seen) = town.ask(buyer, "GET", &path, None, None).await;
            if seen["stage"] == "completed" {
                Ok(())
            } else {
                Err(seen.to_string())
            }
        });
        assert_eq!(done.await, Ok(()));
    }
    let (answered, turned_away) = (town.stripe.asked().len() - before, town.stripe.turned_away());
    eprintln!("{answered} requests were answered, and {turned_away} turned away");
    assert!(turned_away > 0, "it was never asked too often");
    assert!(turned_away * 10 < answered, "{turned_away} beside {answered}");
    town.ends().await;
}
