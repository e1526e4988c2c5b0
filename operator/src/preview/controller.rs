//! Wires the preview controller: what is watched, how a change finds its preview, how outcomes are reported.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, channel::mpsc};
use jiff::Timestamp;
use k8s_openapi::{
    Resource as _,
    api::{
        coordination::v1::Lease,
        core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        controller::{Action, Config, Error as ControllerError},
        reflector::{self, ObjectRef, Store, reflector},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use vitrine_crds::{Phase, PreviewSandbox, StatusReason};
use vitrine_policies::{
    cell::{Tenant, record, seal},
    names, slots,
};

use super::{
    Context, Guarded,
    apply::{self, Next},
    decide::{self, Plan},
    dereference,
    index::Index,
    looks::{self, Looks},
    observe::{self, End},
    queue::{GuardedListing, Indexes, Watched},
    whose,
};
use crate::{
    api,
    error::{Error, Result},
    lanes::Lane,
    pool::{
        confinement::Doubt,
        controller::{Controllers, Sources, Wakes, Woken, controllers},
        table::Table,
    },
};

/// Reconciliations that may wait for their turn. Each is small until then.
pub const WAITING: u16 = 4096;
/// One reconciliation that takes longer is given up and tried again.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// The controller with its watches, and what they know; `run` consumes the first.
pub fn controller(
    client: &kube::Client,
    slots_namespace: &str,
    receipts_namespace: &str,
    woken: Woken,
    told: Told,
) -> (Controller<Guarded>, Controllers, Watched) {
    let mut reflectors = JoinSet::new();
    let indexes = Indexes::default();
    let (store, [previews]) = stored(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        bare_preview,
        Some(&indexes.previews),
    );
    let controller = Controller::for_stream(previews, store.clone());
    let of_slots = everything().labels(slots::DIMENSION_LABEL);
    let leases: Api<PartialObjectMeta<Lease>> = Api::namespaced(client.clone(), slots_namespace);
    let (cells, [namespaces, pools_cells]) = stored(
        &mut reflectors,
        meta(client),
        in_cells(),
        bare,
        Some(&indexes.cells),
    );
    let (listings, [of_listings, pools_listings]) = stored(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        |_| {},
        None,
    );
    let (policies, [of_policies, pools_policies]) = stored(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        |_| {},
        None,
    );
    let (nodes, []) = stored(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        bare_node,
        None,
    );
    let (slots, [of_leases]) = stored(&mut reflectors, leases, of_slots, bare_slot, Some(&indexes.slots));
    let (receipts, []) = stored(
        &mut reflectors,
        Api::namespaced(client.clone(), receipts_namespace),
        everything().labels(vitrine_receipts::names::STATE_LABEL),
        |_| {},
        None,
    );
    let (pools, pools_pools) = stored(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        |_| {},
        None,
    );
    let sources = Sources {
        known: cells.clone(),
        cells: pools_cells,
        listings: pools_listings,
        policies: pools_policies,
        known_pools: pools.clone(),
        pools: pools_pools,
        woken_cells: woken.cells,
        woken_pools: woken.pools,
    };
    let of_pools = controllers(sources);
    let watched = Watched {
        previews: store.clone(),
        listings,
        nodes,
        cells: cells.clone(),
        pools,
        slots,
        slots_namespace: slots_namespace.to_owned(),
        receipts,
        policies,
        indexes,
        reflectors: Arc::new(reflectors),
    };
    let (of_listing, of_policy) = (store.clone(), store.clone());
    let tenants = Tenants {
        cells,
        previews: store,
        indexes: watched.indexes.clone(),
        told,
    };
    let [of_cells, pods, quotas, ranges, accounts, policies] = std::array::from_fn(|_| tenants.clone());
    let for_turns = watched.clone();
    let controller = controller
        .with_config(Config::default().concurrency(WAITING))
        .reconcile_on(woken.previews)
        .watches_stream(namespaces, move |namespace| of_cells.had(&namespace))
        .watches_stream(
            changes(Api::<Pod>::all(client.clone()), in_cells(), &tenants, any),
            move |o| pods.concerned(&o),
        )
        .watches_stream(
            changes(
                Api::<ResourceQuota>::all(client.clone()),
                in_cells(),
                &tenants,
                |quota, tenants| !tenants.told.pools.confinement.counts(quota),
            ),
            move |o| quotas.live(&o),
        )
        .watches_stream(
            changes(meta::<LimitRange>(client), in_cells(), &tenants, any),
            move |o| ranges.live(&o),
        )
        .watches_stream(
            changes(meta::<ServiceAccount>(client), in_cells(), &tenants, any),
            move |o| accounts.live(&o),
        )
        // Every policy, also those without our label: a foreign one in a cell must be seen.
        .watches_stream(
            changes(meta::<NetworkPolicy>(client), everything(), &tenants, any),
            move |o| policies.live(&o),
        )
        // A slot was freed, perhaps. Only those whose turn it is are woken: a queue of a thousand must not all look at once.
        // Or taken for a preview that was admitted with others: that one is to give it back. Or deleted under a live one.
        .watches_stream(of_leases, move |slot| {
            let mut woken = if for_turns.holder(&slot.name_any()).is_none() {
                for_turns.turns()
            } else {
                vec![]
            };
            woken.extend(by_annotation(&slot).into_iter().filter(|holder| {
                let holder = for_turns.previews.get(holder);
                holder.is_some_and(|guarded| {
                    guarded
                        .0
                        .as_ref()
                        .is_ok_and(|p| is_beside(&slot, p) || p.phase() == Phase::Ready)
                })
            }));
            woken
        })
        .watches_stream(of_listings, move |listing: GuardedListing| {
            let name = listing.name_any();
            by(&of_listing, |p| {
                Some(p.spec.listing_ref.name == name && p.namespace() == listing.namespace() && waits(p))
            })
        })
        .watches_stream(of_policies, move |_| by(&of_policy, |p| Some(waits(p))));
    (controller, of_pools, watched)
}

/// Without what is large and only the API server's own.
fn bare(cell: &mut PartialObjectMeta<Namespace>) {
    cell.metadata.managed_fields = None;
}

/// A preview without what is only the API server's own, and without what only who looks at it needs: he reads it anew.
fn bare_preview(guarded: &mut Guarded) {
    let Ok(preview) = &mut guarded.0 else { return };
    preview.metadata.managed_fields = None;
    let Some(status) = &mut preview.status else { return };
    for condition in &mut status.conditions {
        condition.message = String::new();
    }
    status.url = None;
    status.isolation = None;
    if let Some(receipt) = status
        .receipt
        .as_mut()
        .filter(|receipt| receipt.delivered_at.is_some())
    {
        receipt.signed = None;
    }
}

/// A slot without what its key and its holder do not say.
fn bare_slot(slot: &mut PartialObjectMeta<Lease>) {
    slot.metadata.managed_fields = None;
    if let Some(annotations) = &mut slot.metadata.annotations {
        annotations.remove(slots::KEY_ANNOTATION);
    }
}

/// A node without what is large and not needed to know its room.
fn bare_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// News of one kind, once its store has them: what happened before is looked at then, and what happens after finds it there.
type News<K> = mpsc::UnboundedReceiver<Result<K, watcher::Error>>;

/// A store that a watch of its own keeps, and its news for so many who want them.
fn stored<K, const N: usize>(
    reflectors: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    prune: fn(&mut K),
    index: Option<&Arc<Index<K>>>,
) -> (Store<K>, [News<K>; N])
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let mut told = vec![];
    let news = std::array::from_fn(|_| {
        let (tell, hear) = mpsc::unbounded();
        told.push(tell);
        hear
    });
    let (known, index) = (store.clone(), index.cloned());
    let events = reflector(writer, watcher(api, config).backoff(api::Again).modify(prune));
    reflectors.spawn(events.for_each(move |event| {
        match (&index, &event) {
            (Some(index), Ok(Event::Apply(object))) => index.apply(object),
            (Some(index), Ok(Event::Delete(object))) => index.delete(object),
            (Some(index), Ok(Event::InitDone)) => index.replace(known.state().iter().map(AsRef::as_ref)),
            _ => {}
        }
        let touched = match event {
            Ok(_) if told.is_empty() => vec![],
            Ok(Event::Apply(object) | Event::Delete(object)) => vec![object],
            // Only now does the store have what was listed.
            Ok(Event::InitDone) => known
                .state()
                .iter()
                .map(|object| object.as_ref().clone())
                .collect(),
            Ok(Event::Init | Event::InitApply(_)) => vec![],
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), "a watch was interrupted");
                vec![]
            }
        };
        for object in touched {
            for tell in &told {
                // Without a controller nobody listens.
                let _ = tell.unbounded_send(Ok(object.clone()));
            }
        }
        std::future::ready(())
    }));
    (store, news)
}

