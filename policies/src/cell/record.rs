//! What a cell's namespace says of the cell: which pod it is for, who has it, what may use it next. Pure.
//!
//! The record is annotations of the Namespace. Whoever changes it names the resourceVersion that it has seen, so of two claims one
//! is refused; whoever frees it raises the epoch in the same write, so that no pod of the preview before can come any more.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Namespace, jiff::Timestamp};
use kube::api::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vitrine_crds::{
    TimeSpan,
    preview_policy::{CellUse, Cells},
    preview_sandbox::TrustLevel,
    sku_listing::Size,
};

use super::{Tenant, boundary, network};
use crate::{Envelope, names};

/// On a cell's namespace: what may use it, one preview after the other ([`lot`]).
pub const LOT_ANNOTATION: &str = "vitrine.dev/lot";
/// On a cell's namespace: how many previews have had it.
pub const USES_ANNOTATION: &str = "vitrine.dev/uses";
/// On a pool's cell: what it holds for the previews that will have it ([`Holds`]), as JSON.
pub const HOLDS_ANNOTATION: &str = "vitrine.dev/holds";
/// On a cell's namespace: since when it is had, or free.
pub const SINCE_ANNOTATION: &str = "vitrine.dev/since";

/// Stands for any cell where only what all cells have in common matters.
const ANY: &str = "vitrine-cell-any";

/// What a pool's cell holds for the previews that will have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holds {
    /// The uid of the listing.
    pub listing: String,
    /// Who sells it.
    pub seller: String,
    /// What its pod takes of a node.
    pub size: Size,
    /// Its slots of listing, seller and cluster, by the names of their Leases.
    pub slots: Vec<String>,
}

/// The pool that a cell is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OfPool {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is written on a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// For which pod it is.
    pub epoch: String,
    /// The uid of the preview that has it.
    pub tenant: Option<String>,
    /// What may use it next.
    pub lot: Option<String>,
    /// How many previews have had it.
    pub uses: i32,
    /// The pool that it is of.
    pub pool: Option<OfPool>,
    /// What it holds; nothing yet, if it is being made.
    pub holds: Option<Holds>,
    /// Since when it is had, or free.
    pub since: Option<Timestamp>,
    /// When it was made.
    pub made: Option<Timestamp>,
    /// Whether it is being removed.
    pub going: bool,
}

impl Record {
    /// Reads the metadata of a namespace; `None` if that is no cell.
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let name = meta.name.as_deref()?;
        let labels = meta.labels.as_ref()?;
        if !name.starts_with(names::CELL_PREFIX)
            || name == names::SENTINEL
            || labels.get(names::CELL_LABEL).map(String::as_str) != Some("true")
        {
            return None;
        }
        let said = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key));
        Some(Self {
            epoch: said(names::EPOCH_ANNOTATION)?.clone(),
            tenant: said(names::PREVIEW_UID_ANNOTATION).cloned(),
            lot: said(LOT_ANNOTATION).cloned(),
            uses: said(USES_ANNOTATION)
                .and_then(|uses| uses.parse().ok())
                .unwrap_or_default(),
            pool: of_pool(labels, said(names::POOL_ANNOTATION)),
            holds: said(HOLDS_ANNOTATION).and_then(|holds| serde_json::from_str(holds).ok()),
            since: said(SINCE_ANNOTATION).and_then(|since| since.parse().ok()),
            made: meta.creation_timestamp.as_ref().map(|made| made.0),
            going: meta.deletion_timestamp.is_some(),
        })
    }

    /// Whether a preview of this lot may have it now.
    pub fn is_free_for(&self, lot: &str, rules: &Cells, now: Timestamp) -> bool {
        self.tenant.is_none() && self.lot.as_deref() == Some(lot) && self.may_be_used_again(rules, now)
    }

    /// Whether anybody may have it after the preview that has it, or had it last.
    pub fn may_be_used_again(&self, rules: &Cells, now: Timestamp) -> bool {
        rules.mode == CellUse::Reuse && self.may_be_used(rules, now)
    }

    /// Whether the next preview may have it, where the one that had it last has left it so: also one that nobody had yet, and that nobody
    /// will have again.
    pub fn may_be_used(&self, rules: &Cells, now: Timestamp) -> bool {
        let young = self.made.is_some_and(|made| within(made, rules.max_age, now));
        let most = match rules.mode {
            CellUse::Reuse => rules.max_uses,
            CellUse::Fresh => 1,
        };
        !self.going && young && self.uses < most
    }

    /// Whether it is kept for whoever comes next.
    pub fn is_kept(&self, rules: &Cells, now: Timestamp) -> bool {
        let since = self.since.or(self.made);
        self.may_be_used_again(rules, now) && since.is_some_and(|since| within(since, rules.keep_free, now))
    }
}

