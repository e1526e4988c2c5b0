//! What the watches know of all previews, as the queue needs it. Reads stores in memory, calls nobody.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kube::{
    Resource, ResourceExt,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::reflector::{ObjectRef, Store},
};
use tokio::task::JoinSet;
use vitrine_crds::{
    POLICY_NAME, Phase, PreviewPolicy, PreviewPolicySpec, PreviewPool, PreviewSandbox, SkuListing,
    preview_policy::{AbuseRules, Admission, Cells},
    preview_sandbox::TrustLevel,
};
use vitrine_policies::{
    Envelope,
    capacity::{self, Resources, Room},
    cell::record::{OfPool, Record},
    envelope, names,
    queue::{self, Behind, Entry, Lack, Place, Stage},
    slots::{self, Demand, Dimension, Keys},
};

use super::{
    Guarded, begins,
    entries::{OfCell, OfListing, OfPreview, in_queue, is_admitted, needs, since, waits},
    held::Held,
    index::{Facts, Index},
    is_waiting,
};
use crate::{
    pool::{controller::Guarded as PoolGuarded, table::Warm},
    shelf::Shelf,
};

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
    pub slots: Arc<Held>,
    /// Receipts without a preview.
    pub receipts: Arc<Shelf<PartialObjectMeta<ConfigMap>>>,
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

/// By what else than their names previews and cells are found.
#[derive(Clone, Debug)]
pub struct Indexes {
    /// Previews: by their uid while they are not over, by the slots they live with, by who waits, and by their networks. What those take
    /// that live without a pool's cell.
    pub previews: Arc<Index<Guarded, OfPreview>>,
    /// Cells: by their uid, by the preview that has them, and by the slots that pools' cells hold. What those take.
    pub cells: Arc<Index<PartialObjectMeta<Namespace>, OfCell>>,
}

/// Keys of the indexes.
mod keys {
    pub const QUEUED: &str = "queued";
    pub const BEGINS: &str = "begins";

    pub fn slot(name: &str) -> String {
        format!("slot {name}")
    }

    pub fn cell(name: &str) -> String {
        format!("cell {name}")
    }

    pub fn tenant(uid: &str) -> String {
        format!("tenant {uid}")
    }

    pub fn is(uid: &str) -> String {
        format!("is {uid}")
    }

