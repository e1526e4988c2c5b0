//! What the queue knows of each preview and of each pool's cell: read once from what a watch tells, and some hundred bytes. Pure.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta};
use vitrine_crds::{
    Phase, PreviewPolicySpec, PreviewSandbox, SkuListing, StatusReason,
    conditions::{self, types},
    preview_sandbox::TrustLevel,
};
use vitrine_policies::{
    capacity::{self, Resources},
    cell::record::Record,
    envelope,
    queue::{Entry, Stage},
    slots::{self, Dimension, Keys, Visitor},
};

use super::index::Kept;

/// A preview.
#[derive(Clone, Debug, PartialEq)]
pub struct OfPreview {
    /// Its uid.
    pub uid: Box<str>,
    subject: Box<str>,
    network: Option<Box<str>>,
    /// When it ends at the latest if it is admitted, as long as it is not extended.
    pub ends: Option<Timestamp>,
    part: Part,
}

/// What it does there.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// It neither holds anything nor waits.
    None,
    /// It holds what is limited for its visitor; the rest its cell holds.
    Visits,
    /// It holds all there is to hold.
    Lives(Arc<Common>),
    /// It waits.
    Waits(Box<Waits>),
}

/// What those of one listing have in common: kept once, where one comes after the other.
#[derive(Clone, Debug, PartialEq)]
struct Common {
    /// The uid of the pool, of cells.
    pool: Option<Box<str>>,
    /// The uid of the listing.
    listing: Box<str>,
    seller: Box<str>,
    needs: Option<Resources>,
}

#[derive(Clone, Debug, PartialEq)]
struct Waits {
    listing: Box<str>,
    /// If it asks for another size than its listing's.
    needs: Option<Resources>,
    level: TrustLevel,
    since: Timestamp,
}

/// A pool's cell.
#[derive(Clone, Debug, PartialEq)]
pub struct OfCell {
    /// Its uid.
    pub uid: Box<str>,
    /// The uid of the preview that has it.
    pub tenant: Option<Box<str>>,
    /// Whether it is on its way out.
    pub going: bool,
    common: Arc<Common>,
}

/// A listing, as far as a preview that waits needs it.
pub struct OfListing {
    /// Its uid.
    pub uid: String,
    /// Who sells it.
    pub seller: String,
    /// What a preview takes of the nodes that does not say so itself.
    pub needs: Resources,
}

impl OfListing {
    /// Of a listing that has a uid.
    pub fn of(listing: &SkuListing) -> Option<Self> {
        Some(Self {
            uid: listing.metadata.uid.clone()?,
            seller: listing.spec.seller.clone(),
            needs: capacity::needs(&listing.spec.preview.size).unwrap_or(Resources::NONE),
        })
    }
}

impl OfPreview {
    /// Of a preview that has a uid.
    pub fn of(preview: &PreviewSandbox) -> Option<Self> {
        Some(Self {
            uid: preview.metadata.uid.as_deref()?.into(),
            subject: preview.spec.subject.as_str().into(),
            network: preview.spec.network.as_deref().map(Into::into),
            ends: ends(preview),
            part: part(preview),
        })
    }

    /// Whether it holds slots.
    pub fn holds(&self) -> bool {
        matches!(self.part, Part::Visits | Part::Lives(_))
    }

    /// The name of the listing that it waits for.
    pub fn waits_for(&self) -> Option<&str> {
        match &self.part {
            Part::Waits(waits) => Some(&waits.listing),
            Part::None | Part::Visits | Part::Lives(_) => None,
        }
    }

    /// For the queue, if it holds slots or waits for some.
    pub fn entry<'a>(
        &'a self,
        policy: &PreviewPolicySpec,
        listing: impl FnOnce(&str) -> Option<&'a OfListing>,
    ) -> Option<Entry<'a>> {
        let visitor = Visitor {
            subject: &self.subject,
            network: self.network.as_deref(),
        };
        let holds = Stage::Holds { until: self.ends };
        let (keys, needs, stage) = match &self.part {
            Part::None => return None,
            Part::Visits => (Keys::of_visitor(visitor), None, holds),
            Part::Lives(common) => {
                let keys = Keys::new(visitor, &common.listing, &common.seller);
                (keys, common.needs, holds)
            }
            Part::Waits(own) => {
                let listing = listing(&own.listing)?;
                let keys = Keys::new(visitor, &listing.uid, &listing.seller);
                let needs = own.needs.unwrap_or(listing.needs);
                (keys, Some(needs), waits(own.level, own.since, policy))
            }
        };
        Some(Entry {
            uid: &self.uid,
            keys,
            needs: needs.unwrap_or(Resources::NONE),
            stage,
        })
    }
}

impl OfCell {
    /// Of a pool's cell that holds something.
    pub fn of(cell: &PartialObjectMeta<Namespace>) -> Option<Self> {
        let record = Record::of(&cell.metadata)?;
        let holds = record.holds?;
        Some(Self {
            uid: cell.uid()?.into(),
            tenant: record.tenant.map(Into::into),
            going: record.going,
            common: Arc::new(Common {
                pool: Some(record.pool?.uid.into()),
                needs: capacity::needs(&holds.size),
                listing: holds.listing.into(),
                seller: holds.seller.into(),
            }),
        })
    }

