//! Wires the controllers of pools and of their cells: what is watched, and what wakes which.

use std::{sync::Arc, time::Duration};

use futures::{
    StreamExt,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller,
        controller::{Action, Config, Error as ControllerError},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::time::Instant;
use vitrine_crds::PreviewPool;
use vitrine_policies::cell::record::OfPool;

use super::{cell, keep};
use crate::{
    error::{Error, Result},
    preview::{
        Context,
        controller::WAITING,
        queue::{GuardedListing, GuardedPolicy},
        watches::Told,
    },
    shelf::Shelved,
    workqueue::{self, Look, Workqueue},
};

/// A pool as it is watched: one that cannot be read does not stop the others.
pub type Guarded = DeserializeGuard<PreviewPool>;
type Cell = PartialObjectMeta<Namespace>;

/// Pools that are looked at at once.
const POOLS: u16 = 4;
/// News of a pool within this time are one: a pool under load changes many times a second.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// For how long after the start previews wait for what pools have: about as long as one takes that is made cold.
pub const KNOWN: Duration = Duration::from_secs(3);
/// After a failure. Each is told, and none is urgent: previews that find no warm cell are made cold.
const AGAIN: Duration = Duration::from_secs(2);

/// Wakes previews, cells and pools.
#[derive(Clone, Debug)]
pub struct Wakes {
    /// The previews that are to be looked at.
    pub previews: Arc<Workqueue>,
    /// The cells of pools, or that may be.
    pub cells: Arc<Workqueue>,
    pools: UnboundedSender<ObjectRef<Guarded>>,
}

/// What wakes the controllers from elsewhere in this process.
pub struct Woken {
    /// Pools.
    pub pools: UnboundedReceiver<ObjectRef<Guarded>>,
}

impl Wakes {
    /// Both ends.
    pub fn new() -> (Self, Woken) {
        let (pools, woken) = unbounded();
        let wakes = Self {
            previews: Arc::default(),
            cells: Arc::default(),
            pools,
        };
        (wakes, Woken { pools: woken })
    }

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
        // Without a controller nobody listens.
        let _ = self
            .pools
            .unbounded_send(ObjectRef::new(&of.name).within(&of.namespace));
    }
}

/// The controllers; `run` consumes them.
pub struct Controllers {
    cells: Arc<Workqueue>,
    /// What a watch tells of cells.
    told: UnboundedReceiver<Told<Cell>>,
    pools: Controller<Guarded>,
    /// Pools, also those that are gone, which no controller looks at.
    news: News<Guarded>,
    known: Store<Guarded>,
}

type News<K> = UnboundedReceiver<std::result::Result<K, watcher::Error>>;

/// What the watches tell, each once the stores know it.
pub struct Sources {
    /// Cells.
    pub cells: UnboundedReceiver<Told<Cell>>,
    /// Those that are to be looked at.
    pub cells_queue: Arc<Workqueue>,
    /// Listings.
    pub listings: News<GuardedListing>,
    /// The policy.
    pub policies: News<GuardedPolicy>,
    /// The pools that are known.
    pub known_pools: Store<Guarded>,
    /// Pools, for their controller and for whoever hears of those that are gone.
    pub pools: [News<Guarded>; 2],
    /// Pools of which something was.
    pub woken_pools: UnboundedReceiver<ObjectRef<Guarded>>,
}

/// Makes the controllers.
pub fn controllers(sources: Sources) -> Controllers {
    let store = sources.known_pools;
    let [pools, news] = sources.pools;
    let pools = Controller::for_stream(pools, store.clone());
    let (of_listing, of_policy) = (store.clone(), store.clone());
    let pools = pools
        .with_config(Config::default().concurrency(POOLS).debounce(DEBOUNCE))
        .watches_stream(sources.listings, move |listing| {
            let (namespace, name) = (listing.meta().namespace.clone(), listing.name_any());
            pools_that(&of_listing, |pool| {
                pool.namespace() == namespace && pool.spec.listing_ref.name == name
            })
        })
        .watches_stream(sources.policies, move |_| pools_that(&of_policy, |_| true))
        .reconcile_on(sources.woken_pools);
    Controllers {
        cells: sources.cells_queue,
        told: sources.cells,
        pools,
        news,
        known: store,
    }
}

