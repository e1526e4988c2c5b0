//! Wires the preview controller: what is watched, how a change finds its preview, how outcomes are reported.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, channel::mpsc};
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota, ServiceAccount},
    networking::v1::NetworkPolicy,
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
use vitrine_crds::{Phase, PreviewPolicy, PreviewSandbox, SkuListing};
use vitrine_policies::{names, slots};

use super::{Context, Guarded, apply, decide, dereference, queue::Watched};
use crate::error::{Error, Result};

/// Reconciliations at once. Bounded: the API server is shared.
const CONCURRENCY: u16 = 16;
/// One reconciliation that takes longer is given up and tried again.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// The controller with its watches, and what they know; `run` consumes the first.
pub fn controller(
    client: &kube::Client,
    slots_namespace: &str,
    receipts_namespace: &str,
) -> (Controller<Guarded>, Watched) {
    let previews: Api<Guarded> = Api::all(client.clone());
    let controller = Controller::new(previews, watcher::Config::default());
    let store = controller.store();
    let mut reflectors = JoinSet::new();
    let (cells, namespaces) = watch_cells(client, &mut reflectors);
    let of_slots = watcher::Config::default().labels(slots::DIMENSION_LABEL);
    let leases: Api<PartialObjectMeta<Lease>> = Api::namespaced(client.clone(), slots_namespace);
    let watched = Watched {
        previews: store.clone(),
        listings: stored(
            &mut reflectors,
            Api::all(client.clone()),
            watcher::Config::default(),
            |_| {},
        ),
        nodes: stored(
            &mut reflectors,
            Api::all(client.clone()),
            watcher::Config::default(),
            bare_node,
        ),
        cells: cells.clone(),
        slots: stored(&mut reflectors, leases.clone(), of_slots.clone(), |_| {}),
        slots_namespace: slots_namespace.to_owned(),
        receipts: stored(
            &mut reflectors,
            Api::namespaced(client.clone(), receipts_namespace),
            watcher::Config::default().labels(vitrine_receipts::names::STATE_LABEL),
            |_| {},
        ),
        policy: Arc::default(),
        reflectors: Arc::new(reflectors),
    };
    let all = || watcher::Config::default();

    let (of_listing, of_policy) = (store.clone(), store.clone());
    let tenants = Tenants {
        cells,
        previews: store,
    };
    let [pods, quotas, ranges, accounts, policies] = std::array::from_fn(|_| tenants.clone());
    let for_turns = watched.clone();
    let controller = controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .watches_stream(namespaces, |namespace| by_annotation(&namespace))
        .watches(Api::<Pod>::all(client.clone()), in_cells(), move |o| pods.of(&o))
        .watches(meta::<ResourceQuota>(client), in_cells(), move |o| {
            quotas.live(&o)
        })
        .watches(meta::<LimitRange>(client), in_cells(), move |o| ranges.live(&o))
        .watches(meta::<ServiceAccount>(client), in_cells(), move |o| {
            accounts.live(&o)
        })
        // Every policy, also those without our label: a foreign one in a cell must be seen.
        .watches(meta::<NetworkPolicy>(client), all(), move |o| policies.live(&o))
        // A slot was freed, perhaps. Only those whose turn it is are woken: a queue of a thousand must not all look at once.
        // Or taken for a preview that was admitted with others: that one is to give it back. Or deleted under a live one.
        .watches(leases, of_slots, move |slot| {
            let mut woken = for_turns.turns();
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
        .watches(meta::<SkuListing>(client), all(), move |listing| {
            let name = listing.name_any();
            by(&of_listing, |p| {
                Some(p.spec.listing_ref.name == name && p.namespace() == listing.namespace() && waits(p))
            })
        })
        .watches(meta::<PreviewPolicy>(client), all(), move |_| {
            by(&of_policy, |p| Some(waits(p)))
        });
    (controller, watched)
}

/// A node without what is large and not needed to know its room.
fn bare_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// A store that a watch of its own keeps.
fn stored<K>(
    reflectors: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    prune: fn(&mut K),
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = reflector(writer, watcher(api, config).default_backoff().modify(prune));
    reflectors.spawn(events.for_each(|event| async move {
        if let Err(error) = event {
            tracing::warn!(%error, kind = %K::kind(&()), "a watch was interrupted");
        }
    }));
    store
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
    let preview = object
        .annotations()
        .get(names::PREVIEW_ANNOTATION)
        .and_then(|text| text.split_once('/'));
    preview
        .map(|(namespace, name)| ObjectRef::new(name).within(namespace))
        .into_iter()
        .collect()
}

fn in_cells() -> watcher::Config {
    watcher::Config::default().labels(names::CELL_SELECTOR)
}

/// Who has which cell.
#[derive(Clone)]
struct Tenants {
    cells: Store<PartialObjectMeta<Namespace>>,
    previews: Store<Guarded>,
}

/// The namespaces come out once the store knows them: what happened in a cell before is looked at then, and what happens after finds
/// its preview.
fn watch_cells(
    client: &kube::Client,
    reflectors: &mut JoinSet<()>,
) -> (
    Store<PartialObjectMeta<Namespace>>,
    impl Stream<Item = Result<PartialObjectMeta<Namespace>, watcher::Error>> + use<>,
) {
    let (cells, writer) = reflector::store();
    let (told, tells) = mpsc::unbounded();
    let events = watcher(meta::<Namespace>(client), in_cells()).default_backoff();
    let events = reflector(
        writer,
        events.modify(|cell: &mut PartialObjectMeta<Namespace>| cell.metadata.managed_fields = None),
    );
    let known = cells.clone();
    reflectors.spawn(events.for_each(move |event| {
        let news = match event {
            Ok(Event::Apply(cell) | Event::Delete(cell)) => vec![Ok(cell)],
            // Only now does the store have what was listed.
            Ok(Event::InitDone) => known
                .state()
                .iter()
                .map(|cell| Ok(cell.as_ref().clone()))
                .collect(),
            Ok(Event::Init | Event::InitApply(_)) => vec![],
            Err(error) => vec![Err(error)],
        };
        for cell in news {
            // Without a controller nobody listens.
            let _ = told.unbounded_send(cell);
        }
        std::future::ready(())
    }));
    (cells, tells)
}

impl Tenants {
    /// The preview that has the cell in which something is.
    fn of<K: ResourceExt>(&self, object: &K) -> Vec<ObjectRef<Guarded>> {
        let cell = object.namespace().unwrap_or_default();
        let namespace = self.cells.get(&ObjectRef::new(&cell));
        namespace.map_or_else(Vec::new, |namespace| by_annotation(namespace.as_ref()))
    }

    /// What confines a preview matters while it lives. At its end all of that goes as well, one after the other, and none of it is
    /// news.
    fn live<K: ResourceExt>(&self, object: &K) -> Vec<ObjectRef<Guarded>> {
        let mut woken = self.of(object);
        woken.retain(|preview| {
            let over = |p: &PreviewSandbox| p.phase() == Phase::Ending || p.phase().is_terminal();
            let known = self.previews.get(preview);
            known.is_none_or(|guarded| !guarded.0.as_ref().is_ok_and(over))
        });
        woken
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

async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>, backoff: Arc<Backoff>) -> Result<Action> {
    let name = format!(
        "{}/{}",
        guarded.meta().namespace.as_deref().unwrap_or_default(),
        guarded.name_any()
    );
    if let Err(invalid) = &guarded.0 {
        context.metrics.malformed.inc();
        return Err(Error::Malformed {
            name,
            message: invalid.error.clone(),
        });
    }
    let outcome = tokio::time::timeout(PATIENCE, step(&guarded, &context)).await;
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
    let namespace = guarded.meta().namespace.clone().unwrap_or_default();
    let Some(world) = dereference::dereference(context, &namespace, &guarded.name_any()).await? else {
        return Ok(Action::await_change());
    };
    let plan = decide::decide(&world, Timestamp::now());
    tracing::debug!(preview = world.preview.name_any(), ?plan, "decided");
    apply::apply(context, world, plan).await
}

fn failed(guarded: &Guarded, error: &Error, context: &Context, backoff: &Backoff) -> Action {
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
