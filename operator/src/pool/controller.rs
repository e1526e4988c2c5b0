//! Wires the controllers of pools and of their cells: what is watched, and what wakes which.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::reflector::ObjectRef,
};
use tokio::time::Instant;
use vitrine_crds::PreviewPool;
use vitrine_policies::cell::record::OfPool;

use super::{cell, keep};
use crate::{
    error::Error,
    preview::{
        Context,
        controller::WAITING,
        queue::{GuardedListing, GuardedPolicy},
        watches::{News, Told, well},
    },
    shelf::Shelved,
    workqueue::{Action, Look, Workqueue},
};

/// A pool as it is watched: one that cannot be read does not stop the others.
pub type Guarded = DeserializeGuard<PreviewPool>;
type Cell = PartialObjectMeta<Namespace>;

/// Pools that are looked at at once.
const POOLS: usize = 4;
/// News of a pool within this time are one: a pool under load changes many times a second.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// For how long after the start previews wait for what pools have: about as long as one takes that is made cold.
pub const KNOWN: Duration = Duration::from_secs(3);
/// After a failure. Each is told, and none is urgent: previews that find no warm cell are made cold.
const AGAIN: Duration = Duration::from_secs(2);

/// Wakes previews, cells and pools.
#[derive(Clone, Debug, Default)]
pub struct Wakes {
    /// The previews that are to be looked at.
    pub previews: Arc<Workqueue>,
    /// The cells of pools, or that may be.
    pub cells: Arc<Workqueue>,
    /// Pools.
    pub pools: Arc<Workqueue>,
}

impl Wakes {
    /// This preview is to be looked at.
    pub fn preview(&self, namespace: &str, name: &str) {
        self.previews.add(format!("{namespace}/{name}"));
    }

    /// These cells are to be looked at.
    pub fn cells(&self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.cells.add(name);
        }
    }

    /// This pool is to be looked at.
    pub fn pool(&self, of: &OfPool) {
        self.pool_named(&of.namespace, &of.name);
    }

    /// This pool is to be looked at: soon, not at once, and not later because it is asked for again. A pool under load changes all the time.
    fn pool_named(&self, namespace: &str, name: &str) {
        self.pools.add_after(format!("{namespace}/{name}"), DEBOUNCE);
    }
}

/// What the watches tell, each once the stores know it.
pub struct Sources {
    /// Cells.
    pub cells: UnboundedReceiver<Told<Cell>>,
    /// Listings.
    pub listings: News<GuardedListing>,
    /// The policy.
    pub policies: News<GuardedPolicy>,
    /// Nodes.
    pub nodes: News<Node>,
    /// Pools, also those that are gone.
    pub pools: News<Guarded>,
}

/// Has pools looked at that something means something to.
fn wake_pools(context: &Context, wanted: impl Fn(&PreviewPool) -> bool) {
    for pool in context.watched.pools.state() {
        if let Ok(pool) = &pool.0
            && wanted(pool)
        {
            let namespace = pool.namespace().unwrap_or_default();
            context.wakes.pool_named(&namespace, &pool.name_any());
        }
    }
}

/// Has cells looked at that nobody is given any more because of their nodes.
fn wake_distrusted(context: &Context) {
    let distrusted = context.pools.distrusted(|warm| context.watched.trusts(warm));
    context.wakes.cells(distrusted);
}

/// Has previews wait until what is there already is known, for they could be ready in it at once.
pub fn begin(context: &Context) {
    let pools = context.watched.pools.state();
    let cells = context.watched.indexes.cells.entries();
    let waiting = cells
        .iter()
        .filter(|(_, cell)| cell.tenant.is_none() && !cell.going);
    let waiting: Vec<_> = waiting.map(|(name, _)| name.to_string()).collect();
    // Before all those that previews have.
    context.wakes.cells(waiting.iter().cloned());
    let pools = pools.iter().filter_map(|pool| pool.0.as_ref().ok()?.uid());
    context.pools.begin(pools.chain(waiting));
}

