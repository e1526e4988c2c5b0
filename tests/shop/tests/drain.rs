//! The shop's process from its readiness to its end: it is ready when its schema is there, and told to end while buyers come in it says so first and
//! answers everybody who has come.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use vitrine_parts::Running;
use vitrine_shop_tests::{
    around::{Around, program, spawn},
    town::{CHECKOUT, until, wants},
};

/// Buyers at once.
const BUYERS: usize = 4;
/// Orders that make a load.
const LOAD: i64 = 11;
/// How often a load balancer looks whether a process is ready; ours has five seconds (`vitrine_service::serve`).
const LOOKS: Duration = Duration::from_millis(500);

async fn is_ready(client: &reqwest::Client, around: &Around) -> bool {
    let asked = client.get(format!("{}/readyz", around.watched)).send().await;
    asked.is_ok_and(|answer| answer.status().is_success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_ready_with_its_schema_and_answers_whoever_has_come_before_its_end() {
    let program = program(env!("CARGO_TARGET_TMPDIR"));
    let around = Around::direct(2).await;
    let mut shop = Running(spawn(&program, &around.arguments));
    let client = vitrine_api::outside::client().unwrap();
    until(async || match is_ready(&client, &around).await {
        true => Ok(()),
        false => Err("not ready yet".to_owned()),
    })
    .await;
    // A schema that lacks a step is not what this program needs, and it says so; orders that it could not keep right do not come to it.
    for is_taken in [false, true] {
        let newest = "UPDATE _sqlx_migrations SET success = $1 WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
        sqlx::query(newest)
            .bind(is_taken)
            .execute(&around.pool)
            .await
            .unwrap();
        until(async || match is_ready(&client, &around).await {
            ready if ready == is_taken => Ok(()),
            ready => Err(format!("ready: {ready}, and the last step is taken: {is_taken}")),
        })
        .await;
    }
    let is_out = AtomicBool::new(false);
    // Sends buyers there until it has seen that the process is not ready.
    let balancer = async {
        while is_ready(&client, &around).await {
            tokio::time::sleep(LOOKS).await;
        }
        is_out.store(true, Ordering::Relaxed);
    };
    let buyers = (0..BUYERS).map(async |buyer| {
        let mut made = 0;
        while !is_out.load(Ordering::Relaxed) {
            let (subject, key) = (format!("buyer{buyer}"), format!("k{made}"));
            let asked = around
                .ask(&subject, "POST", CHECKOUT, Some(&key), Some(wants("notes", 1)))
                .await;
            let (status, said) = asked.unwrap_or_else(|| panic!("buyer {buyer} was not answered"));
            assert_eq!(status, 201, "{said}");
            made += 1;
        }
        made
    });
    let kept = async || -> i64 {
        let counted = sqlx::query_scalar("SELECT count(*) FROM shop.orders");
        counted.fetch_one(&around.pool).await.unwrap()
    };
    let ends = async {
        until(async || match kept().await {
            orders if orders >= LOAD => Ok(()),
            orders => Err(format!("{orders} orders are no load")),
        })
        .await;
        let told = Command::new("kill")
            .arg(shop.0.id().to_string())
            .status()
            .unwrap();
        assert!(told.success());
        let told = Instant::now();
        let status = tokio::task::spawn_blocking(move || shop.0.wait().unwrap())
            .await
            .unwrap();
        (status, told.elapsed())
    };
    let (made, (status, took), ()) = tokio::join!(join_all(buyers), ends, balancer);
    assert!(status.success(), "{status}");
    assert!(
        took >= Duration::from_secs(5),
        "it did not wait for the load balancer: {took:?}"
    );
    let made: i64 = made.into_iter().sum();
    assert!(made >= LOAD, "{made} orders are no load");
    assert_eq!(made, kept().await);
}
