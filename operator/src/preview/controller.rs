//! Wires the preview controller: what is watched, how a change finds its preview, how outcomes are reported.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::{
    Resource as _,
    api::{
        coordination::v1::Lease,
        core::v1::{LimitRange, Namespace, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, reflector::ObjectRef},
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use vitrine_crds::{Phase, PreviewSandbox, StatusReason};
use vitrine_policies::{
    cell::{
        Tenant, boundary,
        record::{self, Record},
        seal,
    },
    names,
};

use super::{
    Context, Guarded,
    apply::{self, Next},
    begins,
    decide::{self, Plan, World},
    dereference, held, is_waiting,
    looks::{self, Looks},
    observe::{self, End},
    queue::{GuardedListing, GuardedPolicy, Indexes, Watched, reference},
    quotas,
    watches::{
        self, bare, bare_node, bare_ones, bare_preview, everything, in_cells, meta, objects, shelved, stored,
        well,
    },
    whose,
};
use crate::{
    api,
    error::{Error, Result},
    lanes::Lane,
    listing,
    pool::{
        confinement::Doubt,
        controller::{KNOWN, Sources, Wakes},
        table::Table,
    },
    shelf::{Shelf, Shelved},
    tail::{self, tail},
    workqueue::{Action, Look, Workqueue},
};

/// Reconciliations that may wait for their turn. Each is small until then.
pub const WAITING: usize = 4096;
/// One reconciliation that takes longer is given up and tried again.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Looks after previews; `run` consumes it.
pub struct Previews {
    queue: Arc<Workqueue>,
    /// What the watches tell, as the previews that are to be looked at because of it.
    feeds: Vec<BoxFuture<'static, ()>>,
}

/// The controller with its watches, and what they know; `run` consumes the first.
pub fn controller(
    client: &kube::Client,
    slots_namespace: &str,
    receipts_namespace: &str,
    told: Told,
) -> (Previews, Sources, listing::controller::Sources, Watched) {
    let mut reflectors = JoinSet::new();
    let indexes = Indexes::default();
    let (previews, [of_previews]) = shelved(
        &mut reflectors,
        Api::all(client.clone()),
        everything(),
        bare_preview,
        &indexes.previews,
    );
    let leases: Api<PartialObjectMeta<Lease>> = Api::namespaced(client.clone(), slots_namespace);
    let (cells, [namespaces, pools_cells]) = shelved(
        &mut reflectors,
        meta(client),
        bare_ones(in_cells()),
        bare,
        &indexes.cells,
    );
    let (slots, of_slots) = watches::held(&mut reflectors, leases);
    let all = || Api::all(client.clone());
    let (listings, [of_listings, pools_listings, listings_own]) =
        stored(&mut reflectors, Api::all(client.clone()), everything(), |_| {});
    let (policies, [of_policies, pools_policies, listings_policies]) =
        stored(&mut reflectors, Api::all(client.clone()), everything(), |_| {});
    let (nodes, [pools_nodes]) = stored(&mut reflectors, all(), everything(), bare_node);
    let receipts = Api::namespaced(client.clone(), receipts_namespace);
    let receipts = watches::spooled(&mut reflectors, receipts);
    let (pools, [pools_pools]) = stored(&mut reflectors, Api::all(client.clone()), everything(), |_| {});
    let tenants = Tenants {
        cells: cells.clone(),
        previews: previews.clone(),
        indexes: indexes.clone(),
        told,
    };
    follow_cells(&mut reflectors, client, &tenants);
    let wakes = &tenants.told.wakes;
    let queue = wakes.previews.clone();
    let sources = Sources {
        cells: pools_cells,
        listings: pools_listings,
        policies: pools_policies,
        nodes: pools_nodes,
        pools: pools_pools,
    };
    let of_sales = listing::controller::Sources {
        listings: listings_own,
        policies: listings_policies,
    };
    let watched = Watched {
        previews: previews.clone(),
        listings,
        nodes,
        cells: cells.clone(),
        pools,
        slots,
        receipts,
        policies,
        indexes,
        reflectors: Arc::new(reflectors),
    };
    let (for_turns, of_listing, of_policy) = (watched.clone(), previews.clone(), previews);
    let named = queue.clone();
    let feeds = vec![
        of_previews
            .for_each(move |told| {
                match told {
                    watches::Told::There(name) => named.add(name),
                    watches::Told::Listed(names) => named.add_each(names),
                    watches::Told::Gone(preview) => named.add(preview.key()),
                }
                std::future::ready(())
            })
            .boxed(),
        feed(&queue, objects(&cells, namespaces), move |namespace| {
            tenants.had(&namespace)
        }),
        // A slot was freed, perhaps. Only those whose turn it is are woken: a queue of a thousand must not all look at once.
        // Or taken for a preview that was admitted with others: that one is to give it back. Or deleted under a live one.
        feed(&queue, of_slots, move |told| {
            let (slot, holder) = match told {
                // Which were freed or taken meanwhile nobody tells.
                held::Told::All => {
                    let mut woken = for_turns.turns();
                    woken.extend(for_turns.admitted());
                    return woken;
                }
                held::Told::Of(slot, holder) => (slot.to_string(), holder),
            };
            let mut woken = if for_turns.slots.is_held(&slot) {
                vec![]
            } else {
                for_turns.turns()
            };
            woken.extend(holder.and_then(|uid| for_turns.living(&uid)).and_then(|name| {
                let holder = for_turns.previews.get(&name)?;
                let holder = holder.0.as_ref().ok()?;
                let concerned = is_beside(&slot, holder) || holder.phase() == Phase::Ready;
                concerned.then(|| reference(&name)).flatten()
            }));
            woken
        }),
        feed(&queue, well(of_listings), move |listing: GuardedListing| {
            let name = listing.name_any();
            by(&of_listing, |p| {
                Some(p.spec.listing_ref.name == name && p.namespace() == listing.namespace() && waits(p))
            })
        }),
        feed(&queue, well(of_policies), move |_: GuardedPolicy| {
            by(&of_policy, |p| Some(waits(p) || p.phase().is_terminal()))
        }),
    ];
    (Previews { queue, feeds }, sources, of_sales, watched)
}

/// Has previews looked at because of what happens in their cells: from the beginning, so that looks can begin once all that is kept is known.
fn follow_cells(watches: &mut JoinSet<()>, client: &kube::Client, tenants: &Tenants) {
    let (queue, cells_only) = (&tenants.told.wakes.previews, Some(names::CELL_SELECTOR));
    let [pods, quotas, ranges, accounts, policies] = std::array::from_fn(|_| tenants.clone());
    watches.spawn(feed(
        queue,
        changes(Api::<Pod>::all(client.clone()), cells_only, tenants, any),
        move |pod| pods.concerned(&pod),
    ));
    watches.spawn(feed(
        queue,
        changes(
            Api::<ResourceQuota>::all(client.clone()),
            cells_only,
            tenants,
            |quota, tenants| {
                !tenants.told.pools.confinement.counts(quota)
                    || boundary::exceeded(quota, quota).next().is_some()
            },
        ),
        move |quota| {
            if quotas::closes(&quota) {
                quotas.furnished(&quota);
            }
            quotas.live(&quota)
        },
    ));
    watches.spawn(feed(
        queue,
        bare_changes::<LimitRange>(client, cells_only, tenants),
        move |range| ranges.live(&range),
    ));
    // Every account, also without our label: that of the controller-manager is waited for.
    watches.spawn(feed(
        queue,
        bare_changes::<ServiceAccount>(client, None, tenants),
        move |account| {
            if quotas::furnishes(&account) {
                accounts.furnished(&account);
            }
            accounts.live(&account)
        },
    ));
    // Every policy, also those without our label: a foreign one in a cell must be seen.
    watches.spawn(feed(
        queue,
        bare_changes::<NetworkPolicy>(client, None, tenants),
        move |policy| policies.live(&policy),
    ));
}

/// Has previews looked at because of what a watch tells.
fn feed<K: Send + 'static>(
    queue: &Arc<Workqueue>,
    objects: impl Stream<Item = K> + Send + 'static,
    mut wakes: impl FnMut(K) -> Vec<ObjectRef<Guarded>> + Send + 'static,
) -> BoxFuture<'static, ()> {
    let queue = queue.clone();
    objects
        .for_each(move |object| {
            for preview in wakes(object) {
                queue.add(named_by(&preview));
            }
            std::future::ready(())
        })
        .boxed()
}

