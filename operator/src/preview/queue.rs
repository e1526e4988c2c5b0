//! What the watches know of all previews, as the queue needs it. Reads stores in memory, calls nobody.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Node},
};
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::reflector::{ObjectRef, Store},
};
use tokio::task::JoinSet;
use vitrine_crds::{
    POLICY_NAME, Phase, PreviewPolicy, PreviewPolicySpec, PreviewPool, PreviewSandbox, SkuListing,
    StatusReason,
    conditions::{self, types},
    preview_policy::{AbuseRules, Admission, Cells},
    preview_sandbox::TrustLevel,
};
use vitrine_policies::{
    Envelope,
    capacity::{self, Resources, Room},
    cell::record::{Holds, OfPool, Record},
    envelope, names,
    queue::{self, Entry, Place, Stage},
    slots::{self, Dimension, Keys},
};

use super::{
    Guarded,
    index::{Facts, Index},
    is_waiting,
};
use crate::{pool::controller::Guarded as PoolGuarded, shelf::Shelf};

/// Over what previews of one network are counted.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// The policy as it is watched.
pub type GuardedPolicy = DeserializeGuard<PreviewPolicy>;

/// A listing as it is watched: one that cannot be read does not stop the others.
pub type GuardedListing = DeserializeGuard<SkuListing>;

/// The stores of the watches.
#[derive(Clone)]
pub struct Watched {
    /// All previews.
    pub previews: Arc<Shelf<Guarded>>,
    /// All listings.
    pub listings: Store<GuardedListing>,
    /// All cells, by their namespaces.
    pub cells: Arc<Shelf<PartialObjectMeta<Namespace>>>,
    /// All slots.
    pub slots: Arc<Shelf<PartialObjectMeta<Lease>>>,
    /// Their namespace.
    pub slots_namespace: String,
    /// Receipts without a preview.
    pub receipts: Store<PartialObjectMeta<ConfigMap>>,
    /// All nodes, with no more than is needed to know their room.
    pub nodes: Store<Node>,
    /// All pools.
    pub pools: Store<PoolGuarded>,
    /// The platform's policy.
    pub policies: Store<GuardedPolicy>,
    /// By what else than their names they are found.
    pub indexes: Indexes,
    /// Keep the stores; they end with the last copy of this.
    pub reflectors: Arc<JoinSet<()>>,
}

/// By what else than their names previews, cells and slots are found.
#[derive(Clone, Debug)]
pub struct Indexes {
    /// Previews: by the slots they live with, by who waits, and by their networks. What those take that live without a pool's cell.
    pub previews: Arc<Index<Guarded>>,
    /// Cells: by the preview that has them, and by the slots that pools' cells hold. What those take.
    pub cells: Arc<Index<PartialObjectMeta<Namespace>>>,
    /// Slots: by who holds them.
    pub slots: Arc<Index<PartialObjectMeta<Lease>>>,
}

/// Keys of the indexes.
mod keys {
    pub const QUEUED: &str = "queued";

    pub fn slot(name: &str) -> String {
        format!("slot {name}")
    }

    pub fn cell(name: &str) -> String {
        format!("cell {name}")
    }

    pub fn tenant(uid: &str) -> String {
        format!("tenant {uid}")
    }

    pub fn free(lot: &str) -> String {
        format!("free {lot}")
    }

    pub fn network(network: &str) -> String {
        format!("network {network}")
    }

    pub fn waits_for(stem: &str) -> String {
        format!("waits {stem}")
    }
}

impl Indexes {
    /// The live previews that say that they live in a cell.
    pub fn in_cell(&self, cell: &str) -> Vec<ObjectRef<Guarded>> {
        let found = self.previews.objects(&keys::cell(cell));
        let named = found.iter().filter_map(|name| name.split_once('/'));
        named
            .map(|(namespace, name)| ObjectRef::new(name).within(namespace))
            .collect()
    }
}