fn pools_that(store: &Store<Guarded>, wanted: impl Fn(&PreviewPool) -> bool) -> Vec<ObjectRef<Guarded>> {
    let pools = store.state();
    let readable = pools.iter().filter_map(|pool| pool.0.as_ref().ok());
    readable
        .filter(|pool| wanted(pool))
        .map(|pool| ObjectRef::new(&pool.name_any()).within(&pool.namespace().unwrap_or_default()))
        .collect()
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
pub async fn run(controllers: Controllers, context: Arc<Context>) {
    let looked = context.clone();
    let all = controllers.cells.clone();
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
    let queue = controllers.cells;
    let told = controllers.told.for_each(|told| {
        match told {
            Told::There(name) => queue.add(name),
            Told::Listed(names) => queue.add_each(names),
            Told::Gone(cell) => queue.add(cell.key()),
        }
        std::future::ready(())
    });
    let pools = controllers
        .pools
        .run(look_after_pool, failed_pool, context.clone())
        .for_each(|result| async move { log(result) });
    let known = controllers.known;
    let gone = controllers.news.for_each(|pool| {
        if let Ok(pool) = pool {
            forget(&context, &known, &pool);
        }
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
    futures::join!(cells, told, pools, gone, settled);
}

/// The cells of a pool that is gone are nobody's business but their own.
fn forget(context: &Context, known: &Store<Guarded>, pool: &Guarded) {
    let uid = pool.meta().uid.clone().unwrap_or_default();
    let namespace = pool.meta().namespace.clone().unwrap_or_default();
    let there = known.get(&ObjectRef::new(&pool.name_any()).within(&namespace));
    if there.is_none_or(|there| there.meta().uid.as_ref() != Some(&uid)) {
        context.pools.rest(&uid);
        context.wakes.cells(context.pools.cells(&uid));
    }
}

fn log<K: Resource>(
    result: std::result::Result<(ObjectRef<K>, Action), ControllerError<Error, watcher::Error>>,
) where
    K::DynamicType: std::fmt::Debug + Eq + std::hash::Hash + Clone,
{
    match result {
        // Expected after deletes (kube#1167).
        Ok(_) | Err(ControllerError::ObjectNotFound(_)) | Err(ControllerError::ReconcilerFailed(..)) => {}
        Err(error) => tracing::warn!(%error, "the stream of a pool's controller reported an error"),
    }
}

/// What the watches alone say of a cell: whether it is one of a pool's that waits.
fn glance_at_cell(context: &Context, name: &str) -> Look<OfPool> {
    if !context.watched.cells.has(name) {
        context.pools.is_not_there(name, Instant::now());
        keep::tell_totals(context);
        return Look::Rest(workqueue::Action::await_change());
    }
    match cell::waiting(context, name) {
        Ok((_, _, of)) => Look::Step(of),
        Err(action) => Look::Rest(action),
    }
}

async fn look_after_cell(context: &Context, name: &str, of: &OfPool) -> workqueue::Action {
    match cell::step(context, name, of).await {
        Ok(action) => action,
        Err(error) => workqueue::Action::requeue(failed(name, &error, context)),
    }
}

async fn look_after_pool(pool: Arc<Guarded>, context: Arc<Context>) -> Result<Action> {
    match &pool.0 {
        Ok(pool) => keep::step(&context, pool).await,
        Err(invalid) => {
            context.metrics.malformed.inc();
            Err(Error::Malformed {
                name: pool.name_any(),
                message: invalid.error.clone(),
            })
        }
    }
}

fn failed_pool(pool: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Action {
    Action::requeue(failed(&pool.name_any(), error, &context))
}

/// When to try again.
fn failed(name: &str, error: &Error, context: &Context) -> Duration {
    if error.is_conflict() {
        return Duration::from_millis(20);
    }
    context.metrics.failed(error);
    tracing::warn!(name, %error, "failed to look after a pool");
    AGAIN
}
