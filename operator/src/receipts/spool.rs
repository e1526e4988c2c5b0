//! Receipts without a preview: one ConfigMap each, until the sink has it or its retention is over. Writes the spool's namespace.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
    core::PartialObjectMeta,
};
use vitrine_crds::PreviewSandbox;
use vitrine_policies::names::PREVIEW_ANNOTATION;
use vitrine_receipts::names::{DATA, KEPT, PENDING, PREFIX, STATE_LABEL, UNTIL_ANNOTATION};

use crate::{
    error::{Error, Result, found, status},
    shelf::Shelf,
};

/// A receipt in the spool, without the receipt itself.
pub type Entry = PartialObjectMeta<ConfigMap>;

/// Why a receipt is kept beyond its preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until the sink has it.
    UntilDelivered,
    /// Until then: it is all that is left of the preview.
    Until(Timestamp),
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is in the spool.
    Spooled,
    /// It is not: why.
    Dropped(String),
}

/// The spool.
#[derive(Clone)]
pub struct Spool {
    api: Api<ConfigMap>,
    namespace: String,
    entries: Arc<Shelf<Entry>>,
    most: usize,
}

impl Spool {
    /// A spool in a namespace, with what a watch knows of it.
    pub fn new(client: &Client, namespace: &str, entries: Arc<Shelf<Entry>>, most: usize) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            entries,
            most,
        }
    }

    /// Shows what is in it.
    pub async fn show(&self, show: impl FnMut(Entry)) {
        self.entries.show(show).await;
    }

    /// The receipt of the preview with this uid, if the spool has it.
    pub fn entry(&self, uid: &str) -> Option<Entry> {
        self.entries.get(&self.key(&name(uid)))
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    /// Keeps the receipt of a preview that is about to go. Never in the way of its going: what the spool cannot take is dropped.
    ///
    /// # Errors
    /// If the API server did not take it, unless this is the last try: then it is dropped. What is refused now need not be refused in a
    /// minute, as while an API server starts.
    pub async fn keep(
        &self,
        preview: &PreviewSandbox,
        envelope: &str,
        keep: Keep,
        is_last_try: bool,
    ) -> Result<Kept> {
        let uid = preview.uid().unwrap_or_default();
        let name = name(&uid);
        if self.entries.has(&self.key(&name)) {
            return Ok(Kept::Spooled);
        }
        if self.entries.count() >= self.most {
            return Ok(Kept::Dropped(format!(
                "the spool holds {} receipts, as many as it may",
                self.most
            )));
        }
        let (state, until) = match keep {
            Keep::UntilDelivered => (PENDING, None),
            Keep::Until(time) => (KEPT, Some((UNTIL_ANNOTATION.to_owned(), time.to_string()))),
        };
        let whose = format!(
            "{}/{}",
            preview.namespace().unwrap_or_default(),
            preview.name_any()
        );
        let entry = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([(STATE_LABEL.to_owned(), state.to_owned())])),
                annotations: Some(
                    [(PREVIEW_ANNOTATION.to_owned(), whose)]
                        .into_iter()
                        .chain(until)
                        .collect(),
                ),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(DATA.to_owned(), envelope.to_owned())])),
            immutable: Some(true),
            ..ConfigMap::default()
        };
        match self.api.create(&PostParams::default(), &entry).await {
            Ok(_) => Ok(Kept::Spooled),
            // An attempt of ours that was cut off.
            Err(error) if status(&error).is_some_and(kube::core::Status::is_already_exists) => {
                Ok(Kept::Spooled)
            }
            Err(error) => {
                let error = Error::kube("keep the receipt in", "ConfigMap", name)(error);
                if is_last_try {
                    Ok(Kept::Dropped(error.to_string()))
                } else {
                    Err(error)
                }
            }
        }
    }

    /// The receipt of an entry; `None` if it is gone, or is none.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn read(&self, name: &str) -> Result<Option<String>> {
        let entry = found(self.api.get(name).await).map_err(Error::kube("get", "ConfigMap", name))?;
        Ok(entry.and_then(|entry| entry.data?.remove(DATA)))
    }

    /// Lets an entry go.
    ///
    /// # Errors
    /// If the API server does not answer.
    pub async fn forget(&self, entry: &Entry) -> Result<()> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: entry.uid(),
            resource_version: None,
        });
        let name = entry.name_any();
        let deleted = found(self.api.delete(&name, &params).await);
        deleted
            .map(drop)
            .map_err(Error::kube("delete", "ConfigMap", name))
    }
}

/// What the entry of this preview's receipt is called.
fn name(uid: &str) -> String {
    format!("{PREFIX}{uid}")
}
