//! Isolation that breaks under a running preview: it ends within seconds, with the operator and without it.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a03_gap_unseen;
mod a10_chains_flushed;
mod a12_operator_down;
mod responders_away;

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, Shop},
};
use vitrine_policies::names;

/// Waits until the product of a preview is seen to have ended.
async fn killed(shop: &Shop, live: &Live) {
    let pods = shop.within::<Pod>(&live.cell);
    eventually("the product is killed", Duration::from_secs(20), async || {
        let pod = pods.get_opt(names::POD).await;
        let status = pod.map_err(|error| error.to_string())?.and_then(|pod| pod.status);
        let states = status.unwrap_or_default().container_statuses.unwrap_or_default();
        let over = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.terminated.is_some());
        if states.iter().all(over) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    })
    .await;
}

/// Whether a preview's node was set aside because of it, as its events tell.
async fn blamed_its_node(shop: &Shop, preview: &str) -> bool {
    let events = shop.events(preview).await;
    events.iter().any(|event| event.starts_with("NodeSetAside"))
}
