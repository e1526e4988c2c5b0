//! Reads all that one preview depends on. Reads the cluster, writes nothing.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;
use vitrine_crds::{
    POLICY_NAME, Phase, PreviewPolicy, PreviewSandbox, PreviewSandboxStatus, SkuListing, StatusReason,
    conditions::{self, types},
};
use vitrine_policies::{
    cell::Tenant,
    names,
    slots::{self, Dimension},
};

use super::{
    Context,
    decide::{Cell, World},
    observe::{self, Proof},
};
use crate::{
    error::{Error, Result, found},
    kubelet,
};

/// Reads the world of one preview; `None` if the preview is gone.
///
/// # Errors
/// If the API server does not answer, or the preview cannot be read.
pub async fn dereference(context: &Context, namespace: &str, name: &str) -> Result<Option<World>> {
    // Read anew, not from the watch: a decision on an old state would only be refused by its resourceVersion later.
    let previews: Api<PreviewSandbox> = context.api(namespace);
    let Some(preview) = get(&previews, "PreviewSandbox", name).await? else {
        return Ok(None);
    };
    let Some(tenant) = Tenant::of(&preview) else {
        return Err(Error::Malformed {
            name: format!("{namespace}/{name}"),
            message: "it has no uid".to_owned(),
        });
    };
    let status = preview.status.clone().unwrap_or_default();
    let policies: Api<PreviewPolicy> = Api::all(context.client.clone());
    let policy = get(&policies, "PreviewPolicy", POLICY_NAME)
        .await?
        .map(|p| p.spec);

    let mut world = World {
        ahead: 0,
        cell: Cell::default(),
        held_slots: vec![],
        house: context.settings.house.clone(),
        listing: None,
        outside: None,
        policy,
        preview,
        reported_gone: None,
        tenant,
    };
    if status.phase.is_terminal() {
        return Ok(Some(world));
    }
    let listings: Api<SkuListing> = context.api(namespace);
    world.listing = get(&listings, "SkuListing", &world.preview.spec.listing_ref.name).await?;
    if !world
        .preview
        .finalizers()
        .iter()
        .any(|f| f == names::PREVIEW_FINALIZER)
        || (!conditions::is_true(&status.conditions, types::ADMITTED)
            && world.preview.metadata.deletion_timestamp.is_none())
    {
        world.ahead = ahead(&context.watched(), &world.preview);
        return Ok(Some(world));
    }
    world.cell = cell(context, &world.tenant.cell).await?;
    outside(context, &status, &mut world).await;
    if world.cell.pod.is_none() && conditions::is_true(&status.conditions, types::EXPIRED) {
        if status.receipt.is_some() {
            world.held_slots = held_slots(context, &status, &world).await?;
        } else if let Some(pod) = &status.pod {
            world.reported_gone = reported_gone(context, status.node.as_deref(), &pod.uid).await;
        }
    }
    Ok(Some(world))
}

async fn get<K>(api: &Api<K>, kind: &'static str, name: &str) -> Result<Option<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    found(api.get(name).await).map_err(Error::kube("get", kind, name))
}

/// Reads what is in a cell.
///
/// # Errors
/// If the API server does not answer.
pub async fn cell(context: &Context, cell: &str) -> Result<Cell> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let (quotas, ranges, accounts, pods): (
        Api<ResourceQuota>,
        Api<LimitRange>,
        Api<ServiceAccount>,
        Api<Pod>,
    ) = (
        context.api(cell),
        context.api(cell),
        context.api(cell),
        context.api(cell),
    );
    let policies: Api<NetworkPolicy> = context.api(cell);
    let everything = ListParams::default();
    let (namespace, quota, limit_range, service_account, policies, pod) = tokio::try_join!(
        get(&namespaces, "Namespace", cell),
        get(&quotas, "ResourceQuota", names::SEAL),
        get(&ranges, "LimitRange", names::SEAL),
        get(&accounts, "ServiceAccount", names::SERVICE_ACCOUNT),
        async {
            policies
                .list(&everything)
                .await
                .map_err(Error::kube("list", "NetworkPolicy", cell))
        },
        get(&pods, "Pod", names::POD),
    )?;
    let (ours, foreign): (Vec<_>, Vec<_>) = policies
        .items
        .into_iter()
        .partition(|p| p.name_any() == names::SEAL);
    Ok(Cell {
        namespace,
        quota,
        limit_range,
        service_account,
        network_policy: ours.into_iter().next(),
        foreign_policies: foreign.iter().map(ResourceExt::name_any).collect(),
        pod,
    })
}

