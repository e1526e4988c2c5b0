//! What the watches know of all previews, as the queue needs it. Reads stores in memory, calls nobody.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
    Phase, PreviewPolicy, PreviewPolicySpec, PreviewSandbox, SkuListing, StatusReason,
    conditions::{self, types},
    preview_policy::{AbuseRules, Cells},
};
use vitrine_policies::{
    capacity::{self, Resources, Room},
    cell::record::Record,
    envelope, names,
    queue::{self, Entry, Place, Stage},
    slots::{self, Dimension, Keys},
};

use super::Guarded;

/// Over what previews of one network are counted.
const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// A listing as it is watched: one that cannot be read does not stop the others.
pub type GuardedListing = DeserializeGuard<SkuListing>;

/// The stores of the watches.
#[derive(Clone)]
pub struct Watched {
    /// All previews.
    pub previews: Store<Guarded>,
    /// All listings.
    pub listings: Store<GuardedListing>,
    /// All cells, by their namespaces.
    pub cells: Store<PartialObjectMeta<Namespace>>,
    /// All slots.
    pub slots: Store<PartialObjectMeta<Lease>>,
    /// Their namespace.
    pub slots_namespace: String,
    /// Receipts without a preview.
    pub receipts: Store<PartialObjectMeta<ConfigMap>>,
    /// All nodes, with no more than is needed to know their room.
    pub nodes: Store<Node>,
    /// The policy as it was last read.
    pub policy: Arc<Mutex<Option<PreviewPolicy>>>,
    /// Keep the stores; they end with the last copy of this.
    pub reflectors: Arc<JoinSet<()>>,
}

impl Watched {
    /// Returns once listings, slots, cells and nodes were listed.
    pub async fn known(&self) {
        // An error means that the watch is gone with the runtime.
        let _ = self.listings.wait_until_ready().await;
        let _ = self.slots.wait_until_ready().await;
        let _ = self.cells.wait_until_ready().await;
        let _ = self.nodes.wait_until_ready().await;
    }

    /// Remembers the policy for those who cannot ask for it.
    pub fn remember(&self, policy: Option<&PreviewPolicy>) {
        let mut known = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let version = |policy: &PreviewPolicy| (policy.uid(), policy.resource_version());
        if known.as_ref().map(version) != policy.map(version) {
            *known = policy.cloned();
        }
    }

    /// Whether the policy ends previews that nobody opens or uses.
    pub fn ends_what_nobody_uses(&self) -> bool {
        let known = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let traffic = known.as_ref().map(|policy| &policy.spec.traffic);
        traffic.is_some_and(|traffic| traffic.unopened.is_some() || traffic.idle.is_some())
    }

    /// What the policy takes for abuse.
    pub fn abuse(&self) -> Option<AbuseRules> {
        let known = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref()?.spec.abuse.clone()
    }

    /// How many previews were made from a network within the last hour.
    pub fn from_network(&self, network: &str) -> Option<u64> {
        let since = Timestamp::now().checked_sub(HOUR).ok()?;
        let previews = self.previews.state();
        let recent = previews.iter().filter(|guarded| {
            guarded.0.as_ref().is_ok_and(|preview| {
                let made = preview.metadata.creation_timestamp.as_ref();
                preview.spec.network.as_deref() == Some(network) && made.is_some_and(|made| made.0 > since)
            })
        });
        u64::try_from(recent.count()).ok()
    }

    /// The uid of the preview that holds a slot.
    pub fn holder(&self, slot: &str) -> Option<String> {
        let slot = self
            .slots
            .get(&ObjectRef::new(slot).within(&self.slots_namespace))?;
        slot.labels().get(slots::HOLDER_LABEL).cloned()
    }

    /// The slots that live previews were admitted with, whether or not they still are there.
    pub fn lived_with(&self) -> HashSet<String> {
        let previews = self.previews.state();
        let live = previews.iter().filter_map(|guarded| {
            let preview = guarded.0.as_ref().ok()?;
            let status = preview.status.as_ref()?;
            (is_admitted(preview) && status.receipt.is_none()).then_some(&status.slots)
        });
        live.flatten().cloned().collect()
    }

    /// Whether a preview holds any slot.
    pub fn holds(&self, uid: &str) -> bool {
        self.holds_beside(uid, &[])
    }

    /// Whether a preview holds another slot than these.
    pub fn holds_beside(&self, uid: &str, known: &[String]) -> bool {
        self.slots.state().iter().any(|slot| {
            slot.labels().get(slots::HOLDER_LABEL).map(String::as_str) == Some(uid)
                && !known.contains(&slot.name_any())
        })
    }

    /// The cells that a preview has beside the one that it lives in.
    pub fn cells_beside(&self, uid: &str, own: Option<&str>) -> Vec<PartialObjectMeta<Namespace>> {
        let cells = self.cells.state().into_iter().filter(|cell| {
            let tenant = cell.annotations().get(names::PREVIEW_UID_ANNOTATION);
            tenant.map(String::as_str) == Some(uid) && own != Some(&cell.name_any())
        });
        cells.map(Arc::unwrap_or_clone).collect()
    }

    /// The cells that a preview may take: first those that it has already, then the free ones, in an order of its own, so that two
    /// previews seldom try the same.
    pub fn cells_for(
        &self,
        uid: &str,
        lot: &str,
        rules: &Cells,
        now: Timestamp,
    ) -> Vec<Arc<PartialObjectMeta<Namespace>>> {
        let (mut own, mut free) = (vec![], vec![]);
        for cell in self.cells.state() {
            let Some(record) = Record::of(&cell.metadata) else {
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
    ) -> Place {
        let (room, policy) = (self.room(policy), &policy.spec);
        let uid = preview.uid().unwrap_or_default();
        let seen = self.seen();
        let mut entries: Vec<_> = seen.entries(policy).filter(|entry| entry.uid != uid).collect();
        // As it was read just now: the watch may be behind.
        let listing_uid = listing.uid().unwrap_or_default();
        entries.push(Entry {
            uid: &uid,
            keys: Keys::new(preview, &listing_uid, &listing.spec.seller),
            needs: needs(preview, listing),
            stage: waits(preview, policy),
        });
        queue::place(&entries, room.as_ref(), &uid, own)
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
        // Every write of every slot asks this, and mostly nobody waits.
        let waits = |guarded: &Arc<Guarded>| guarded.0.as_ref().is_ok_and(|p| !is_admitted(p) && in_queue(p));
        if !self.previews.state().iter().any(waits) {
            return vec![];
        }
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(policy) = policy else { return vec![] };
        let seen = self.seen();
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

    fn seen(&self) -> Seen {
        let listings = self.listings.state().into_iter().map(|listing| {
            let meta = listing.meta();
            let name = (
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            );
            (name, listing)
        });
        Seen {
            previews: self.previews.state(),
            listings: listings.collect(),
        }
    }
}

/// The stores at one moment.
struct Seen {
    previews: Vec<Arc<Guarded>>,
    listings: HashMap<(String, String), Arc<GuardedListing>>,
}

impl Seen {
    fn previews(&self) -> impl Iterator<Item = &PreviewSandbox> {
        self.previews.iter().filter_map(|guarded| guarded.0.as_ref().ok())
    }

    /// Every preview that holds slots or waits for some.
    fn entries<'a>(&'a self, policy: &'a PreviewPolicySpec) -> impl Iterator<Item = Entry<'a>> {
        self.previews()
            .filter_map(move |preview| self.entry(preview, policy))
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