/// Every change is news.
const fn any<K>(_: &K, _: &Tenants) -> bool {
    true
}

/// The objects of a kind, and what happens to them, as far as it is news: of that, those who live in their cells have to be looked at as
/// a whole. If the watch is lost everybody has, since it would have told of changes.
fn changes<K>(
    api: Api<K>,
    config: watcher::Config,
    tenants: &Tenants,
    is_news: fn(&K, &Tenants) -> bool,
) -> impl Stream<Item = Result<K, watcher::Error>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let tenants = tenants.clone();
    watcher(api, config).backoff(api::Again).filter_map(move |event| {
        let told = match event {
            Ok(Event::Apply(object)) if !is_news(&object, &tenants) => None,
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                tenants.touch(&object);
                Some(Ok(object))
            }
            Ok(Event::InitApply(object)) => Some(Ok(object)),
            Ok(Event::InitDone) => {
                tenants.told.looks.all_again();
                // Also those of which the new list says nothing: what is gone is in none.
                tenants
                    .told
                    .wakes
                    .cells(tenants.told.pools.doubt_all(doubt::<K>()));
                None
            }
            Ok(Event::Init) => None,
            Err(error) => {
                // What it does not tell from now on, it tells later, or it begins anew. Until then nothing is taken as read.
                tenants.told.pools.confinement.doubt_all(doubt::<K>());
                Some(Err(error))
            }
        };
        std::future::ready(told)
    })
}