impl Default for Indexes {
    /// Empty ones.
    fn default() -> Self {
        Self {
            previews: Arc::new(Index::new(facts_of_preview)),
            cells: Arc::new(Index::new(facts_of_cell)),
            slots: Arc::new(Index::new(|slot| Facts {
                keys: slot
                    .labels()
                    .get(slots::HOLDER_LABEL)
                    .into_iter()
                    .cloned()
                    .collect(),
                takes: None,
            })),
        }
    }
}

fn facts_of_preview(guarded: &Guarded) -> Facts {
    let Ok(preview) = &guarded.0 else {
        return Facts::default();
    };
    let mut facts = Facts::default();
    facts
        .keys
        .extend(preview.spec.network.as_deref().map(keys::network));
    let status = preview.status.as_ref();
    if is_admitted(preview) {
        if let Some(status) = status.filter(|status| status.receipt.is_none()) {
            facts
                .keys
                .extend(status.slots.iter().map(|name| keys::slot(name)));
            facts.keys.extend(status.cell.as_deref().map(keys::cell));
            let envelope = status.envelope.as_ref();
            let whole = status.slots.iter().any(|name| is_of_listing(name));
            facts.takes = envelope
                .filter(|_| whole)
                .and_then(|envelope| capacity::needs(&envelope.size));
        }
    } else if in_queue(preview) {
        if status.is_some_and(|status| status.phase == Phase::Queued) {
            facts.keys.push(keys::QUEUED.to_owned());
        }
        let own = Keys::of_visitor(preview);
        facts
            .keys
            .extend(own.each().map(|(of, key)| keys::waits_for(&slots::stem(of, key))));
    }
    facts
}

fn facts_of_cell(cell: &PartialObjectMeta<Namespace>) -> Facts {
    let Some(record) = Record::of(&cell.metadata) else {
        return Facts::default();
    };
    let held = record.holds.as_ref();
    // Of a pool's, those that are ready are taken (`pool::table`), and no others.
    let free = record
        .lot
        .as_deref()
        .filter(|_| record.tenant.is_none() && record.pool.is_none());
    let slots = held.into_iter().flat_map(|holds| &holds.slots);
    Facts {
        keys: record
            .tenant
            .iter()
            .map(|uid| keys::tenant(uid))
            .chain(free.map(keys::free))
            .chain(slots.map(|name| keys::slot(name)))
            .collect(),
        takes: held.and_then(|holds| capacity::needs(&holds.size)),
    }
}

fn is_of_listing(slot: &str) -> bool {
    slots::parse(slot).is_some_and(|(of, _)| of == Dimension::Listing)
}

impl Watched {
    /// Returns once previews, listings, slots, cells, nodes, pools and the policy were listed.
    pub async fn known(&self) {
        self.indexes.previews.wait_until_ready().await;
        self.indexes.cells.wait_until_ready().await;
        self.indexes.slots.wait_until_ready().await;
        // An error means that the watch is gone with the runtime.
        let _ = self.listings.wait_until_ready().await;
        let _ = self.nodes.wait_until_ready().await;
        let _ = self.pools.wait_until_ready().await;
        let _ = self.policies.wait_until_ready().await;
    }

    /// The policy as the watch has it.
    pub fn policy(&self) -> Option<PreviewPolicy> {
        let policy = self.policies.get(&ObjectRef::new(POLICY_NAME))?;
        policy.0.as_ref().ok().cloned()
    }

    /// Whether the policy ends previews that nobody opens or uses.
    pub fn ends_what_nobody_uses(&self) -> bool {
        let policy = self.policy();
        policy.is_some_and(|policy| {
            let traffic = policy.spec.traffic;
            traffic.unopened.is_some() || traffic.idle.is_some()
        })
    }

    /// What the policy takes for abuse.
    pub fn abuse(&self) -> Option<AbuseRules> {
        self.policy()?.spec.abuse
    }

    /// Whether the platform lets no new previews in for now.
    pub fn admission_is_suspended(&self) -> bool {
        let policy = self.policy();
        policy.is_some_and(|policy| policy.spec.maintenance.admission == Admission::Suspended)
    }