/// `namespace/name`.
fn named_by(preview: &ObjectRef<Guarded>) -> String {
    format!(
        "{}/{}",
        preview.namespace.as_deref().unwrap_or_default(),
        preview.name
    )
}

/// Every change is news.
const fn any<K>(_: &K, _: &Tenants) -> bool {
    true
}

/// What happens to the objects of a kind, as far as it is news: of that, those who live in their cells have to be looked at as a whole. When
/// a watch begins to tell everybody has, since nobody has told of what was before.
fn changes<K>(
    api: Api<K>,
    labels: Option<&str>,
    tenants: &Tenants,
    is_news: fn(&K, &Tenants) -> bool,
) -> impl Stream<Item = K> + Send + use<K> + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let tenants = tenants.clone();
    let mut first = true;
    tenants.told.pools.awaits_watch();
    tail(api, labels).backoff(api::Again).filter_map(move |event| {
        let told = match event {
            Ok(tail::Event::Put(object)) if !is_news(&object, &tenants) => None,
            Ok(tail::Event::Put(object) | tail::Event::Gone(object)) => {
                tenants.touch(&object);
                Some(object)
            }
            Ok(tail::Event::Began) => {
                tenants.touch_all(doubt::<K>());
                if K::kind(&()) == NetworkPolicy::KIND {
                    tenants.told.looks.may_be_unsealed();
                }
                if std::mem::take(&mut first) {
                    tenants.told.pools.watch_began();
                }
                None
            }
            Err(error) => {
                // What it does not tell from now on, it tells later, or it begins anew. Until then nothing is taken as read.
                tenants.told.pools.confinement.doubt_all(doubt::<K>());
                tracing::warn!(%error, kind = %K::kind(&()), "a watch was interrupted");
                None
            }
        };
        std::future::ready(told)
    })
}