fn meta<K>(client: &kube::Client) -> Api<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()>,
{
    Api::all(client.clone())
}

/// Whether a slot is none of those with which a preview was admitted.
fn is_beside(slot: &PartialObjectMeta<Lease>, preview: &PreviewSandbox) -> bool {
    let status = preview.status.as_ref();
    status.is_some_and(|s| !s.slots.is_empty() && !s.slots.contains(&slot.name_any()))
}

/// Whether a change of policy or listing can mean something to a preview.
fn waits(preview: &PreviewSandbox) -> bool {
    matches!(preview.phase(), Phase::Queued | Phase::Refused | Phase::Ready)
}

fn by_annotation<K: ResourceExt>(object: &K) -> Vec<ObjectRef<Guarded>> {
    whose(object.annotations())
        .map(|(namespace, name)| ObjectRef::new(name).within(namespace))
        .into_iter()
        .collect()
}

/// Objects in one answer to a list. A page of pods is a megabyte of JSON, and several kinds are listed at once.
const PAGE: u32 = 100;

fn everything() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

fn in_cells() -> watcher::Config {
    everything().labels(names::CELL_SELECTOR)
}

/// Who has which cell.
#[derive(Clone)]
struct Tenants {
    cells: Store<PartialObjectMeta<Namespace>>,
    previews: Store<Guarded>,
    indexes: Indexes,
    told: Told,
}

/// Who else is told what the watches see in cells.
#[derive(Clone)]
pub struct Told {
    /// Which live previews have to be looked at as a whole.
    pub looks: Arc<Looks>,
    /// Which cells of pools a preview can be ready in at once.
    pub pools: Arc<Table>,
    /// Wakes who looks after these.
    pub wakes: Wakes,
}

impl Tenants {
    /// The preview that has the cell in which something is.
    fn of<K: ResourceExt>(&self, object: &K) -> Vec<ObjectRef<Guarded>> {
        let cell = object.namespace().unwrap_or_default();
        let namespace = self.cells.get(&ObjectRef::new(&cell));
        let mut there = namespace.map_or_else(Vec::new, |namespace| by_annotation(namespace.as_ref()));
        // Also where somebody took the annotation off.
        for preview in self.indexes.in_cell(&cell) {
            if !there.contains(&preview) {
                there.push(preview);
            }
        }
        there
    }