    /// The pool that a cell is of, if it is there still.
    pub fn pool(&self, of: &OfPool) -> Option<PreviewPool> {
        let pool = self.pools.get(&ObjectRef::new(&of.name).within(&of.namespace))?;
        let pool = pool.0.as_ref().ok()?;
        (pool.uid().as_ref() == Some(&of.uid)).then(|| pool.clone())
    }

    /// The name of the listing of a preview that waits, as far as the watch knows.
    pub fn waits_for(&self, namespace: &str, name: &str) -> Option<String> {
        let known = self.previews.get(&format!("{namespace}/{name}"))?;
        let preview = known.0.as_ref().ok()?;
        is_waiting(preview).then(|| preview.spec.listing_ref.name.clone())
    }

    /// A listing as the watch has it.
    pub fn listing(&self, namespace: &str, name: &str) -> Option<SkuListing> {
        let listing = self.listings.get(&ObjectRef::new(name).within(namespace))?;
        listing.0.as_ref().ok().cloned()
    }

    /// How many previews were made from a network within the last hour.
    pub fn from_network(&self, network: &str) -> Option<u64> {
        let since = Timestamp::now().checked_sub(HOUR).ok()?;
        let all = self.indexes.previews.objects(&keys::network(network));
        let recent = all.iter().filter(|name| {
            let preview = self.previews.get(name);
            let made = preview.and_then(|preview| preview.meta().creation_timestamp.clone());
            made.is_some_and(|made| made.0 > since)
        });
        u64::try_from(recent.count()).ok()
    }

    /// The uid of the preview that holds a slot.
    pub fn holder(&self, slot: &str) -> Option<String> {
        let slot = self.slots.get(&format!("{}/{slot}", self.slots_namespace))?;
        slot.labels().get(slots::HOLDER_LABEL).cloned()
    }

    /// Whether a live preview was admitted with a slot, or a pool's cell holds it, whether or not it is still there.
    pub fn is_lived_with(&self, slot: &str) -> bool {
        let key = keys::slot(slot);
        self.indexes.previews.count(&key) + self.indexes.cells.count(&key) > 0
    }

    /// The names of the slots that somebody holds.
    pub fn held_by(&self, uid: &str) -> Vec<String> {
        let held = self.indexes.slots.objects(uid);
        let name = |full: &Arc<str>| Some(full.split_once('/')?.1.to_owned());
        held.iter().filter_map(name).collect()
    }

    /// Whether a preview holds any slot.
    pub fn holds(&self, uid: &str) -> bool {
        self.indexes.slots.count(uid) > 0
    }

    /// Whether a preview holds another slot than these.
    pub fn holds_beside(&self, uid: &str, known: &[String]) -> bool {
        self.held_by(uid).iter().any(|slot| !known.contains(slot))
    }

    /// The cells that a preview has beside the one that it lives in.
    pub fn cells_beside(&self, uid: &str, own: Option<&str>) -> Vec<PartialObjectMeta<Namespace>> {
        let names = self.indexes.cells.objects(&keys::tenant(uid));
        let others = names.iter().filter(|name| own != Some(name));
        others.filter_map(|name| self.cells.get(name)).collect()
    }

    /// The cells that a preview may take: first those that it has already, then the free ones, in an order of its own, so that two
    /// previews seldom try the same.
    pub fn cells_for(
        &self,
        uid: &str,
        lot: &str,
        rules: &Cells,
        now: Timestamp,
    ) -> Vec<PartialObjectMeta<Namespace>> {
        let (mut own, mut free) = (vec![], vec![]);
        let mut names = self.indexes.cells.objects(&keys::tenant(uid));
        names.extend(self.indexes.cells.objects(&keys::free(lot)));
        for cell in names.iter().filter_map(|name| self.cells.get(name)) {
            let Some(record) = Record::of(&cell.metadata).filter(|record| record.pool.is_none()) else {
                continue;
            };
            if record.tenant.as_deref() == Some(uid) && record.lot.as_deref() == Some(lot) && !record.going {
                own.push(cell);
            } else if record.is_free_for(lot, rules, now) {
                free.push(cell);
            }
        }
        free.sort_by_cached_key(|cell| names::digest(&[uid, &cell.name_any()]));
        own.append(&mut free);
        own
    }

