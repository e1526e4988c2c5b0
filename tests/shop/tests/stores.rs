//! The store in Postgres and the one in memory are the same, whether it is asked for one thing after the other or for several at once; and what is
//! compared would show it if they were not.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use vitrine_parts::{seeds, soak};
use vitrine_shop_tests::{
    stores::{
        linear::{at_once, claims, prices},
        same::same,
    },
    wire::Mutant,
};

/// Commands of a history.
const LENGTH: usize = 150;
/// Each mutant is found within so many histories.
const WITHIN: u64 = 40;

#[tokio::test]
async fn random_commands_have_the_same_answers_in_postgres_and_in_memory() {
    for seed in seeds(if soak() { 300 } else { 6 }) {
        assert_eq!(same(seed, LENGTH, None).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clients_at_once_are_answered_as_if_one_came_after_the_other() {
    for seed in seeds(if soak() { 300 } else { 6 }) {
        assert_eq!(at_once(seed, None).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_claim_or_price_at_once_is_each_ones_own() {
    for _ in 0..if soak() { 50 } else { 2 } {
        assert_eq!(claims(None).await, Ok(()));
        assert_eq!(prices(None).await, Ok(()));
    }
}

/// By what a mutant is to be found.
#[derive(Clone, Copy, Debug)]
enum By {
    Commands,
    Clients,
    Claims,
    Prices,
}

/// Statements that forget what they have to look at, or to lock.
const MUTANTS: [(&str, Mutant, By); 10] = [
    (
        "an order is not locked",
        Mutant::new(
            "FROM shop.orders WHERE id = $1 FOR UPDATE",
            "FROM shop.orders WHERE id = $1",
        ),
        By::Clients,
    ),
    (
        "an event is not locked while it is claimed",
        Mutant::new("event_id LIMIT 1 FOR UPDATE SKIP LOCKED", "event_id LIMIT 1"),
        By::Claims,
    ),
    (
        "a task is not locked while it is claimed",
        Mutant::new(
            "order_id, task LIMIT 1 FOR UPDATE SKIP LOCKED",
            "order_id, task LIMIT 1",
        ),
        By::Claims,
    ),
    (
        "a product is not locked while it is priced",
        Mutant::new(
            "FROM shop.products WHERE sku = $1 FOR UPDATE",
            "FROM shop.products WHERE sku = $1",
        ),
        By::Prices,
    ),
    (
        "leases are not looked at",
        Mutant::new("AND (leased_until IS NULL OR", "AND (true OR"),
        By::Commands,
    ),
    (
        "what is handled is claimed again",
        Mutant::new("WHERE handled_at IS NULL AND next_try_at", "WHERE next_try_at"),
        By::Commands,
    ),
    (
        "an event is handled by who has lost it",
        Mutant::new(
            "AND fence = $2 AND handled_at IS NULL",
            "AND $2::int8>0 AND handled_at IS NULL",
        ),
        By::Commands,
    ),
    (
        "a task is done by who has lost it",
        Mutant::new(
            "task = $2 AND fence = $3 FOR UPDATE",
            "task = $2 AND $3::int8>0 FOR UPDATE",
        ),
        By::Commands,
    ),
    (
        "a task that comes to be again has an old fence",
        Mutant::new("fence = nextval('shop.fences')", "fence = fence + 1"),
        By::Commands,
    ),
    (
        "what waits longest is not first",
        Mutant::new(
            "ORDER BY next_try_at, event_id LIMIT 1",
            "ORDER BY event_id LIMIT 1",
        ),
        By::Commands,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_statement_that_forgets_something_is_found() {
    let mut free = vec![];
    for (what, mutant, by) in MUTANTS {
        let mut found = None;
        for seed in 1..=WITHIN {
            let tried = match by {
                By::Commands => same(seed, LENGTH, Some(mutant)).await,
                By::Clients => at_once(seed, Some(mutant)).await,
                By::Claims => claims(Some(mutant)).await,
                By::Prices => prices(Some(mutant)).await,
            };
            if let Err(why) = tried {
                found = Some((seed, why));
                break;
            }
        }
        match found {
            Some((seed, why)) => {
                let why: String = why.chars().take(200).collect();
                eprintln!("{what}: found by {by:?} in history {seed}: {why}");
            }
            None => free.push(what),
        }
    }
    assert!(free.is_empty(), "not found within {WITHIN} histories: {free:?}");
}
