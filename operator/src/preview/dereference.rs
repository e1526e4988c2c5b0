//! Reads all that one preview depends on. Reads the cluster, writes nothing.

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt, api::ListParams, runtime::reflector::ObjectRef};
use serde::de::DeserializeOwned;
use vitrine_crds::{
    POLICY_NAME, PreviewPolicy, PreviewSandbox, PreviewSandboxStatus, SkuListing, StatusReason,
    conditions::{self, types},
};
use vitrine_policies::{
    abuse::{self, Signs},
    cell::{Tenant, record::Record},
    envelope, names,
};

use super::{
    Context,
    decide::{self, Cell, World},
    observe::{self, End, Proof},
    slots,
};
use crate::{
    error::{Error, Result, found},
    kubelet, pool,
};

/// Reads the world of one preview; `None` if the preview is gone.
///
/// # Errors
/// If the API server does not answer, or the preview cannot be read.
pub async fn dereference(context: &Context, namespace: &str, name: &str) -> Result<Option<World>> {
    // Read anew, not from the watch: a decision on an old state would only be refused by its resourceVersion later.
    let previews: Api<PreviewSandbox> = context.api(namespace);
    // What one that waits depends on is read at the same time.
    let listing = context.watched.waits_for(namespace, name);
    let (preview, early) = match &listing {
        Some(listing) => {
            let listings = context.api(namespace);
            let (preview, policy, listing) = tokio::join!(
                get(&previews, "PreviewSandbox", name),
                policy(context),
                get(&listings, "SkuListing", listing)
            );
            (preview?, Some((policy?, listing?)))
        }
        None => (get(&previews, "PreviewSandbox", name).await?, None),
    };
    let Some(preview) = preview else {
        return Ok(None);
    };
    // Unless it is another one of this name by now.
    let early = early.filter(|_| listing.as_ref() == Some(&preview.spec.listing_ref.name));
    let Some(tenant) = Tenant::of(&preview) else {
        return Err(Error::Malformed {
            name: format!("{namespace}/{name}"),
            message: "it has no uid".to_owned(),
        });
    };
    let status = preview.status.clone().unwrap_or_default();
    let is = |condition| conditions::is_true(&status.conditions, condition);
    let ends = decide::cause(&preview).is_some();
    let over = ends || preview.metadata.deletion_timestamp.is_some();
    // What it gets is decided by the policy and the listing as they are; what it has, is in its status.
    let settled = over || status.phase.is_terminal() || is(types::PROVISIONED);
    let (policy, early) = match early {
        _ if settled => (context.watched.policy(), None),
        Some((policy, listing)) => (policy, Some(listing)),
        None => (policy(context).await?, None),
    };
    let mut world = blank(context, preview, tenant, policy);
    if status.phase.is_terminal() {
        return Ok(Some(world));
    }
    let listing = &world.preview.spec.listing_ref.name;
    world.listing = match early {
        _ if settled => context.watched.listing(namespace, listing),
        Some(listing) => listing,
        None => get(&context.api(namespace), "SkuListing", listing).await?,
    };
    if !over && !is(types::ADMITTED) {
        find_place(context, &mut world);
        // After the preview itself: who gives slots back writes that very version first.
        if context.watched.slots.holds(&world.tenant.uid) {
            world.held_slots = slots::held_by(context, &world.tenant.uid).await?;
        }
        world.other_cells = context.watched.cells_beside(&world.tenant.uid, None);
        return Ok(Some(world));
    }
    // Without our finalizer nothing outside of the preview was ever made.
    if !decide::is_held(&world.preview) {
        return Ok(Some(world));
    }
    if over && !ends {
        // Asked for, not taken from the watch: what was taken last is in the way of the next one of its subject.
        world.held_slots = slots::held_by(context, &world.tenant.uid).await?;
        world.other_cells = context.watched.cells_beside(&world.tenant.uid, None);
        return Ok(Some(world));
    }
    if !over && context.watched.holds_beside(&world.tenant.uid, &status.slots) {
        let held = slots::held_by(context, &world.tenant.uid).await?;
        let extra = |slot: &Lease| !status.slots.contains(&slot.name_any());
        world.held_slots = held.into_iter().filter(extra).collect();
    }
    if !over {
        world.other_cells = context
            .watched
            .cells_beside(&world.tenant.uid, status.cell.as_deref());
    }
    if !over && is(types::READY) {
        match slots::lost(context, &status, &world.tenant.uid).await {
            Ok(lost) => world.lost_slots = lost,
            // Nothing else about a live preview depends on its slots.
            Err(error) => tracing::warn!(preview = name, %error, "cannot tell whether its slots are there"),
        }
    }
    world.attention = context.watchers.of(&world.tenant.uid);
    world.signs = signs(context, world.policy.as_ref(), &world.preview, &status);
    world.cost = status.pod.as_ref().and_then(|pod| context.costs.of(&pod.uid));
    world.cell = if ends {
        remains(context, &world.tenant.cell, &world.preview).await?
    } else {
        cell(context, &world.tenant.cell).await?
    };
    own(&mut world.cell, &world.tenant, &status, over);
    if !ends {
        outside(context, &status, &mut world).await;
    }
    if let Some(pod) = world
        .cell
        .pod
        .as_ref()
        .filter(|pod| observe::end(pod) == End::Pending)
    {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        world.reported_gone = removed(context, node.as_deref()).await;
    }
    if world.cell.pod.is_none() && ends {
        if status.receipt.is_some() {
            leftovers(context, &mut world).await?;
        } else if let Some(pod) = &status.pod {
            world.reported_gone = reported_gone(context, status.node.as_deref(), &pod.uid).await;
        }
    }
    Ok(Some(world))
}

