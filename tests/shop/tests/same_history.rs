//! The simulation's histories on a real Postgres: the same scheduler, the same faults, the same history.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sqlx::{Connection, Executor};
use tokio::runtime::Runtime;
use vitrine_api::store::postgres::{MIGRATIONS, Shop};
use vitrine_parts::{seeds, soak};
use vitrine_shop_tests::{
    house::Keys,
    postgres::{SET_CLOCK, copy, database, server, set_clock},
    simulation::{Choice, Runs, history, run},
    town::sell,
};

#[test]
fn one_seed_is_one_history_in_memory_and_in_postgres() {
    let runtime = Arc::new(Runtime::new().unwrap());
    let keys = Arc::new(Keys::default());
    let template = runtime.block_on(async {
        let template = database(server(), &MIGRATIONS).await;
        let mut connection = template.connect().await;
        connection.execute(SET_CLOCK).await.unwrap();
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
        runtime.block_on(set_clock(&pool, Choice::begins()));
        let here = history(
            choice,
            shop,
            Runs::On(runtime.clone()),
            keys.clone(),
            move |now| on.block_on(set_clock(&clock, now)),
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