    /// Where a preview that waits stands, by what the watches have seen.
    pub fn place(
        &self,
        preview: &PreviewSandbox,
        listing: &SkuListing,
        policy: &PreviewPolicy,
        own: Duration,
        warm: bool,
    ) -> Place {
        if warm && self.has_its_slots_free(preview, policy) {
            return Place::Turn;
        }
        let (room, policy) = (self.room(policy), &policy.spec);
        let uid = preview.uid().unwrap_or_default();
        let seen = self.seen(|_, _| false);
        let mut entries: Vec<_> = seen.entries(policy).filter(|entry| entry.uid != uid).collect();
        // As it was read just now: the watch may be behind.
        let listing_uid = listing.uid().unwrap_or_default();
        // What waits for it in a pool has its slots and its room already.
        let (keys, needs) = if warm {
            (Keys::of_visitor(preview), Resources::NONE)
        } else {
            (
                Keys::new(preview, &listing_uid, &listing.spec.seller),
                needs(preview, listing),
            )
        };
        entries.push(Entry {
            uid: &uid,
            keys,
            needs,
            stage: waits(preview, policy),
        });
        queue::place(&entries, room.as_ref(), &uid, own)
    }

    /// Whether there is a free slot for a preview of whatever it has in common with no pool's cell, even if all who wait for the same
    /// got theirs first.
    fn has_its_slots_free(&self, preview: &PreviewSandbox, policy: &PreviewPolicy) -> bool {
        let ceilings = policy.status.clone().unwrap_or_default().ceilings;
        slots::own_demands(&policy.spec, preview).iter().all(|demand| {
            let stem = slots::stem(demand.dimension, &demand.key);
            // Itself, too, once the watch has told of it.
            let waiting = self.indexes.previews.count(&keys::waits_for(&stem)).max(1);
            let held = |index: &i32| {
                let name = format!("{stem}-{index}");
                self.holder(&name).is_some() || self.is_lived_with(&name)
            };
            // Also those above the limit, which others may have who are known better.
            let ceiling = demand.dimension.ceiling(&ceilings).max(demand.limit);
            let held = (0..ceiling).filter(held).count();
            usize::try_from(demand.limit).unwrap_or_default() >= held + waiting
        })
    }

    /// Where a pool's cell stands that has nothing yet: behind every preview that waits.
    pub fn place_of_cell(&self, uid: &str, envelope: &Envelope, policy: &PreviewPolicy) -> Place {
        let room = self.room(policy);
        let needs = capacity::needs(&envelope.resolved().size).unwrap_or(Resources::NONE);
        if self.indexes.previews.count(keys::QUEUED) == 0 {
            let taken = self.indexes.previews.taken().plus(self.indexes.cells.taken());
            let fits = |room: &Room| taken.plus(needs).fits(&room.resources);
            if room.as_ref().is_none_or(fits) {
                // Whether there are slots for it, is seen when it takes them.
                return Place::Turn;
            }
        }
        // Nothing that a cell holds depends on it.
        let level = TrustLevel::default();
        let seen = self.seen(|_, _| false);
        let mut entries: Vec<_> = seen.entries(&policy.spec).collect();
        entries.push(Entry {
            uid,
            keys: Keys::of_listing(envelope::listing_uid(&envelope.listing), &envelope.seller),
            needs,
            stage: Stage::Waits {
                priority: i32::MIN,
                since: Timestamp::MAX,
                limits: Dimension::ALL.map(|dimension| dimension.limit(&policy.spec, level)),
            },
        });
        queue::place(&entries, room.as_ref(), uid, Duration::ZERO)
    }