/// The world of a preview that nobody has looked at yet and for which a pool has a cell ready, as the watches have it; `None` where that
/// is not enough. A visitor waits for every read before the first write. Whoever acts on this is refused if the preview is another by
/// now, and asks beside its writes whether policy and listing are ([`is_current`]).
pub fn unread(context: &Context, namespace: &str, name: &str) -> Option<World> {
    // Not as it was before it waited for its turn.
    let guarded = context.watched.previews.get(&format!("{namespace}/{name}"))?;
    let preview = guarded.0.ok()?;
    let new = preview.status.is_none() && preview.metadata.deletion_timestamp.is_none();
    if !new || !decide::is_held(&preview) || context.looks.is_touched(namespace, name) {
        return None;
    }
    let tenant = Tenant::of(&preview)?;
    let left = context.watched.slots.holds(&tenant.uid)
        || !context.watched.cells_beside(&tenant.uid, None).is_empty();
    if left {
        return None;
    }
    let policy = context.watched.policy()?;
    let listing = context.watched.listing(namespace, &preview.spec.listing_ref.name);
    let mut world = blank(context, preview, tenant, Some(policy));
    world.listing = listing;
    world.unread = true;
    find_place(context, &mut world);
    world.warm.is_some().then_some(world)
}

/// Whether policy and listing are still those of a world that was not read; what was read is as current as that.
///
/// # Errors
/// If the API server does not answer.
pub async fn is_current(context: &Context, world: &World) -> Result<bool> {
    if !world.unread {
        return Ok(true);
    }
    let policies: Api<PreviewPolicy> = Api::all(context.client.clone());
    let listings: Api<SkuListing> = context.api(&world.tenant.namespace);
    let (policy, listing) = tokio::try_join!(
        is_still(&policies, "PreviewPolicy", world.policy.as_ref()),
        is_still(&listings, "SkuListing", world.listing.as_ref()),
    )?;
    Ok(policy && listing)
}