    /// The preview whose pod has changed; a pool's cell is woken as well. That a pod was asked to end is no news to who has asked, where nothing has to be remembered of
    /// its preview at once.
    fn concerned(&self, pod: &Pod) -> Vec<ObjectRef<Guarded>> {
        // A pod that is made, bound and started for a pool is looked at when its deadline comes, or its probe ends.
        if pod.labels().contains_key(names::POOL_LABEL) && observe::has_news(pod) {
            self.told.wakes.cells(pod.namespace());
        }
        let mut woken = self.of(pod);
        let held = pod.finalizers().iter().any(|f| f == names::POD_FINALIZER);
        if held && observe::end(pod) == End::Pending {
            let knows = |p: &PreviewSandbox| {
                let found = p.status.as_ref().is_some_and(|status| status.abuse.is_some());
                !found && decide::cause(p) == Some(StatusReason::Deleted)
            };
            woken.retain(|preview| !self.is(preview, knows));
        }
        woken
    }

    /// The preview in whose cell something has changed is to be looked at as a whole, also one that is about to be live. What confines a
    /// pod that waits for a preview matters as well.
    fn touch<K: Resource<DynamicType = ()>>(&self, object: &K) {
        let cell = object.namespace().unwrap_or_default();
        if self.told.pools.doubt(&cell, doubt::<K>()) {
            self.told.wakes.cells([cell]);
        }
        for preview in self.live(object) {
            self.told.looks.touch(&preview);
        }
    }

    /// Whether a preview is known and so.
    fn is(&self, preview: &ObjectRef<Guarded>, so: impl Fn(&PreviewSandbox) -> bool) -> bool {
        let known = self.previews.get(preview);
        known.is_some_and(|guarded| guarded.0.as_ref().is_ok_and(so))
    }

    /// The preview that has a cell. A cell that it cannot live in as it is has to be looked at as a whole.
    fn had(&self, cell: &PartialObjectMeta<Namespace>) -> Vec<ObjectRef<Guarded>> {
        let mut woken = by_annotation(cell);
        woken.extend(self.indexes.in_cell(&cell.name_any()));
        let live = Namespace {
            metadata: cell.metadata.clone(),
            ..Namespace::default()
        };
        let fits = |tenant: Tenant| seal::holds(&record::had_by(&tenant), &live);
        let suffers = |p: &PreviewSandbox| p.phase() == Phase::Ready && !Tenant::of(p).is_some_and(fits);
        for preview in &woken {
            if self.is(preview, suffers) {
                self.told.looks.touch(preview);
            }
        }
        woken
    }

    /// What confines a preview matters while it lives. At its end all of that goes as well, one after the other, and none of it is
    /// news.
    fn live<K: ResourceExt>(&self, object: &K) -> Vec<ObjectRef<Guarded>> {
        let over = |p: &PreviewSandbox| p.phase() == Phase::Ending || p.phase().is_terminal();
        let mut woken = self.of(object);
        woken.retain(|preview| !self.is(preview, over));
        woken
    }
}

/// What of a cell is in doubt when an object of a kind is another than it was.
fn doubt<K: Resource<DynamicType = ()>>() -> Doubt {
    if K::kind(&()) == Pod::KIND {
        Doubt::Content
    } else {
        Doubt::Confinement
    }
}

fn by(store: &Store<Guarded>, wanted: impl Fn(&PreviewSandbox) -> Option<bool>) -> Vec<ObjectRef<Guarded>> {
    store
        .state()
        .iter()
        .filter_map(|guarded| guarded.0.as_ref().ok().filter(|p| wanted(p) == Some(true)))
        .map(|p| ObjectRef::new(&p.name_any()).within(&p.namespace().unwrap_or_default()))
        .collect()
}

/// Runs until `stop`, and then until what was begun is done.
pub async fn run(
    controller: Controller<Guarded>,
    context: Arc<Context>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let backoff = Arc::new(Backoff::default());
    let (for_reconcile, for_errors) = (backoff.clone(), backoff);
    let lanes = context.clone();
    let stop = async move {
        stop.await;
        lanes.lanes.close();
    };
    controller
        .graceful_shutdown_on(stop)
        .run(
            move |guarded, context| reconcile(guarded, context, for_reconcile.clone()),
            move |guarded, error, context| failed(&guarded, error, &context, &for_errors),
            context,
        )
        .for_each(|result| async move {
            match result {
                // Expected after deletes (kube#1167).
                Ok(_)
                | Err(ControllerError::ObjectNotFound(_))
                | Err(ControllerError::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "the controller's stream reported an error"),
            }
        })
        .await;
}