/// Asks the unconfined prober, in the same seconds as the verdict, and only then.
async fn outside(context: &Context, status: &PreviewSandboxStatus, world: &mut World) {
    if status.isolation.is_some() || conditions::is_true(&status.conditions, types::EXPIRED) {
        return;
    }
    let Some(pod) = &world.cell.pod else { return };
    let view = observe::view(pod, &names::nonce(&world.tenant.uid, &world.tenant.cell));
    let Proof::Isolated(verdict) = view.proof else {
        return;
    };
    let addresses: Vec<_> = verdict.targets.iter().map(|t| t.address.clone()).collect();
    match context.prober.ask(&addresses).await {
        Ok(outside) => world.outside = Some(outside),
        Err(error) => {
            tracing::warn!(cell = world.tenant.cell, %error, "the unconfined prober did not answer")
        }
    }
}

/// How many previews of the same subject live or wait before this one.
fn ahead(all: &[PreviewSandbox], preview: &PreviewSandbox) -> usize {
    let age = |p: &PreviewSandbox| {
        (
            p.metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MAX, |t| t.0),
            p.uid().unwrap_or_default(),
        )
    };
    let own = age(preview);
    all.iter()
        .filter(|other| other.spec.subject == preview.spec.subject && other.uid() != preview.uid())
        .filter(|other| {
            let Some(status) = &other.status else {
                return age(other) < own;
            };
            let holds = conditions::is_true(&status.conditions, types::ADMITTED) && status.receipt.is_none();
            let waits = status.phase == Phase::Queued
                && matches!(status.reason, None | Some(StatusReason::WaitingForSlot))
                && age(other) < own;
            holds || waits
        })
        .count()
}

/// The slots that a preview still holds. A preview killed between its slot and its first status holds one that no status
/// names: then all slots are looked through.
async fn held_slots(context: &Context, status: &PreviewSandboxStatus, world: &World) -> Result<Vec<String>> {
    let uid = &world.tenant.uid;
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let holds = |lease: &Lease| lease.spec.as_ref().and_then(|s| s.holder_identity.as_ref()) == Some(uid);
    if conditions::is_true(&status.conditions, types::ADMITTED) {
        let limit = world
            .policy
            .as_ref()
            .map_or(0, |policy| policy.limits.per_subject);
        let subject = &world.preview.spec.subject;
        // Also those that no status names: two operators may each have taken one at the same time.
        let own = (0..limit).map(|index| slots::name(Dimension::Subject, subject, index));
        let names: BTreeSet<String> = status.slots.iter().cloned().chain(own).collect();
        let mut held = vec![];
        for name in names {
            if get(&leases, "Lease", &name)
                .await?
                .is_some_and(|lease| holds(&lease))
            {
                held.push(name);
            }
        }
        return Ok(held);
    }
    let selector = format!("{}={}", slots::DIMENSION_LABEL, Dimension::Subject.as_str());
    let list = leases.list(&ListParams::default().labels(&selector)).await;
    let list = list.map_err(Error::kube("list", "Lease", &context.settings.slots))?;
    Ok(list
        .items
        .iter()
        .filter(|lease| holds(lease))
        .map(ResourceExt::name_any)
        .collect())
}

/// Whether the node, or every node where it is not known, says that nothing of a pod runs. `None` if one does not answer.
async fn reported_gone(context: &Context, node: Option<&str>, pod_uid: &str) -> Option<bool> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let nodes = match node {
        Some(name) => vec![nodes.get(name).await.ok()?],
        None => nodes.list(&ListParams::default()).await.ok()?.items,
    };
    for node in &nodes {
        match kubelet::pods(node).await {
            Ok(uids) if uids.iter().any(|uid| uid == pod_uid) => return Some(false),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    node = node.name_any(),
                    error,
                    "the node did not say whether a lost pod is gone"
                );
                return None;
            }
        }
    }
    Some(true)
}