/// Whether an object is still the version that is given.
async fn is_still<K>(api: &Api<K>, kind: &'static str, known: Option<&K>) -> Result<bool>
where
    K: ResourceExt + Clone + DeserializeOwned + std::fmt::Debug,
{
    let Some(known) = known else { return Ok(false) };
    let name = known.name_any();
    let now = found(api.get_metadata(&name).await).map_err(Error::kube("get", kind, name))?;
    let version = |meta: &ObjectMeta| meta.uid.clone().zip(meta.resource_version.clone());
    let now = now.and_then(|now| version(&now.metadata));
    Ok(now.is_some() && now == version(known.meta()))
}

/// A preview of which nothing else is known.
fn blank(context: &Context, preview: PreviewSandbox, tenant: Tenant, policy: Option<PreviewPolicy>) -> World {
    World {
        place: None,
        cell: Cell::default(),
        attention: None,
        cost: None,
        held_slots: vec![],
        other_cells: vec![],
        warm: None,
        pools_known: context.pools.is_known(),
        lost_slots: vec![],
        house: context.settings.house.clone(),
        listing: None,
        outside: None,
        policy,
        preview,
        reported_gone: None,
        signs: Signs::default(),
        sink: context.receipts.office.sink.is_some(),
        acknowledged: context.receipts.post.is_acknowledged(&tenant.uid),
        sent: context.receipts.post.sent(&tenant.uid),
        unread: false,
        tenant,
    }
}

/// Where a preview stands that is not admitted yet, and whether it could be ready at once.
fn find_place(context: &Context, world: &mut World) {
    let (Some(policy), Some(listing)) = (&world.policy, &world.listing) else {
        return;
    };
    let preview = &world.preview;
    let own = preview.spec.ttl.unwrap_or(policy.spec.ttl.default).as_duration();
    let envelope = envelope::resolve(&policy.spec, listing, preview).ok();
    let level = preview.spec.trust_level;
    let kind = envelope.map(|envelope| pool::kind(&context.settings, &envelope, level));
    world.warm = kind.filter(|kind| context.pools.has(kind, |warm| context.watched.trusts(warm)));
    let warm = world.warm.is_some();
    world.place = Some(context.watched.place(preview, listing, policy, own, warm));
}

/// Reads what a preview still has whose pod is gone and whose end is recorded.
///
/// # Errors
/// If the API server does not answer.
pub async fn leftovers(context: &Context, world: &mut World) -> Result<()> {
    let status = world.preview.status.clone().unwrap_or_default();
    world.held_slots = slots::held(context, &status, &world.tenant.uid).await?;
    world.other_cells = context
        .watched
        .cells_beside(&world.tenant.uid, status.cell.as_deref());
    Ok(())
}

async fn get<K>(api: &Api<K>, kind: &'static str, name: &str) -> Result<Option<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    found(api.get(name).await).map_err(Error::kube("get", kind, name))
}

/// Reads what still matters of a cell whose preview is over: also what confines it, as long as its pod was not asked to end, if that
/// was broken.
async fn remains(context: &Context, name: &str, preview: &PreviewSandbox) -> Result<Cell> {
    let pods: Api<Pod> = context.api(name);
    let pod = get(&pods, "Pod", names::POD).await?;
    let namespace = match as_watched(context, name, preview, pod.as_ref()) {
        Some(known) => Some(known),
        None => get(&Api::all(context.client.clone()), "Namespace", name).await?,
    };
    let runs = pod.as_ref().is_some_and(|pod| observe::end(pod) == End::NotAsked);
    if runs && decide::cause(preview) == Some(StatusReason::SealBroken) {
        return cell(context, name).await;
    }
    Ok(Cell {
        namespace,
        pod,
        ..Cell::default()
    })
}

/// The namespace of a preview's cell as the watch has it, where that is enough: it is the preview's own, and what is in it is of the time
/// when it was. Whoever writes it names this version, and is refused if there is a newer one.
fn as_watched(
    context: &Context,
    name: &str,
    preview: &PreviewSandbox,
    pod: Option<&Pod>,
) -> Option<Namespace> {
    let cell = context.watched.cells.get(name)?;
    let record = Record::of(&cell.metadata)?;
    let own = record.tenant.is_some() && record.tenant == preview.uid();
    let of_then = |pod: &Pod| pod.annotations().get(names::EPOCH_ANNOTATION) == Some(&record.epoch);
    (own && pod.is_none_or(of_then)).then(|| Namespace {
        metadata: cell.metadata.clone(),
        ..Namespace::default()
    })
}

/// The platform's policy as it is now.
///
/// # Errors
/// If the API server does not answer.
pub async fn policy(context: &Context) -> Result<Option<PreviewPolicy>> {
    let policies: Api<PreviewPolicy> = Api::all(context.client.clone());
    get(&policies, "PreviewPolicy", POLICY_NAME).await
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
    let (namespace, quota, closed, limit_range, service_account, policies, pod) = tokio::try_join!(
        get(&namespaces, "Namespace", cell),
        get(&quotas, "ResourceQuota", names::SEAL),
        get(&quotas, "ResourceQuota", names::CLOSED),
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
        closed,
        limit_range,
        service_account,
        network_policy: ours.into_iter().next(),
        foreign_policies: foreign.iter().map(ResourceExt::name_any).collect(),
        pod,
    })
}