/// The same, of a kind that is told of by its metadata alone.
fn bare_changes<K>(
    client: &kube::Client,
    labels: Option<&str>,
    tenants: &Tenants,
) -> impl Stream<Item = PartialObjectMeta<K>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    changes(meta(client), labels, tenants, any)
}

/// Whether a slot is none of those with which a preview was admitted.
fn is_beside(slot: &str, preview: &PreviewSandbox) -> bool {
    let status = preview.status.as_ref();
    status.is_some_and(|s| !s.slots.is_empty() && !s.slots.iter().any(|own| own == slot))
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

/// Who has which cell.
#[derive(Clone)]
struct Tenants {
    cells: Arc<Shelf<PartialObjectMeta<Namespace>>>,
    previews: Arc<Shelf<Guarded>>,
    indexes: Indexes,
    told: Told,
}

/// Who else is told what the watches see in cells.
#[derive(Clone, Default)]
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
        self.having(&cell, self.cells.get(&cell).as_ref())
    }

    /// The preview that has a cell, as its namespace or its own status says.
    fn having(
        &self,
        cell: &str,
        namespace: Option<&PartialObjectMeta<Namespace>>,
    ) -> Vec<ObjectRef<Guarded>> {
        let mut there = namespace.map_or_else(Vec::new, by_annotation);
        // Also where somebody took the annotation off.
        for preview in self.indexes.in_cell(cell) {
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

    /// What a pool's cell waits for that is being made, is there.
    fn furnished<K: ResourceExt>(&self, object: &K) {
        let cell = object.namespace().unwrap_or_default();
        if self.told.pools.is_made(&cell) {
            self.told.wakes.cells([cell]);
        }
    }

    /// A watch begins to tell: whatever is known of cells is to be looked at again.
    fn touch_all(&self, of: Doubt) {
        let Told { looks, pools, wakes } = &self.told;
        looks.all_again();
        pools.doubt_all(of);
        wakes.previews.add_each(self.previews.names());
        wakes.cells.add_each(self.cells.names());
    }

    /// A preview as the watch has it, if it can be read.
    fn known(&self, preview: &ObjectRef<Guarded>) -> Option<PreviewSandbox> {
        self.previews.get(&named_by(preview))?.0.ok()
    }

    /// Whether a preview is known and so.
    fn is(&self, preview: &ObjectRef<Guarded>, so: impl Fn(&PreviewSandbox) -> bool) -> bool {
        self.known(preview).is_some_and(|preview| so(&preview))
    }

    /// The preview that has a cell. A cell that it cannot live in as it is has to be looked at as a whole.
    fn had(&self, cell: &PartialObjectMeta<Namespace>) -> Vec<ObjectRef<Guarded>> {
        let mut woken = self.having(&cell.name_any(), Some(cell));
        let live = Namespace {
            metadata: cell.metadata.clone(),
            ..Namespace::default()
        };
        let fits = |tenant: Tenant| seal::holds(&record::had_by(&tenant), &live);
        let tenant = Record::of(&cell.metadata).and_then(|record| record.tenant);
        woken.retain(|preview| {
            let Some(p) = self.known(preview) else { return true };
            if p.phase() == Phase::Ready && !Tenant::of(&p).is_some_and(fits) {
                self.told.looks.touch(preview);
            }
            // That one which waits has been given it, whoever gives it knows, and says so in its status.
            tenant.is_none() || !is_waiting(&p) || p.metadata.uid != tenant
        });
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

fn by(shelf: &Shelf<Guarded>, wanted: impl Fn(&PreviewSandbox) -> Option<bool>) -> Vec<ObjectRef<Guarded>> {
    let readable = shelf.each().filter_map(|guarded| guarded.0.ok());
    readable
        .filter(|preview| wanted(preview) == Some(true))
        .map(|p| ObjectRef::new(&p.name_any()).within(&p.namespace().unwrap_or_default()))
        .collect()
}

/// Runs until `stop`, and then until what was begun is done.
pub async fn run(
    previews: Previews,
    context: Arc<Context>,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let Previews { queue, feeds } = previews;
    let backoff = Arc::new(Backoff::default());
    let looked = context.clone();
    let all = queue.clone();
    // Somebody waits for these: they come before all that live.
    for preview in context.watched.beginning() {
        all.add(preview);
    }
    let work = async move {
        // What is looked at before is looked at again then.
        looked.pools.watched_within(KNOWN).await;
        let each = move |name: &Arc<str>| {
            glance(name, &looked, &backoff).map(|lane| {
                let (name, context, backoff) = (name.clone(), looked.clone(), backoff.clone());
                async move { look(&name, lane, &context, &backoff).await }
            })
        };
        all.work(WAITING, each).await;
    };
    let stop = async {
        stop.await;
        context.lanes.close();
        queue.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = work => {}
        _ = futures::future::join_all(feeds) => {}
        () = stop => {}
    }
}

/// What the watches alone say of a preview: whether it needs a step, in which lane. Nothing of it outlives this: of thousands that waited for
/// their turn at once, each took five kilobytes.
fn glance(name: &str, context: &Context, backoff: &Backoff) -> Look<Lane> {
    let Some(guarded) = context.watched.previews.get(name) else {
        let (namespace, own) = name.split_once('/').unwrap_or_default();
        context.looks.forget(namespace, own);
        backoff.reset(name);
        return Look::Rest(Action::await_change());
    };
    let preview = match &guarded.0 {
        Ok(preview) => preview,
        Err(invalid) => {
            context.metrics.malformed.inc();
            let error = Error::Malformed {
                name: name.to_owned(),
                message: invalid.error.clone(),
            };
            return Look::Rest(failed(name, &error, context, backoff));
        }
    };
    if let Some(left) = looks::quiet(context, preview, Timestamp::now()) {
        context.metrics.reconciles.with_label_values(&["ok"]).inc();
        backoff.reset(name);
        return Look::Rest(Action::requeue(left));
    }
    Look::Step(if begins(preview) {
        Lane::Begins
    } else {
        Lane::Lives
    })
}

/// Looks at a preview as it is now and does what is next; when it is to be looked at again.
async fn look(name: &str, lane: Lane, context: &Context, backoff: &Backoff) -> Action {
    let Some(_turn) = context.lanes.turn(lane).await else {
        return Action::await_change();
    };
    // What it needs, it gets only now.
    let step = Box::pin(step(name, context));
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
    match result {
        Ok(action) => {
            backoff.reset(name);
            action
        }
        Err(error) => failed(name, &error, context, backoff),
    }
}

async fn step(name: &str, context: &Context) -> Result<Action> {
    let (namespace, name) = name.split_once('/').unwrap_or_default();
    let unread = dereference::unread(context, namespace, name);
    let is_admitted = |world: &World| matches!(decide::decide(world, Timestamp::now()), Plan::Admit(..));
    let begun = context.looks.begin(namespace, name);
    let world = match unread.filter(is_admitted) {
        Some(world) => Some(world),
        None => dereference::dereference(context, namespace, name).await?,
    };
    let Some(mut world) = world else {
        context.looks.forget(namespace, name);
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
                    context.looks.done(namespace, name, begun);
                }
                return Ok(action);
            }
        }
    }
}

fn failed(name: &str, error: &Error, context: &Context, backoff: &Backoff) -> Action {
    if let Some(preview) = reference(name) {
        context.looks.touch(&preview);
    }
    if error.is_conflict() {
        // Somebody wrote first; what they wrote is looked at now.
        return Action::requeue(Duration::from_millis(20));
    }
    context.metrics.failed(error);
    let after = backoff.next(name);
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
