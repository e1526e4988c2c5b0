//! A cell: the namespace of one preview and everything in it, as objects. Pure.

pub mod boundary;
pub mod network;
pub mod pod;
pub mod seal;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod golden;

use std::collections::BTreeMap;

use kube::{ResourceExt, api::ObjectMeta};
use vitrine_crds::PreviewSandbox;

use crate::names;

/// A preview and the cell it is to live in: what every builder needs to know of it.
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
            cell: names::cell(&uid),
            uid,
        })
    }

    /// Metadata of an object in the cell.
    pub(crate) fn metadata(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.cell.clone()),
            labels: Some(labels()),
            annotations: Some(self.annotations()),
            ..ObjectMeta::default()
        }
    }

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

pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([
        (names::CELL_LABEL.to_owned(), "true".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), "vitrine".to_owned()),
    ])
}