    /// The pools' cells, with their pools, that are to let go of what they hold for previews that wait; at most so many. Those that do
    /// so already come first.
    pub fn giving_way(&self, most: usize, already: impl Fn(&OfPool, &str) -> bool) -> Vec<(OfPool, String)> {
        let seen = self.seen(already);
        let Some(policy) = self.policy() else {
            return vec![];
        };
        if seen.held.iter().all(|held| held.tenant.is_some()) {
            return vec![];
        }
        let entries: Vec<_> = seen.entries(&policy.spec).collect();
        let giving = queue::giving_way(&entries, self.room(&policy).as_ref(), most);
        let held = seen
            .held
            .iter()
            .filter(|held| giving.contains(&held.uid.as_str()));
        held.map(|held| (held.pool.clone(), held.name.clone())).collect()
    }

    fn room(&self, policy: &PreviewPolicy) -> Option<Room> {
        let percent = u32::try_from(policy.spec.capacity.percent_of_nodes?).ok()?;
        let aside = capacity::set_aside(policy, Timestamp::now());
        let nodes = self.nodes.state();
        let taking = nodes.iter().filter(|node| !aside.contains(&node.name_any()));
        Some(capacity::room(taking.map(AsRef::as_ref), percent))
    }

    /// The previews whose turn it is now.
    pub fn turns(&self) -> Vec<ObjectRef<Guarded>> {
        // Every slot that is freed asks this, and mostly nobody waits. Who was not looked at yet, is looked at anyway.
        if self.indexes.previews.count(keys::QUEUED) == 0 {
            return vec![];
        }
        let Some(policy) = self.policy() else {
            return vec![];
        };
        let seen = self.seen(|_, _| false);
        let entries: Vec<_> = seen.entries(&policy.spec).collect();
        let turns = queue::turns(&entries, self.room(&policy).as_ref());
        let reference = |preview: &PreviewSandbox| {
            ObjectRef::new(&preview.name_any()).within(&preview.namespace().unwrap_or_default())
        };
        seen.previews()
            .filter(|preview| turns.contains(&preview.metadata.uid.as_deref().unwrap_or_default()))
            .map(reference)
            .collect()
    }

    fn seen(&self, goes_first: impl Fn(&OfPool, &str) -> bool) -> Seen {
        let listings = self.listings.state().into_iter().map(|listing| {
            let meta = listing.meta();
            let name = (
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            );
            (name, listing)
        });
        let held = self.cells.each().filter_map(|cell| {
            let record = Record::of(&cell.metadata)?;
            let (pool, name) = (record.pool?, cell.name_any());
            Some(Held {
                first: record.going || goes_first(&pool, &name),
                uid: cell.uid()?,
                tenant: record.tenant,
                holds: record.holds?,
                pool,
                name,
            })
        });
        let mut held: Vec<_> = held.collect();
        held.sort_by(|a, b| (b.first, &a.name).cmp(&(a.first, &b.name)));
        Seen {
            previews: self
                .previews
                .each()
                .filter_map(|guarded| guarded.0.ok())
                .collect(),
            listings: listings.collect(),
            held,
        }
    }
}

/// The stores at one moment.
struct Seen {
    previews: Vec<PreviewSandbox>,
    listings: HashMap<(String, String), Arc<GuardedListing>>,
    held: Vec<Held>,
}

/// What a pool's cell holds.
struct Held {
    uid: String,
    name: String,
    pool: OfPool,
    tenant: Option<String>,
    holds: Holds,
    /// Before others when something has to give way.
    first: bool,
}

impl Seen {
    fn previews(&self) -> impl Iterator<Item = &PreviewSandbox> {
        self.previews.iter()
    }