/// Runs until it is dropped.
pub async fn run(sources: Sources, context: Arc<Context>) {
    let (looked, all) = (context.clone(), context.wakes.cells.clone());
    let cells = async move {
        looked.pools.watched().await;
        let each = move |name: &Arc<str>| {
            glance_at_cell(&looked, name).map(|of| {
                let (context, name) = (looked.clone(), name.clone());
                async move { look_after_cell(&context, &name, &of).await }
            })
        };
        all.work(WAITING, each).await;
    };
    let queue = &context.wakes.cells;
    let told = sources.cells.for_each(|told| {
        match told {
            Told::There(name) => queue.add(name),
            Told::Listed(names) => queue.add_each(names),
            Told::Gone(cell) => queue.add(cell.key()),
        }
        std::future::ready(())
    });
    let (looked, all) = (context.clone(), context.wakes.pools.clone());
    let pools = all.work(POOLS, move |name: &Arc<str>| {
        let Some(pool) = known(&looked, name) else {
            return Look::Rest(Action::await_change());
        };
        let context = looked.clone();
        Look::Step(async move { look_after_pool(&pool, &context).await })
    });
    let of_pools = well(sources.pools).for_each(|pool| {
        let namespace = pool.meta().namespace.clone().unwrap_or_default();
        forget(&context, &namespace, &pool);
        context.wakes.pool_named(&namespace, &pool.name_any());
        std::future::ready(())
    });
    let of_listings = well(sources.listings).for_each(|listing: GuardedListing| {
        let (namespace, name) = (listing.meta().namespace.clone(), listing.name_any());
        wake_pools(&context, |pool| {
            pool.namespace() == namespace && pool.spec.listing_ref.name == name
        });
        std::future::ready(())
    });
    let of_policies = well(sources.policies).for_each(|_: GuardedPolicy| {
        wake_pools(&context, |_| true);
        wake_distrusted(&context);
        std::future::ready(())
    });
    let of_nodes = well(sources.nodes).for_each(|_: Node| {
        wake_distrusted(&context);
        std::future::ready(())
    });
    let settled = async {
        context.pools.watched_within(KNOWN).await;
        tokio::time::sleep(KNOWN).await;
        let unseen = context.pools.give_up_waiting();
        if unseen > 0 {
            tracing::warn!(
                unseen,
                "pools and their cells are looked at slowly: previews do not wait for them"
            );
        }
    };
    futures::join!(
        cells,
        told,
        pools,
        of_pools,
        of_listings,
        of_policies,
        of_nodes,
        settled
    );
}

/// A pool as the watch has it now, by `namespace/name`.
fn known(context: &Context, name: &str) -> Option<Arc<Guarded>> {
    let (namespace, name) = name.split_once('/')?;
    context.watched.pools.get(&ObjectRef::new(name).within(namespace))
}

/// The cells of a pool that is gone are nobody's business but their own.
fn forget(context: &Context, namespace: &str, pool: &Guarded) {
    let uid = pool.meta().uid.clone().unwrap_or_default();
    let there = known(context, &format!("{namespace}/{}", pool.name_any()));
    if there.is_none_or(|there| there.meta().uid.as_ref() != Some(&uid)) {
        context.pools.rest(&uid);
        context.wakes.cells(context.pools.cells(&uid));
    }
}

/// What the watches alone say of a cell: whether it is one of a pool's that waits.
fn glance_at_cell(context: &Context, name: &str) -> Look<OfPool> {
    if !context.watched.cells.has(name) {
        context.pools.is_not_there(name, Instant::now());
        keep::tell_totals(context);
        return Look::Rest(Action::await_change());
    }
    match cell::waiting(context, name) {
        Ok((_, _, of)) => Look::Step(of),
        Err(action) => Look::Rest(action),
    }
}

async fn look_after_cell(context: &Context, name: &str, of: &OfPool) -> Action {
    let looked = cell::step(context, name, of).await;
    looked.unwrap_or_else(|error| failed(name, &error, context))
}

async fn look_after_pool(pool: &Guarded, context: &Context) -> Action {
    let looked = match &pool.0 {
        Ok(pool) => keep::step(context, pool).await,
        Err(invalid) => {
            context.metrics.malformed.inc();
            Err(Error::Malformed {
                name: pool.name_any(),
                message: invalid.error.clone(),
            })
        }
    };
    looked.unwrap_or_else(|error| failed(&pool.name_any(), &error, context))
}

/// When to try again.
fn failed(name: &str, error: &Error, context: &Context) -> Action {
    if error.is_conflict() {
        return Action::requeue(Duration::from_millis(20));
    }
    context.metrics.failed(error);
    tracing::warn!(name, %error, "failed to look after a pool");
    match error {
        Error::Malformed { .. } => Action::await_change(),
        _ => Action::requeue(AGAIN),
    }
}