    pub fn lives(uid: &str) -> String {
        format!("lives {uid}")
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

/// A preview by its name as the watches have it, `namespace/name`.
pub fn reference(name: &str) -> Option<ObjectRef<Guarded>> {
    let (namespace, name) = name.split_once('/')?;
    Some(ObjectRef::new(name).within(namespace))
}

impl Indexes {
    /// The live previews that say that they live in a cell.
    pub fn in_cell(&self, cell: &str) -> Vec<ObjectRef<Guarded>> {
        let found = self.previews.objects(&keys::cell(cell));
        found.iter().filter_map(|name| reference(name)).collect()
    }
}

impl Default for Indexes {
    /// Empty ones.
    fn default() -> Self {
        Self {
            previews: Arc::new(Index::new(facts_of_preview)),
            cells: Arc::new(Index::new(facts_of_cell)),
        }
    }
}

fn facts_of_preview(guarded: &Guarded) -> Facts<OfPreview> {
    let uid = guarded.meta().uid.as_deref();
    let Ok(preview) = &guarded.0 else {
        return Facts {
            keys: uid.map(keys::lives).into_iter().collect(),
            entry: None,
        };
    };
    let mut keys = vec![];
    keys.extend(preview.spec.network.as_deref().map(keys::network));
    keys.extend(uid.filter(|_| !preview.phase().is_terminal()).map(keys::lives));
    let status = preview.status.as_ref();
    if begins(preview) {
        keys.push(keys::BEGINS.to_owned());
    }
    if is_admitted(preview) {
        if let Some(status) = status.filter(|status| status.receipt.is_none()) {
            keys.extend(status.slots.iter().map(|name| keys::slot(name)));
            keys.extend(status.cell.as_deref().map(keys::cell));
        }
    } else if in_queue(preview) {
        if status.is_some_and(|status| status.phase == Phase::Queued) {
            keys.push(keys::QUEUED.to_owned());
        }
        let own = Keys::of_visitor(preview);
        keys.extend(own.each().map(|(of, key)| keys::waits_for(&slots::stem(of, key))));
    }
    Facts {
        keys,
        entry: OfPreview::of(preview),
    }
}

fn facts_of_cell(cell: &PartialObjectMeta<Namespace>) -> Facts<OfCell> {
    let own = cell.metadata.uid.as_deref().map(keys::is);
    let Some(record) = Record::of(&cell.metadata) else {
        return Facts {
            keys: own.into_iter().collect(),
            entry: None,
        };
    };
    // Of a pool's, those that are ready are taken (`pool::table`), and no others.
    let free = record
        .lot
        .as_deref()
        .filter(|_| record.tenant.is_none() && record.pool.is_none());
    let slots = record.holds.iter().flat_map(|holds| &holds.slots);
    Facts {
        keys: record
            .tenant
            .iter()
            .map(|uid| keys::tenant(uid))
            .chain(free.map(keys::free))
            .chain(slots.map(|name| keys::slot(name)))
            .chain(own)
            .collect(),
        entry: OfCell::of(cell),
    }
}

impl Watched {
    /// Returns once previews, listings, slots, cells, nodes, pools and the policy were listed.
    pub async fn known(&self) {
        self.indexes.previews.wait_until_ready().await;
        self.indexes.cells.wait_until_ready().await;
        self.slots.wait_until_ready().await;
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

    /// Whether what a cell's pod has proven of itself holds still, going by its node.
    pub fn trusts(&self, warm: &Warm) -> bool {
        self.distrusts(warm.node.as_deref()).is_none()
    }

    /// Why what a pod has proven of itself holds no longer, going by its node: nobody hears the pod's own watch from a node that does not
    /// report, and where isolation did not hold for another pod, it is not taken to hold for this one (`attacks.md`, 10).
    pub fn distrusts(&self, node: Option<&str>) -> Option<&'static str> {
        let Some(node) = node.and_then(|name| self.nodes.get(&ObjectRef::new(name))) else {
            return Some("its node is not there");
        };
        if !capacity::is_ready(&node) {
            return Some("its node is not ready");
        }
        let policy = self.policies.get(&ObjectRef::new(POLICY_NAME));
        let policy = policy.as_ref().and_then(|policy| policy.0.as_ref().ok());
        let aside = policy.map(|policy| capacity::set_aside(policy, Timestamp::now()));
        let aside = aside.is_some_and(|aside| aside.contains(&node.name_any()));
        aside.then_some("its node is set aside")
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

    /// Whether a live preview was admitted with a slot, or a pool's cell holds it, whether or not it is still there.
    pub fn is_lived_with(&self, slot: &str) -> bool {
        let key = keys::slot(slot);
        self.indexes.previews.has(&key) || self.indexes.cells.has(&key)
    }

    /// Whether a preview holds another slot than these.
    pub fn holds_beside(&self, uid: &str, known: &[String]) -> bool {
        self.slots.held_by(uid).iter().any(|slot| !known.contains(slot))
    }

    /// The preview with this uid, `namespace/name`, if it is not over; or if it cannot be read, and is not ours to judge.
    pub fn living(&self, uid: &str) -> Option<Arc<str>> {
        self.indexes.previews.objects(&keys::lives(uid)).pop()
    }

    /// Whether there is a cell with this uid.
    pub fn is_cell(&self, uid: &str) -> bool {
        self.indexes.cells.has(&keys::is(uid))
    }

    /// The cells that a preview has beside the one that it lives in.
    pub fn cells_beside(&self, uid: &str, own: Option<&str>) -> Vec<PartialObjectMeta<Namespace>> {
        let names = self.indexes.cells.objects(&keys::tenant(uid));
        let others = names.iter().filter(|name| own != Some(name));
        let cells = others.filter_map(|name| self.cells.get(name));
        // What is found by a hash, or while the watch goes on, may be another's: and what is beside is given back.
        cells
            .filter(|cell| {
                Record::of(&cell.metadata).is_some_and(|record| record.tenant.as_deref() == Some(uid))
            })
            .collect()
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

    /// Which of these no slot is left for, by what the watch has seen. A slot is held until its cell is closed, longer than the preview is
    /// said to live: who asks for one all the same, takes the others and gives them back in vain, again and again.
    pub fn lacking(&self, uid: &str, demands: &[Demand], policy: &PreviewPolicy) -> Option<Lack> {
        let ceilings = policy.status.as_ref().map(|status| status.ceilings);
        let ceilings = ceilings.unwrap_or_default();
        let lacks = |demand: &&Demand| {
            let stem = slots::stem(demand.dimension, &demand.key);
            let others = |index: &i32| {
                let name = format!("{stem}-{index}");
                !self.slots.is_held_by(&name, uid) && (self.slots.is_held(&name) || self.is_lived_with(&name))
            };
            let above = (demand.limit..demand.dimension.ceiling(&ceilings))
                .filter(others)
                .count();
            let above = i32::try_from(above).unwrap_or(i32::MAX);
            slots::indices(demand.limit, above, uid).iter().all(others)
        };
        let demand = demands.iter().find(lacks)?;
        Some(Lack::Slots {
            dimension: demand.dimension,
            limit: demand.limit,
        })
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
        let room = self.room(policy);
        let uid = preview.uid().unwrap_or_default();
        let seen = self.seen(|_, _| false);
        let mut entries: Vec<_> = seen
            .entries(&policy.spec)
            .filter(|entry| entry.uid != uid)
            .collect();
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
            stage: waits(preview.spec.trust_level, since(preview), &policy.spec),
        });
        let place = queue::place(&entries, room.as_ref(), &uid, own);
        let demands = if warm {
            slots::own_demands(&policy.spec, preview)
        } else {
            slots::demands(&policy.spec, listing, preview)
        };
        match (place, self.lacking(&uid, &demands, policy)) {
            (Place::Turn, Some(lack)) => Place::Behind(Behind {
                lack,
                position: 1,
                estimate: None,
            }),
            (place, _) => place,
        }
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
                self.slots.is_held(&name) || self.is_lived_with(&name)
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
        if !self.indexes.previews.has(keys::QUEUED) {
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

    /// The pools' cells, with the uids of their pools, that are to let go of what they hold for previews that wait; at most so many.
    /// Those that do so already come first.
    pub fn giving_way(&self, most: usize, already: impl Fn(&str, &str) -> bool) -> Vec<(String, Arc<str>)> {
        let Some(policy) = self.policy() else {
            return vec![];
        };
        let seen = self.seen(already);
        if seen.cells.iter().all(|(_, cell)| cell.tenant.is_some()) {
            return vec![];
        }
        let entries: Vec<_> = seen.entries(&policy.spec).collect();
        let giving = queue::giving_way(&entries, self.room(&policy).as_ref(), most);
        let held = seen.cells.iter().filter(|(_, cell)| giving.contains(&&*cell.uid));
        held.map(|(name, cell)| (cell.pool().to_owned(), name.clone()))
            .collect()
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
        if !self.indexes.previews.has(keys::QUEUED) {
            return vec![];
        }
        let Some(policy) = self.policy() else {
            return vec![];
        };
        let seen = self.seen(|_, _| false);
        let entries: Vec<_> = seen.entries(&policy.spec).collect();
        let turns = queue::turns(&entries, self.room(&policy).as_ref());
        let turns: HashSet<_> = turns.into_iter().collect();
        let whose = seen
            .previews
            .iter()
            .filter(|(_, preview)| turns.contains(&*preview.uid));
        whose.filter_map(|(name, _)| reference(name)).collect()
    }

    /// The previews that somebody waits for, whether they were looked at or not, `namespace/name`.
    pub fn beginning(&self) -> Vec<Arc<str>> {
        self.indexes.previews.objects(keys::BEGINS)
    }

    /// The previews that were admitted and are not over.
    pub fn admitted(&self) -> Vec<ObjectRef<Guarded>> {
        let all = self.indexes.previews.entries();
        let admitted = all.iter().filter(|(_, preview)| preview.holds());
        admitted.filter_map(|(name, _)| reference(name)).collect()
    }

    fn seen(&self, goes_first: impl Fn(&str, &str) -> bool) -> Seen {
        let previews = self.indexes.previews.entries();
        let mut listings: HashMap<_, _> = HashMap::new();
        for (preview, entry) in &previews {
            let Some((namespace, listing)) = preview
                .split_once('/')
                .and_then(|(namespace, _)| Some((namespace, entry.waits_for()?)))
            else {
                continue;
            };
            let name = (namespace.to_owned(), listing.to_owned());
            if !listings.contains_key(&name)
                && let Some(listing) = self.listing(namespace, listing).as_ref().and_then(OfListing::of)
            {
                listings.insert(name, listing);
            }
        }
        let mut cells = self.indexes.cells.entries();
        cells.sort_by_cached_key(|(name, cell)| {
            (!(cell.going || goes_first(cell.pool(), name)), name.clone())
        });
        Seen {
            previews,
            listings,
            cells,
        }
    }
}

/// What is there at one moment.
struct Seen {
    previews: Vec<(Arc<str>, Arc<OfPreview>)>,
    /// Those that somebody waits for, by namespace and name.
    listings: HashMap<(String, String), OfListing>,
    /// Those of pools; first those that go before others when something has to give way.
    cells: Vec<(Arc<str>, Arc<OfCell>)>,
}

impl Seen {
    /// Every preview that holds slots or waits for some, and every cell of a pool.
    fn entries<'a>(&'a self, policy: &'a PreviewPolicySpec) -> impl Iterator<Item = Entry<'a>> {
        // Only where any is: mostly there is none.
        let ends: HashMap<_, _> = self
            .cells
            .iter()
            .any(|(_, cell)| cell.tenant.is_some())
            .then(|| {
                self.previews
                    .iter()
                    .map(|(_, preview)| (&preview.uid, preview.ends))
            })
            .into_iter()
            .flatten()
            .collect();
        let cells = self.cells.iter().map(move |(_, cell)| {
            let tenant = cell.tenant.as_ref();
            cell.entry(tenant.and_then(|tenant| ends.get(tenant).copied().flatten()))
        });
        let previews = self.previews.iter().filter_map(move |(name, preview)| {
            let (namespace, _) = name.split_once('/')?;
            let listing = |name: &str| self.listings.get(&(namespace.to_owned(), name.to_owned()));
            preview.entry(policy, listing)
        });
        previews.chain(cells)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::json;

    use super::*;

    fn preview(status: &serde_json::Value) -> Guarded {
        DeserializeGuard(Ok(serde_json::from_value(json!({
            "metadata": {"name": "try", "namespace": "shop", "uid": "u"},
            "spec": {"listingRef": {"name": "notebook"}, "subject": "alice", "network": "198.51.100.0/24"},
            "status": status
        }))
        .unwrap()))
    }

    fn found(status: &serde_json::Value) -> Vec<String> {
        facts_of_preview(&preview(status)).keys
    }

    fn admitted(phase: &str) -> serde_json::Value {
        json!({
            "phase": phase, "cell": "c", "slots": ["subject-x-0"],
            "conditions": [{"type": "Admitted", "status": "True", "reason": "Admitted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]
        })
    }

    #[test]
    fn a_preview_is_found_by_its_uid_until_it_is_over_and_by_what_it_lives_with() {
        let live = ["network 198.51.100.0/24", "lives u", "slot subject-x-0", "cell c"];
        assert_eq!(found(&admitted("Ready")), live);
        assert!(!found(&admitted("Ended")).contains(&keys::lives("u")));
        let queued = found(&json!({"phase": "Queued", "reason": "WaitingForSlot", "conditions": []}));
        assert!(queued.contains(&keys::lives("u")) && queued.contains(&keys::QUEUED.to_owned()));
        assert_eq!(queued.iter().filter(|key| key.starts_with("waits ")).count(), 2);
        // Whether one that cannot be read is over, is not ours to judge.
        let unread = DeserializeGuard(Err(kube::core::error_boundary::InvalidObject {
            error: String::new(),
            metadata: preview(&json!(null)).0.unwrap().metadata,
        }));
        assert_eq!(facts_of_preview(&unread).keys, ["lives u"]);
    }
}