    /// The uid of its pool.
    pub fn pool(&self) -> &str {
        self.common.pool.as_deref().unwrap_or_default()
    }

    /// For the queue. Whoever has it has it until then.
    pub fn entry(&self, until: Option<Timestamp>) -> Entry<'_> {
        Entry {
            uid: &self.uid,
            keys: Keys::of_listing(&self.common.listing, &self.common.seller),
            needs: self.common.needs.unwrap_or(Resources::NONE),
            stage: match &self.tenant {
                Some(_) => Stage::Holds { until },
                None => Stage::Idles,
            },
        }
    }
}

impl Kept for OfPreview {
    fn share(&mut self, other: &Self) {
        if let (Part::Lives(own), Part::Lives(other)) = (&mut self.part, &other.part) {
            share(own, other);
        }
    }

    fn takes(&self) -> Option<Resources> {
        match &self.part {
            Part::Lives(common) => common.needs,
            // One who visits lives in a cell that takes it.
            Part::None | Part::Visits | Part::Waits(_) => None,
        }
    }
}

impl Kept for OfCell {
    fn share(&mut self, other: &Self) {
        share(&mut self.common, &other.common);
    }

    fn takes(&self) -> Option<Resources> {
        self.common.needs
    }
}

fn share(own: &mut Arc<Common>, other: &Arc<Common>) {
    if own == other {
        own.clone_from(other);
    }
}

fn part(preview: &PreviewSandbox) -> Part {
    if let Some(status) = &preview.status
        && is_admitted(preview)
    {
        let envelope = status.envelope.as_ref();
        return match envelope.filter(|_| status.receipt.is_none()) {
            None => Part::None,
            Some(_) if !status.slots.iter().any(|slot| is_of_listing(slot)) => Part::Visits,
            Some(envelope) => Part::Lives(Arc::new(Common {
                pool: None,
                listing: envelope::listing_uid(&envelope.listing).into(),
                seller: envelope.seller.as_str().into(),
                needs: capacity::needs(&envelope.size),
            })),
        };
    }
    if !in_queue(preview) {
        return Part::None;
    }
    let size = preview.spec.size.as_ref();
    Part::Waits(Box::new(Waits {
        listing: preview.spec.listing_ref.name.as_str().into(),
        needs: size.map(|size| capacity::needs(size).unwrap_or(Resources::NONE)),
        level: preview.spec.trust_level,
        since: since(preview),
    }))
}

/// Whether a slot is one of those of a listing.
pub fn is_of_listing(slot: &str) -> bool {
    slots::parse(slot).is_some_and(|(of, _)| of == Dimension::Listing)
}

/// Whether a preview was admitted.
pub fn is_admitted(preview: &PreviewSandbox) -> bool {
    let status = preview.status.as_ref();
    status.is_some_and(|status| conditions::is_true(&status.conditions, types::ADMITTED))
}

