//! Slots: Leases whose creation is the compare-and-set that limits how many previews live at once. Pure.
//!
//! A slot's name is dimension + full SHA-256 of its key + index. The key itself is stored beside and compared, so that a
//! collision is refused rather than shared. No ownerReferences: they would be collected across namespaces (attacks, 18).

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::{ResourceExt, api::ObjectMeta};
use vitrine_crds::PreviewSandbox;

use crate::names;

/// On a slot: what its name was made from.
pub const KEY_ANNOTATION: &str = "vitrine.dev/slot-key";
/// On a slot: which dimension it limits.
pub const DIMENSION_LABEL: &str = "vitrine.dev/slot";

/// Something that previews are limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// The person or session that a preview is for.
    Subject,
}

impl Dimension {
    /// The word in names and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "subject",
        }
    }
}

/// The name of the slot with this index.
pub fn name(dimension: Dimension, key: &str, index: i32) -> String {
    format!(
        "{}-{}-{index}",
        dimension.as_str(),
        names::digest(&[dimension.as_str(), key])
    )
}

/// The slot as it is created for a preview.
pub fn lease(
    namespace: &str,
    dimension: Dimension,
    key: &str,
    index: i32,
    preview: &PreviewSandbox,
) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name(dimension, key, index)),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([
                (DIMENSION_LABEL.to_owned(), dimension.as_str().to_owned()),
                ("app.kubernetes.io/managed-by".to_owned(), "vitrine".to_owned()),
            ])),
            annotations: Some(BTreeMap::from([
                (KEY_ANNOTATION.to_owned(), key.to_owned()),
                (
                    names::PREVIEW_ANNOTATION.to_owned(),
                    format!(
                        "{}/{}",
                        preview.namespace().unwrap_or_default(),
                        preview.name_any()
                    ),
                ),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: preview.uid(),
            ..LeaseSpec::default()
        }),
    }
}

/// Who holds an existing slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This preview: an earlier attempt of ours got it.
    Us,
    /// Another preview.
    Other,
    /// The same name for another key: a collision, or somebody else's object.
    Foreign,
}

/// Reads who holds a slot.
pub fn holder(lease: &Lease, key: &str, preview_uid: &str) -> Holder {
    if lease.annotations().get(KEY_ANNOTATION).map(String::as_str) != Some(key) {
        return Holder::Foreign;
    }
    match lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()) {
        Some(uid) if uid == preview_uid => Holder::Us,
        _ => Holder::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::fixtures::preview;

    #[test]
    fn a_slot_names_its_key_in_full_and_its_holder() {
        let lease = lease("vitrine-slots", Dimension::Subject, "alice", 0, &preview());
        assert_eq!(
            lease.name_any(),
            format!("subject-{}-0", names::digest(&["subject", "alice"]))
        );
        assert_eq!(holder(&lease, "alice", &preview().uid().unwrap()), Holder::Us);
        assert_eq!(holder(&lease, "alice", "another"), Holder::Other);
        assert_eq!(holder(&lease, "bob", &preview().uid().unwrap()), Holder::Foreign);
        assert!(lease.metadata.owner_references.is_none());
    }
}