/// Leaves out of a cell what is the next preview's: its pod, and once this one is over the rest too.
pub fn own(cell: &mut Cell, tenant: &Tenant, status: &PreviewSandboxStatus, over: bool) {
    let record = cell
        .namespace
        .as_ref()
        .and_then(|namespace| Record::of(&namespace.metadata));
    let Some(record) = record.filter(|record| record.tenant.as_ref() != Some(&tenant.uid)) else {
        return;
    };
    let known = status.pod.as_ref().map(|pod| &pod.uid);
    let of_this_epoch = |pod: &Pod| pod.annotations().get(names::EPOCH_ANNOTATION) == Some(&record.epoch);
    let pod = cell.pod.take().filter(|pod| match known {
        Some(_) => pod.uid().as_ref() == known,
        None => !of_this_epoch(pod),
    });
    if over {
        *cell = Cell::default();
    }
    cell.pod = pod;
}

/// What is known of a preview that its policy counts as a sign of abuse.
pub fn signs(
    context: &Context,
    policy: Option<&PreviewPolicy>,
    preview: &PreviewSandbox,
    status: &PreviewSandboxStatus,
) -> Signs {
    let rules = policy.and_then(|policy| policy.spec.abuse.as_ref());
    let (Some(rules), Some(pod), Some(envelope)) = (rules, &status.pod, &status.envelope) else {
        return Signs::default();
    };
    let usage = rules.sustained_cpu.as_ref().and_then(|rule| {
        let used = context.costs.rate(&pod.uid, rule.period.as_duration())?;
        let found = status.abuse.as_ref().map(|found| found.measure);
        used.percent_of(abuse::allowed(envelope.size.cpu.parse().ok()?, found))
    });
    Signs {
        cpu_percent: usage,
        egress_denials: context.denials.of(&preview.uid().unwrap_or_default()),
        processes: context.costs.processes(&pod.uid),
        network_previews: rules
            .network_previews
            .as_ref()
            .and_then(|_| context.watched.from_network(preview.spec.network.as_ref()?)),
    }
}

/// Asks the unconfined prober, in the same seconds as the verdict, and only then.
async fn outside(context: &Context, status: &PreviewSandboxStatus, world: &mut World) {
    if status.isolation.is_some() {
        return;
    }
    let Some(pod) = &world.cell.pod else { return };
    let Some(nonce) = world.cell.nonce() else { return };
    let view = observe::view(pod, &nonce);
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

/// Whether somebody has removed a node from the cluster, and with it says that nothing runs on it any more (Kubernetes "Node
/// Shutdowns", non-graceful). Asks only if the watch does not show the node.
pub async fn removed(context: &Context, node: Option<&str>) -> Option<bool> {
    let name = node?;
    if context.watched.nodes.get(&ObjectRef::new(name)).is_some() {
        return Some(false);
    }
    let nodes: Api<Node> = Api::all(context.client.clone());
    Some(found(nodes.get_metadata(name).await).ok()?.is_none())
}

/// Whether the node, or every node where it is not known, says that nothing of a pod runs; one that was removed says it by that. `None`
/// if one does not answer.
async fn reported_gone(context: &Context, node: Option<&str>, pod_uid: &str) -> Option<bool> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let nodes = match node {
        Some(name) => match found(nodes.get(name).await).ok()? {
            Some(node) => vec![node],
            None => return Some(true),
        },
        None => nodes.list(&ListParams::default()).await.ok()?.items,
    };
    for node in &nodes {
        match kubelet::pods(node, kubelet::Form::Short).await {
            Ok(pods) if pods.iter().any(|pod| pod.pod_ref.uid == pod_uid) => return Some(false),
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
