//! A cell: the namespace of one preview and everything in it, as objects. Pure.

pub mod boundary;
pub mod network;
pub mod pod;
pub mod record;
pub mod seal;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod golden;

use std::collections::BTreeMap;

use kube::{ResourceExt, api::ObjectMeta};
use vitrine_crds::PreviewSandbox;

use crate::names;

/// A preview and the cell it lives in, or is to live in if it gets one of its own: what every builder needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Namespace of the preview object.
    pub namespace: String,
    /// Name of the preview object.
    pub name: String,
    /// Uid of the preview object.
    pub uid: String,
    /// The cell.
    pub cell: String,
}

impl Tenant {
    /// The tenant that a stored preview is. `None` for an object without uid or namespace, which was never stored.
    pub fn of(preview: &PreviewSandbox) -> Option<Self> {
        let uid = preview.uid()?;
        Some(Self {
            namespace: preview.namespace()?,
            name: preview.name_any(),
            cell: preview
                .status
                .as_ref()
                .and_then(|status| status.cell.clone())
                .unwrap_or_else(|| names::cell(&uid)),
            uid,
        })
    }

    /// Who has the cell, as its namespace says it.
    pub(crate) fn annotations(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (
                names::PREVIEW_ANNOTATION.to_owned(),
                format!("{}/{}", self.namespace, self.name),
            ),
            (names::PREVIEW_UID_ANNOTATION.to_owned(), self.uid.clone()),
        ])
    }
}

/// Metadata of an object in a cell. It does not say for whom: that its namespace says, because a cell outlives its preview.
pub(crate) fn metadata(cell: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(cell.to_owned()),
        labels: Some(labels()),
        ..ObjectMeta::default()
    }
}

pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::CELL_LABEL.to_owned(), "true".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), "vitrine".to_owned()),
    ])
}
