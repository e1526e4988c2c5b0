//! The controller of `PreviewSandbox`: looks → dereference → decide → apply. Only dereference and apply may touch the cluster.
//!
//! `observe`, `decide` and `report` are pure; `watches` keeps what is told, `queue` reads that, `index` finds it, and `looks` judges by it;
//! all others hold a client: `dereference`, `slots`, `cells`, `make`, `quotas`, `pods`, `apply`, `status`, `standing`, and beside the
//! reconciler `sweep`. `controller` wires them.

pub mod apply;
pub mod cells;
pub mod clock;
pub mod controller;
pub mod decide;
pub mod dereference;
pub mod entries;
pub mod held;
pub mod index;
pub mod looks;
pub mod make;
pub mod observe;
pub mod pods;
pub mod queue;
pub mod quotas;
pub mod report;
pub mod seals;
pub mod slots;
pub mod standing;
pub mod status;
pub mod sweep;
pub mod watches;

#[cfg(test)]
mod decide_tests;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, core::DeserializeGuard};
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_policies::{
    cell::{network::House, pod::ProbeImage},
    names,
};

use std::{collections::BTreeMap, sync::Arc};

use self::{looks::Looks, queue::Watched};
use crate::{
    activity::Watchers,
    costs::Costs,
    denials::Denials,
    herald::Herald,
    lanes::Lanes,
    link::LinkSigner,
    metrics::Metrics,
    pool::{controller::Wakes, table::Table},
    prober::Prober,
    receipts::Receipts,
    targets,
};

/// A preview as it is watched: one that cannot be read does not stop the others.
pub type Guarded = DeserializeGuard<PreviewSandbox>;

/// What every step may use.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Publishes events.
    pub herald: Herald,
    /// Counts.
    pub metrics: Metrics,
    /// Where things are.
    pub settings: Settings,
    /// Signs links.
    pub signer: LinkSigner,
    /// Asks whether targets are up.
    pub prober: Prober,
    /// What the watches have seen.
    pub watched: Watched,
    /// What the gateways have told of visitors.
    pub watchers: Watchers,
    /// What the nodes have told of previews.
    pub costs: Costs,
    /// What the egress proxies have told of previews.
    pub denials: Denials,
    /// What becomes of receipts.
    pub receipts: Receipts,
    /// Who works at once.
    pub lanes: Lanes,
    /// Which live previews are to be looked at.
    pub looks: Arc<Looks>,
    /// The addresses that pods must find shut.
    pub map: targets::Map,
    /// What is known of pools' cells.
    pub pools: Arc<Table>,
    /// Wakes those who look after them.
    pub wakes: Wakes,
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Vitrine's own namespace.
    pub house: House,
    /// The namespace of the slots.
    pub slots: String,
    /// The namespace of receipts without a preview.
    pub receipts: String,
    /// The image of the probe.
    pub probe: ProbeImage,
    /// The form of a preview's address, with `{label}`.
    pub url: String,
    /// The Service of the responder.
    pub responder: String,
    /// The Service of the decoy.
    pub decoy: String,
    /// The Service of the egress proxy.
    pub egress: String,
    /// The Service of the cluster's DNS, namespace and name, if it has one.
    pub dns: Option<(String, String)>,
}

impl Context {
    /// A namespaced API.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Whose a cell or slot says that it is, by namespace and name.
pub(crate) fn whose(annotations: &BTreeMap<String, String>) -> Option<(&str, &str)> {
    annotations.get(names::PREVIEW_ANNOTATION)?.split_once('/')
}

/// Whether a preview waits to be admitted.
pub(crate) fn is_waiting(preview: &PreviewSandbox) -> bool {
    preview.phase() == Phase::Queued
}

/// Whether somebody waits for a preview to be ready.
pub(crate) fn begins(preview: &PreviewSandbox) -> bool {
    matches!(
        preview.phase(),
        Phase::Queued | Phase::Provisioning | Phase::Proving
    )
}