/// The lane of a preview as the watch has it.
fn lane(preview: &PreviewSandbox) -> Lane {
    match preview.phase() {
        Phase::Queued | Phase::Provisioning | Phase::Proving => Lane::Begins,
        _ => Lane::Lives,
    }
}

async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>, backoff: Arc<Backoff>) -> Result<Action> {
    let name = format!(
        "{}/{}",
        guarded.meta().namespace.as_deref().unwrap_or_default(),
        guarded.name_any()
    );
    let preview = match &guarded.0 {
        Ok(preview) => preview,
        Err(invalid) => {
            context.metrics.malformed.inc();
            return Err(Error::Malformed {
                name,
                message: invalid.error.clone(),
            });
        }
    };
    if let Some(left) = looks::quiet(&context, preview, Timestamp::now()) {
        context.metrics.reconciles.with_label_values(&["ok"]).inc();
        backoff.reset(&name);
        return Ok(Action::requeue(left));
    }
    let Some(_turn) = context.lanes.turn(lane(preview)).await else {
        return Ok(Action::await_change());
    };
    // What it needs, it gets only now.
    let step = Box::pin(step(&guarded, &context));
    let outcome = tokio::time::timeout(PATIENCE, step).await;
    let result = outcome.unwrap_or_else(|_| {
        Err(Error::Installation(format!(
            "the API server took longer than {} s for {name}",
            PATIENCE.as_secs()
        )))
    });
    let label = match &result {
        Ok(_) => "ok",
        Err(error) if error.is_conflict() => "conflict",
        Err(_) => "error",
    };
    context.metrics.reconciles.with_label_values(&[label]).inc();
    if result.is_ok() {
        backoff.reset(&name);
    }
    result
}

async fn step(guarded: &Guarded, context: &Context) -> Result<Action> {
    let (namespace, name) = (guarded.namespace().unwrap_or_default(), guarded.name_any());
    let begun = context.looks.begin(&namespace, &name);
    let Some(mut world) = dereference::dereference(context, &namespace, &name).await? else {
        context.looks.forget(&namespace, &name);
        return Ok(Action::await_change());
    };
    loop {
        let plan = decide::decide(&world, Timestamp::now());
        tracing::debug!(preview = name, ?plan, "decided");
        let lives = matches!(plan, Plan::Idle(_)) && world.preview.phase() == Phase::Ready;
        let lives = lives || matches!(plan, Plan::Open(_) | Plan::Extend(_));
        match apply::apply(context, world, plan).await? {
            Next::Decide(next) => world = *next,
            Next::Wait(action) => {
                if lives {
                    context.looks.done(&namespace, &name, begun);
                }
                return Ok(action);
            }
        }
    }
}

fn failed(guarded: &Guarded, error: &Error, context: &Context, backoff: &Backoff) -> Action {
    context.looks.touch(&ObjectRef::from_obj(guarded));
    let name = format!(
        "{}/{}",
        guarded.meta().namespace.as_deref().unwrap_or_default(),
        guarded.name_any()
    );
    if error.is_conflict() {
        // Somebody wrote first; what they wrote is looked at now.
        return Action::requeue(Duration::from_millis(20));
    }
    context
        .metrics
        .errors
        .with_label_values(&[error.category()])
        .inc();
    let after = backoff.next(&name);
    tracing::warn!(preview = name, %error, retry_ms = after.as_millis(), "failed to reconcile");
    match error {
        Error::Malformed { .. } => Action::await_change(),
        _ => Action::requeue(after),
    }
}

/// How long to wait after the n-th failure in a row, by object.
#[derive(Default)]
struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    fn next(&self, name: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(name.to_owned()).or_default();
        *count += 1;
        FIRST_BACKOFF
            .saturating_mul(2_u32.saturating_pow(*count - 1))
            .min(LONGEST_BACKOFF)
    }

    fn reset(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_starts_anew_after_success() {
        let backoff = Backoff::default();
        assert_eq!(backoff.next("a"), Duration::from_millis(200));
        assert_eq!(backoff.next("a"), Duration::from_millis(400));
        assert_eq!(backoff.next("b"), Duration::from_millis(200));
        for _ in 0..50 {
            assert!(backoff.next("a") <= LONGEST_BACKOFF);
        }
        backoff.reset("a");
        assert_eq!(backoff.next("a"), Duration::from_millis(200));
    }
}