    /// Every preview that holds slots or waits for some.
    fn entries<'a>(&'a self, policy: &'a PreviewPolicySpec) -> impl Iterator<Item = Entry<'a>> {
        // Only where any is: mostly there is none.
        let ends: HashMap<_, _> = self
            .held
            .iter()
            .any(|held| held.tenant.is_some())
            .then(|| {
                self.previews()
                    .filter_map(|p| Some((p.metadata.uid.as_deref()?, ends(p))))
            })
            .into_iter()
            .flatten()
            .collect();
        let cells = self.held.iter().map(move |held| Entry {
            uid: &held.uid,
            keys: Keys::of_listing(&held.holds.listing, &held.holds.seller),
            needs: capacity::needs(&held.holds.size).unwrap_or(Resources::NONE),
            stage: match &held.tenant {
                Some(tenant) => Stage::Holds {
                    until: ends.get(tenant.as_str()).copied().flatten(),
                },
                None => Stage::Idles,
            },
        });
        self.previews()
            .filter_map(move |preview| self.entry(preview, policy))
            .chain(cells)
    }

    fn entry<'a>(&'a self, preview: &'a PreviewSandbox, policy: &PreviewPolicySpec) -> Option<Entry<'a>> {
        let uid = preview.metadata.uid.as_deref()?;
        if let Some(status) = &preview.status
            && is_admitted(preview)
        {
            if status.receipt.is_some() {
                return None;
            }
            let envelope = status.envelope.as_ref()?;
            let listing_uid = envelope::listing_uid(&envelope.listing);
            if !status.slots.iter().any(|slot| is_of_listing(slot)) {
                return Some(Entry {
                    uid,
                    keys: Keys::of_visitor(preview),
                    needs: Resources::NONE,
                    stage: Stage::Holds { until: ends(preview) },
                });
            }
            return Some(Entry {
                uid,
                keys: Keys::new(preview, listing_uid, &envelope.seller),
                needs: capacity::needs(&envelope.size).unwrap_or(Resources::NONE),
                stage: Stage::Holds { until: ends(preview) },
            });
        }
        if !in_queue(preview) {
            return None;
        }
        let name = (preview.namespace()?, preview.spec.listing_ref.name.clone());
        let listing = self.listings.get(&name)?.0.as_ref().ok()?;
        Some(Entry {
            uid,
            keys: Keys::new(preview, listing.metadata.uid.as_deref()?, &listing.spec.seller),
            needs: needs(preview, listing),
            stage: waits(preview, policy),
        })
    }
}

fn is_admitted(preview: &PreviewSandbox) -> bool {
    let status = preview.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, types::ADMITTED))
}

/// Whether a preview that is not admitted waits for slots, and for nothing else.
fn in_queue(preview: &PreviewSandbox) -> bool {
    if preview.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(status) = &preview.status else {
        return true;
    };
    status.phase == Phase::Queued
        && matches!(
            status.reason,
            None | Some(
                StatusReason::WaitingForSlot
                    | StatusReason::WaitingForCapacity
                    | StatusReason::AdmissionSuspended
            )
        )
}

/// What a preview will take of the nodes. One whose size cannot be read is refused when it is looked at, and takes nothing.
fn needs(preview: &PreviewSandbox, listing: &SkuListing) -> Resources {
    let size = preview.spec.size.as_ref().unwrap_or(&listing.spec.preview.size);
    capacity::needs(size).unwrap_or(Resources::NONE)
}

fn waits(preview: &PreviewSandbox, policy: &PreviewPolicySpec) -> Stage {
    let level = preview.spec.trust_level;
    Stage::Waits {
        priority: policy.trust_levels.of(level).priority,
        since: preview
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MAX, |t| t.0),
        limits: Dimension::ALL.map(|dimension| dimension.limit(policy, level)),
    }
}

/// When a preview that holds slots ends at the latest, as long as it is not extended.
fn ends(preview: &PreviewSandbox) -> Option<Timestamp> {
    let status = preview.status.as_ref()?;
    if let Some(expires) = &status.expires_at {
        return Some(expires.0);
    }
    let envelope = status.envelope.as_ref()?;
    let most = envelope.provisioning_deadline.as_duration() + envelope.ttl.as_duration();
    let most = SignedDuration::try_from(most).ok()?;
    status.admitted_at.as_ref()?.0.checked_add(most).ok()
}
