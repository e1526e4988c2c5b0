//! The simulation's histories on a real Postgres: the same scheduler, the same faults, the same history.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::{Connection, Executor, PgPool};
use tokio::runtime::Runtime;
use vitrine_api::store::postgres::{MIGRATIONS, Shop};
use vitrine_parts::{seeds, soak};
use vitrine_shop_tests::{
    house::Keys,
    postgres::{copy, database, server},
    simulation::{Choice, Runs, history, run},
    town::sell,
};

/// A clock that is set.
const PREPARED: &str = "
CREATE TABLE test_clock (at timestamptz NOT NULL); INSERT INTO test_clock VALUES (now());
GRANT SELECT, UPDATE ON test_clock TO vitrine_api;
CREATE OR REPLACE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM public.test_clock';
";

fn set(runtime: &Runtime, pool: &PgPool, now: Timestamp) {
    let set = sqlx::query("UPDATE test_clock SET at = $1")
        .bind(now.to_sqlx())
        .execute(pool);
    runtime.block_on(set).unwrap();
}

#[test]
fn one_seed_is_one_history_in_memory_and_in_postgres() {
    let runtime = Arc::new(Runtime::new().unwrap());
    let keys = Arc::new(Keys::default());
    let template = runtime.block_on(async {
        let template = database(server(), &MIGRATIONS).await;
        let mut connection = template.connect().await;
        connection.execute(PREPARED).await.unwrap();
        connection.close().await.unwrap();
        let pool = template.pool(None, 1).await;
        sell(&pool).await;
        pool.close().await;
        template
    });
    for seed in seeds(if soak() { 500 } else { 3 }) {
        let pool =
            runtime.block_on(async { copy(server(), &template).await.pool(Some("vitrine_api"), 2).await });
        let random = Arc::new(AtomicU64::new(0));
        let shop = Shop::new(pool.clone(), keys.house()).with_random(Arc::new(move || {
            u128::from(random.fetch_add(1, Ordering::Relaxed) + 1)
        }));
        let choice = Choice::of(seed);
        let (clock, on) = (pool.clone(), runtime.clone());
        set(&runtime, &pool, Choice::begins());
        let here = history(
            choice,
            shop,
            Runs::On(runtime.clone()),
            keys.clone(),
            move |now| set(&on, &clock, now),
        );
        let there = run(choice);
        assert_eq!(here.violation, None, "seed {seed}");
        assert_eq!(
            (here.trace, here.steps, &here.ends),
            (there.trace, there.steps, &there.ends),
            "seed {seed}"
        );
        runtime.block_on(pool.close());
    }
}