fn of_pool(labels: &BTreeMap<String, String>, name: Option<&String>) -> Option<OfPool> {
    let (namespace, name) = name?.split_once('/')?;
    Some(OfPool {
        uid: labels.get(names::POOL_LABEL)?.clone(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn within(start: Timestamp, span: TimeSpan, now: Timestamp) -> bool {
    now.as_second() - start.as_second() < i64::try_from(span.as_secs()).unwrap_or(i64::MAX)
}

/// What previews may use one cell after the other: those of one seller, known equally well, and confined alike.
pub fn lot(envelope: &Envelope, level: TrustLevel, house: &network::House) -> String {
    let seal = json!([
        boundary::quota(ANY, envelope),
        boundary::closed(ANY),
        boundary::limit_range(ANY, envelope),
        boundary::service_account(ANY),
        network::policy(ANY, envelope, house),
        envelope.runtime_class,
        level,
    ]);
    names::digest(&["lot", &envelope.seller, &seal.to_string()])[..32].to_owned()
}

/// The namespace of a cell, as it has to be for as long as a preview has it.
pub fn had_by(tenant: &Tenant) -> Namespace {
    let mut namespace = boundary::namespace(&tenant.cell);
    namespace.metadata.annotations = Some(tenant.annotations());
    namespace
}

/// The namespace of a cell that is made for a preview, or for whoever comes.
pub fn made(cell: &str, tenant: Option<&Tenant>, epoch: String, lot: String, now: Timestamp) -> Namespace {
    let mut made = tenant.map_or_else(|| boundary::namespace(cell), had_by);
    made.metadata.annotations.get_or_insert_default().extend([
        (names::EPOCH_ANNOTATION.to_owned(), epoch),
        (LOT_ANNOTATION.to_owned(), lot),
        (SINCE_ANNOTATION.to_owned(), now.to_string()),
    ]);
    made
}

/// The namespace of a pool's cell.
pub fn of(pool: &OfPool, cell: &str, epoch: String, lot: String, now: Timestamp) -> Namespace {
    let mut made = made(cell, None, epoch, lot, now);
    let labels = made.metadata.labels.get_or_insert_default();
    labels.insert(names::POOL_LABEL.to_owned(), pool.uid.clone());
    let annotations = made.metadata.annotations.get_or_insert_default();
    annotations.insert(
        names::POOL_ANNOTATION.to_owned(),
        format!("{}/{}", pool.namespace, pool.name),
    );
    made
}

/// The annotation of a pool's cell that holds its slots now.
pub fn holding(holds: &Holds) -> BTreeMap<String, Value> {
    // Strings in structs: serde_json has nothing to fail on.
    let text = serde_json::to_string(holds).unwrap_or_default();
    BTreeMap::from([(HOLDS_ANNOTATION.to_owned(), text.into())])
}

/// The annotation of a cell that holds no slots any more.
pub fn holds_nothing() -> BTreeMap<String, Value> {
    BTreeMap::from([(HOLDS_ANNOTATION.to_owned(), Value::Null)])
}

/// The annotations of a cell that nobody has and that is for another pod from now on.
pub fn renewed(epoch: String, now: Timestamp) -> BTreeMap<String, Value> {
    let mut annotations = returned(now);
    annotations.insert(names::EPOCH_ANNOTATION.to_owned(), epoch.into());
    annotations
}

/// The annotations of a cell that a preview takes. They differ from what an earlier attempt of its own wrote, so that whoever wants
/// to free what that has left sees another resourceVersion.
pub fn claimed(tenant: &Tenant, now: Timestamp) -> BTreeMap<String, Value> {
    let mut annotations: BTreeMap<_, _> = tenant
        .annotations()
        .into_iter()
        .map(|(k, v)| (k, v.into()))
        .collect();
    annotations.insert(SINCE_ANNOTATION.to_owned(), now.to_string().into());
    annotations
}

/// The annotations of a cell that was taken and that no pod was made in.
pub fn returned(now: Timestamp) -> BTreeMap<String, Value> {
    BTreeMap::from([
        (names::PREVIEW_ANNOTATION.to_owned(), Value::Null),
        (names::PREVIEW_UID_ANNOTATION.to_owned(), Value::Null),
        (SINCE_ANNOTATION.to_owned(), now.to_string().into()),
    ])
}

/// The annotation of a cell that nobody may use after the preview that has it: it is of no lot.
pub fn forfeited() -> BTreeMap<String, Value> {
    BTreeMap::from([(LOT_ANNOTATION.to_owned(), Value::Null)])
}

/// The annotations of a cell whose preview is over: it is for another pod from now on.
pub fn freed(record: &Record, epoch: String, now: Timestamp) -> BTreeMap<String, Value> {
    let mut annotations = renewed(epoch, now);
    annotations.insert(
        USES_ANNOTATION.to_owned(),
        record.uses.saturating_add(1).to_string().into(),
    );
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::fixtures;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn rules() -> Cells {
        Cells {
            mode: CellUse::Reuse,
            max_age: TimeSpan::from_secs(1000),
            max_uses: 2,
            keep_free: TimeSpan::from_secs(60),
        }
    }

    fn made() -> Namespace {
        let tenant = fixtures::tenant();
        let mut made = super::made(&tenant.cell, Some(&tenant), "e1".into(), "lot".into(), at(0));
        made.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        made
    }

    fn patched(mut namespace: Namespace, patch: BTreeMap<String, Value>) -> Namespace {
        let annotations = namespace.metadata.annotations.get_or_insert_default();
        for (key, value) in patch {
            match value.as_str() {
                Some(text) => annotations.insert(key, text.to_owned()),
                None => annotations.remove(&key),
            };
        }
        namespace
    }

    fn record(namespace: &Namespace) -> Record {
        Record::of(&namespace.metadata).unwrap()
    }

    #[test]
    fn a_cell_is_free_for_its_lot_once_its_preview_is_over_and_has_another_epoch() {
        let namespace = made();
        let had = record(&namespace);
        assert_eq!(had.tenant, fixtures::tenant().uid.into());
        assert!(!had.is_free_for("lot", &rules(), at(1)));
        let namespace = patched(namespace, freed(&had, "e2".into(), at(10)));
        let free = record(&namespace);
        assert_eq!((free.epoch.as_str(), free.uses, &free.tenant), ("e2", 1, &None));
        assert!(free.is_free_for("lot", &rules(), at(11)));
        assert!(!free.is_free_for("another", &rules(), at(11)));
        assert!(free.is_kept(&rules(), at(69)) && !free.is_kept(&rules(), at(70)));
        let namespace = patched(namespace, claimed(&fixtures::tenant(), at(20)));
        assert!(!record(&namespace).is_free_for("lot", &rules(), at(21)));
        let namespace = patched(namespace, returned(at(30)));
        let back = record(&namespace);
        assert_eq!((back.epoch.as_str(), back.uses), ("e2", 1), "nothing was in it");
        assert!(back.is_free_for("lot", &rules(), at(31)));
    }

    #[test]
    fn a_cell_that_is_old_worn_or_going_is_nobodys_any_more() {
        let namespace = made();
        let free = patched(namespace.clone(), freed(&record(&namespace), "e2".into(), at(10)));
        assert!(record(&free).may_be_used_again(&rules(), at(999)));
        assert!(!record(&free).may_be_used_again(&rules(), at(1000)), "too old");
        let fresh = Cells {
            mode: CellUse::Fresh,
            ..rules()
        };
        assert!(
            record(&namespace).may_be_used(&fresh, at(999)),
            "nobody had it before"
        );
        assert!(!record(&namespace).may_be_used_again(&fresh, at(999)));
        assert!(!record(&namespace).may_be_used(&fresh, at(1000)), "too old");
        assert!(!record(&free).may_be_used(&fresh, at(20)), "somebody had it");
        let worn = patched(free.clone(), freed(&record(&free), "e3".into(), at(20)));
        assert!(!record(&worn).may_be_used_again(&rules(), at(30)), "used twice");
        let fresh = Cells {
            mode: CellUse::Fresh,
            ..rules()
        };
        assert!(!record(&free).may_be_used_again(&fresh, at(30)));
        let mut going = free;
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(20)));
        assert!(!record(&going).may_be_used_again(&rules(), at(30)));
    }

    #[test]
    fn only_what_has_name_label_and_epoch_is_a_cell() {
        let namespace = made();
        for spoil in [
            (|n| n.metadata.name = Some("shop".into())) as fn(&mut Namespace),
            |n| n.metadata.name = Some(names::SENTINEL.into()),
            |n| drop(n.metadata.labels.as_mut().unwrap().remove(names::CELL_LABEL)),
            |n| {
                drop(
                    n.metadata
                        .annotations
                        .as_mut()
                        .unwrap()
                        .remove(names::EPOCH_ANNOTATION),
                )
            },
        ] {
            let mut other = namespace.clone();
            spoil(&mut other);
            assert_eq!(Record::of(&other.metadata), None);
        }
    }

    #[test]
    fn a_lot_is_of_one_seller_one_trust_level_and_one_confinement() {
        let envelope = fixtures::envelope();
        let of = |envelope: &Envelope, level| lot(envelope, level, &fixtures::house());
        let mine = of(&envelope, TrustLevel::Anonymous);
        let other_image = Envelope {
            image: "another".into(),
            ..envelope.clone()
        };
        assert_eq!(of(&other_image, TrustLevel::Anonymous), mine);
        assert_ne!(of(&envelope, TrustLevel::SignedIn), mine);
        for other in [
            Envelope {
                seller: "rival".into(),
                ..envelope.clone()
            },
            Envelope {
                port: 9000,
                ..envelope.clone()
            },
            Envelope {
                memory: envelope.memory.plus(envelope.memory),
                ..envelope.clone()
            },
            Envelope {
                egress: vec!["a.example".into()],
                ..envelope.clone()
            },
            Envelope {
                runtime_class: Some("gvisor".into()),
                ..envelope.clone()
            },
        ] {
            assert_ne!(of(&other, TrustLevel::Anonymous), mine, "{other:?}");
        }
    }
}