/// Whether a preview that is not admitted waits for slots, and for nothing else.
pub fn in_queue(preview: &PreviewSandbox) -> bool {
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
pub fn needs(preview: &PreviewSandbox, listing: &SkuListing) -> Resources {
    let size = preview.spec.size.as_ref().unwrap_or(&listing.spec.preview.size);
    capacity::needs(size).unwrap_or(Resources::NONE)
}

/// Where a preview waits, since when, and for how many.
pub fn waits(level: TrustLevel, since: Timestamp, policy: &PreviewPolicySpec) -> Stage {
    Stage::Waits {
        priority: policy.trust_levels.of(level).priority,
        since,
        limits: Dimension::ALL.map(|dimension| dimension.limit(policy, level)),
    }
}

/// Since when a preview waits.
pub fn since(preview: &PreviewSandbox) -> Timestamp {
    let made = preview.metadata.creation_timestamp.as_ref();
    made.map_or(Timestamp::MAX, |made| made.0)
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

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;
    use serde_json::{Value, json};

    use super::*;

    fn policy() -> PreviewPolicySpec {
        serde_json::from_value(json!({
            "ttl": {"min": "10m", "max": "30m", "default": "20m"},
            "size": {"max": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}},
            "isolation": {"internet": ["203.0.113.10:80"]}
        }))
        .unwrap()
    }

    fn preview(spec: Value, status: Value) -> OfPreview {
        let mut preview = json!({
            "metadata": {"name": "try", "namespace": "shop", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"listingRef": {"name": "notebook"}, "subject": "alice"}, "status": status
        });
        preview["spec"]
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        OfPreview::of(&serde_json::from_value(preview).unwrap()).unwrap()
    }

    fn admitted(slots: &[&str], receipt: Value) -> Value {
        json!({
            "phase": "Ready", "slots": slots, "receipt": receipt, "expiresAt": "2026-01-01T00:20:00Z",
            "envelope": {
                "listing": "l/1", "seller": "acme", "port": 80, "landingPath": "/", "ttlCap": "20m", "proofDeadline": "1m", "image": format!("m/n@sha256:{}", "a".repeat(64)),
                "size": {"cpu": "100m", "memory": "128Mi", "ephemeralStorage": "16Mi"}, "ttl": "20m", "provisioningDeadline": "2m"
            },
            "conditions": [{"type": "Admitted", "status": "True", "reason": "Admitted", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]
        })
    }

    fn listing(cpu: &str) -> OfListing {
        OfListing {
            uid: "l".into(),
            seller: "acme".into(),
            needs: size(cpu),
        }
    }

    fn size(cpu: &str) -> Resources {
        Resources {
            cpu: cpu.parse().unwrap(),
            ..Resources::NONE
        }
    }

    fn keys(entry: &Entry<'_>) -> Vec<String> {
        entry
            .keys
            .each()
            .map(|(of, key)| format!("{} {key}", of.as_str()))
            .collect()
    }

    #[test]
    fn one_that_waits_needs_what_it_asks_for_or_what_its_listing_says() {
        let (policy, listed) = (policy(), listing("2"));
        let waits = preview(json!({"network": "198.51.100.0/24"}), Value::Null);
        assert_eq!(
            (waits.waits_for(), waits.holds(), waits.takes()),
            (Some("notebook"), false, None)
        );
        let entry = waits
            .entry(&policy, |name| (name == "notebook").then_some(&listed))
            .unwrap();
        assert_eq!(
            keys(&entry),
            [
                "subject alice",
                "network 198.51.100.0/24",
                "listing l",
                "seller acme",
                "cluster cluster"
            ]
        );
        assert_eq!(entry.needs, size("2"));
        assert!(
            matches!(entry.stage, Stage::Waits { since, .. } if since.to_string() == "2026-01-01T00:00:00Z")
        );
        let own = json!({"size": {"cpu": "1", "memory": "0", "ephemeralStorage": "0"}});
        let entry = preview(own, Value::Null);
        // With what the probe beside it takes.
        let needs = entry.entry(&policy, |_| Some(&listed)).unwrap().needs;
        assert!(needs.cpu > size("1").cpu && needs.cpu < size("2").cpu);
        assert!(
            waits.entry(&policy, |_| None).is_none(),
            "without its listing it is not in the queue"
        );
        let refused = json!({"phase": "Refused", "conditions": []});
        assert!(
            preview(json!({}), refused)
                .entry(&policy, |_| Some(&listed))
                .is_none()
        );
    }

    #[test]
    fn one_that_lives_holds_all_or_what_is_its_visitors_and_nothing_after_its_receipt() {
        let policy = policy();
        let none = |_: &str| None;
        let whole = preview(json!({}), admitted(&["subject-a-0", "listing-b-0"], Value::Null));
        assert!(whole.holds());
        assert!(whole.takes().unwrap().cpu > size("100m").cpu);
        let entry = whole.entry(&policy, none).unwrap();
        assert_eq!(
            keys(&entry),
            ["subject alice", "listing l", "seller acme", "cluster cluster"]
        );
        let ends = "2026-01-01T00:20:00Z".parse().unwrap();
        assert!(matches!(entry.stage, Stage::Holds { until: Some(until) } if until == ends));
        let visits = preview(json!({}), admitted(&["subject-a-0"], Value::Null));
        assert_eq!(visits.takes(), None);
        let entry = visits.entry(&policy, none).unwrap();
        assert_eq!(
            (keys(&entry), entry.needs),
            (vec!["subject alice".to_owned()], Resources::NONE)
        );
        let receipt = json!({
            "preview": "u", "image": "m/n", "cell": "c", "endedAt": "2026-01-01T00:10:00Z", "cause": "Deleted", "result": "verified"
        });
        let over = preview(json!({}), admitted(&["subject-a-0"], receipt));
        assert!(!over.holds() && over.entry(&policy, none).is_none());
    }

    #[test]
    fn a_pools_cell_idles_until_a_preview_has_it_and_shares_what_its_like_say() {
        let cell = |uid: &str, tenant: Option<&str>| {
            let common = Common {
                pool: Some("p".into()),
                listing: "l".into(),
                seller: "acme".into(),
                needs: Some(size("1")),
            };
            OfCell {
                uid: uid.into(),
                tenant: tenant.map(Into::into),
                going: false,
                common: Arc::new(common),
            }
        };
        let (idle, mut had) = (cell("a", None), cell("b", Some("u")));
        assert!(matches!(idle.entry(None).stage, Stage::Idles));
        let until = "2026-01-01T00:20:00Z".parse().ok();
        assert!(matches!(had.entry(until).stage, Stage::Holds { until: held } if held == until));
        assert_eq!(
            keys(&had.entry(None)),
            ["listing l", "seller acme", "cluster cluster"]
        );
        had.share(&idle);
        assert!(Arc::ptr_eq(&had.common, &idle.common));
        assert_eq!((had.pool(), had.takes()), ("p", Some(size("1"))));
        let bare = PartialObjectMeta::<Namespace> {
            metadata: ObjectMeta::default(),
            ..PartialObjectMeta::default()
        };
        assert_eq!(OfCell::of(&bare), None);
    }
}
