//! Random commands, one after the other, are given to both: all that they answer and hold is compared.

use jiff::SignedDuration;
use rand::RngExt;
use vitrine_api::seams::Store;

use super::{
    command::{Command, LEASE, give},
    drawn::History,
    pair::Pair,
};
use crate::{model::epoch, wire::Mutant};

/// Gives one history of so many commands to both.
///
/// # Errors
/// If they differ: in what, and where.
pub async fn same(seed: u64, length: usize, mutant: Option<Mutant>) -> Result<(), String> {
    let pair = Pair::new(mutant).await;
    let mut history = History::new(seed);
    let mut now = epoch();
    for step in 0..length {
        if history.rng.random_bool(0.2) {
            now += SignedDuration::from_secs(history.rng.random_range(0..1200));
            pair.set(now).await;
        }
        let command = history.next(&pair).await;
        let differs = |of_shop: &dyn std::fmt::Debug, of_model: &dyn std::fmt::Debug| {
            Err(format!(
                "seed {seed}, step {step}: {command:?}: {of_shop:?} in Postgres, {of_model:?} in memory"
            ))
        };
        match &command {
            // Both claim the same; what is claimed is given back later, or when another has it.
            Command::ClaimEvent => {
                let (of_shop, of_model) = (
                    pair.shop.claim_event(LEASE).await,
                    pair.model.claim_event(LEASE).await,
                );
                if of_shop != of_model {
                    return differs(&of_shop, &of_model);
                }
                history.events.extend(of_model.ok().flatten());
            }
            Command::ClaimJob => {
                let (of_shop, of_model) = (
                    pair.shop.claim_job(LEASE).await,
                    pair.model.claim_job(LEASE).await,
                );
                if of_shop != of_model {
                    return differs(&of_shop, &of_model);
                }
                history.jobs.extend(of_model.ok().flatten());
            }
            command => {
                let before = pair.model.state().orders();
                let of_shop = give(&pair.shop, command).await;
                if of_shop == "broken" {
                    // The schema refuses more than edges do: one payment of two orders, say. Then nothing has changed.
                    for (id, order) in before {
                        let read = pair.shop.order(id).await;
                        if read.as_ref() != Ok(&order) {
                            return differs(&read, &order);
                        }
                    }
                    // The edge was taken there.
                    pair.model.state().random += 1;
                    continue;
                }
                let of_model = give(&pair.model, command).await;
                if of_shop != of_model {
                    return differs(&of_shop, &of_model);
                }
                if let (Command::Place(placing), true) = (command, of_shop.starts_with("Ok")) {
                    history.orders.push(placing.id);
                }
            }
        }
        let orders = pair.model.state().orders();
        for (id, order) in &orders {
            let read = pair.shop.order(*id).await;
            if read.as_ref() != Ok(order) {
                return differs(&read, order);
            }
        }
    }
    logged(&pair, seed).await
}

/// Whether what has happened is written down alike.
async fn logged(pair: &Pair, seed: u64) -> Result<(), String> {
    let audit = pair.model.state().audit.clone();
    for (order, news) in audit {
        let rows: Vec<(String, String, serde_json::Value)> =
            sqlx::query_as("SELECT actor, kind, body FROM shop.audit WHERE aggregate = $1 ORDER BY number")
                .bind(order)
                .fetch_all(&pair.pool)
                .await
                .unwrap();
        let news = news.into_iter();
        let news: Vec<_> = news
            .map(|one| (one.actor, one.kind.to_owned(), one.body))
            .collect();
        if rows != news {
            return Err(format!(
                "seed {seed}: of {order} was logged {rows:?} in Postgres, {news:?} in memory"
            ));
        }
    }
    Ok(())
}
