//! Makes what a cell consists of, and the pod in it. Writes in one cell; each write can be repeated.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{ConfigMap, Namespace, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    },
    core::PartialObjectMeta,
};
use serde::{Serialize, de::DeserializeOwned};
use vitrine_crds::PreviewPolicy;
use vitrine_policies::{
    Envelope, capacity,
    cell::{boundary, network, pod as shape},
    names,
};

use super::{
    Context,
    decide::{self, Cell, Drift},
};
use crate::{
    error::{self, Error, Result, found},
    targets,
};

/// How long a cell waits for what the controller-manager puts into every namespace; it takes a twentieth of a second where it is not busy. Some
/// clusters have it put in less.
const FURNISHED: Duration = Duration::from_secs(2);
/// When to look again whether it is there.
pub const FURNISHES: Duration = Duration::from_millis(50);
/// The ServiceAccount and the ConfigMap that it puts in (kube-controller-manager, serviceaccount-controller and
/// root-ca-certificate-publisher-controller).
const DEFAULT_ACCOUNT: &str = "default";
const AUTHORITY: &str = "kube-root-ca.crt";

/// What came of making what confines a cell.
#[derive(Debug)]
pub enum Sealed {
    /// All of it is there.
    Whole(Box<NetworkPolicy>),
    /// What the controller-manager puts into every namespace is not there yet.
    Unfurnished,
    /// A quota has no status yet; since when it is there.
    Uncounted(Option<Timestamp>),
    /// To be tried again at once.
    Again,
    /// A quota does not let a part of it be.
    Refused(Error),
}

/// What came of making a pod.
#[derive(Debug)]
pub enum Podded {
    /// One is there: this one, or one that somebody else has made.
    There(Box<Pod>),
    /// To be tried again at once.
    Again,
    /// The API server does not let it be.
    Refused(Error),
}

/// Makes a cell's namespace, and says whether it did; one that is there already is for the next look to judge.
///
/// # Errors
/// If the API server refuses.
pub async fn namespace(context: &Context, desired: &Namespace) -> Result<bool> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let name = desired.name_any();
    match namespaces.create(&PostParams::default(), desired).await {
        Ok(_) => Ok(true),
        Err(error) if is_there(&error) => Ok(false),
        Err(error) => Err(Error::kube("create", "Namespace", name)(error)),
    }
}

fn is_there(error: &kube::Error) -> bool {
    error::status(error).is_some_and(kube::core::Status::is_already_exists)
}

/// Makes what is missing of all that confines a cell.
///
/// # Errors
/// If the API server refuses.
pub async fn seal(context: &Context, name: &str, cell: &Cell, envelope: &Envelope) -> Result<Sealed> {
    match sealed(context, name, cell, envelope).await {
        Ok(sealed) => Ok(sealed),
        Err(Unmade::Again) => Ok(Sealed::Again),
        Err(Unmade::Refused(error)) => Ok(Sealed::Refused(error)),
        Err(Unmade::Failed(error)) => Err(error),
    }
}

async fn sealed(
    context: &Context,
    name: &str,
    cell: &Cell,
    envelope: &Envelope,
) -> std::result::Result<Sealed, Unmade> {
    // Each to its end: one that is cut off, because another failed, may leave a charge for nothing in the quota that counts it.
    let (quota, limit_range, account, policy) = tokio::join!(
        part(
            context,
            name,
            cell.quota.as_ref(),
            boundary::quota(name, envelope)
        ),
        part(
            context,
            name,
            cell.limit_range.as_ref(),
            boundary::limit_range(name, envelope)
        ),
        part(
            context,
            name,
            cell.service_account.as_ref(),
            boundary::service_account(name)
        ),
        part(
            context,
            name,
            cell.network_policy.as_ref(),
            network::policy(name, envelope, &context.settings.house)
        ),
    );
    let (quota, _, _, policy) = (quota?, limit_range?, account?, policy?);
    // Last: what comes before the controller-manager has counted for it is not charged.
    if cell.closed.is_none() && !is_furnished(context, name, cell).await? {
        return Ok(Sealed::Unfurnished);
    }
    let closed = part(context, name, cell.closed.as_ref(), boundary::closed(name)).await?;
    // No pod before the quotas count: until then the API server would let everything through.
    let counts = |quota: &ResourceQuota| quota.status.as_ref().is_some_and(|s| s.hard.is_some());
    if let Some(quota) = [&quota, &closed].into_iter().find(|quota| !counts(quota)) {
        return Ok(Sealed::Uncounted(
            quota.metadata.creation_timestamp.as_ref().map(|made| made.0),
        ));
    }
    // The controller-manager counts by its own watches, which may not have told of all; then it does not count again for five minutes, and
    // for what it missed something else has room.
    for (kind, counted) in boundary::lacking(&closed, &boundary::closed(name)) {
        if there(context, name, kind).await?.len() > counted {
            tracing::info!(
                cell = name,
                kind,
                counted,
                "a quota counts fewer than there are; counting anew"
            );
            count_anew(context, &closed).await?;
            return Ok(Sealed::Again);
        }
    }
    Ok(Sealed::Whole(Box::new(policy)))
}

/// Whether what the controller-manager puts into every namespace is in a cell, or has had its time to come.
async fn is_furnished(context: &Context, name: &str, cell: &Cell) -> Result<bool> {
    let made = cell
        .namespace
        .as_ref()
        .and_then(|namespace| namespace.metadata.creation_timestamp.as_ref());
    if made.is_some_and(|made| decide::remaining(made.0, FURNISHED, Timestamp::now()).is_none()) {
        return Ok(true);
    }
    let accounts: Api<ServiceAccount> = context.api(name);
    let (account, authority) = tokio::try_join!(
        async {
            found(accounts.get_metadata(DEFAULT_ACCOUNT).await).map_err(Error::kube(
                "get",
                "ServiceAccount",
                format!("{name}/{DEFAULT_ACCOUNT}"),
            ))
        },
        authority(context, name)
    )?;
    Ok(account.is_some() && authority.is_some())
}

/// What the controller-manager writes into every namespace so that pods know the API server. Asked for by its name, since the operator may
/// read no other ConfigMap.
async fn authority(context: &Context, cell: &str) -> Result<Option<PartialObjectMeta<ConfigMap>>> {
    let maps: Api<ConfigMap> = context.api(cell);
    found(maps.get_metadata(AUTHORITY).await).map_err(Error::kube(
        "get",
        "ConfigMap",
        format!("{cell}/{AUTHORITY}"),
    ))
}

/// Makes the pod of a cell that is whole, for one epoch; with the label of the pool that the cell is of.
///
/// # Errors
/// If something that it needs to know cannot be read.
pub async fn pod(
    context: &Context,
    name: &str,
    epoch: &str,
    envelope: &Envelope,
    policy: Option<&PreviewPolicy>,
    pool_uid: Option<&str>,
) -> Result<Podded> {
    let landmarks = context.map.landmarks(&context.client, &context.settings).await?;
    let nonce = names::nonce(name, epoch);
    let orders = targets::orders(&landmarks, envelope, name, nonce);
    let proxy = way_out(context, envelope, landmarks.egress.as_deref())?;
    let avoid = policy.map(|policy| capacity::set_aside(policy, Timestamp::now()));
    let avoid = avoid.unwrap_or_default();
    let mut desired = shape::pod(
        name,
        epoch,
        envelope,
        &context.settings.probe,
        &orders,
        proxy,
        &avoid,
    );
    if let Some(uid) = pool_uid {
        let labels = desired.metadata.labels.get_or_insert_default();
        labels.insert(names::POOL_LABEL.to_owned(), uid.to_owned());
    }
    let pods: Api<Pod> = context.api(name);
    let error = match create(&pods, &desired).await {
        Ok(pod) => return Ok(Podded::There(Box::new(pod))),
        Err(error) => error,
    };
    // The quota counts before the name is looked at: with our pod there already, made by an operator beside this one, the answer is
    // "exceeded quota", not "already exists".
    Ok(match found(pods.get(names::POD).await) {
        Ok(Some(pod)) => Podded::There(Box::new(pod)),
        Ok(None) if recount(context, &desired, &error).await? => Podded::Again,
        _ => Podded::Refused(error),
    })
}

/// Puts back one part of a cell that differs from what was built; its kind.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody wrote meanwhile.
pub async fn repair(
    context: &Context,
    namespace: &Namespace,
    cell: &Cell,
    envelope: &Envelope,
    part: Drift,
) -> Result<&'static str> {
    let name = namespace.name_any();
    match part {
        Drift::Namespace => {
            let api: Api<Namespace> = Api::all(context.client.clone());
            let patch = serde_json::json!({"metadata": {
                "resourceVersion": cell.namespace.as_ref().and_then(ResourceExt::resource_version),
                "labels": namespace.metadata.labels, "annotations": namespace.metadata.annotations}});
            let patched = api
                .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            patched.map_err(Error::kube("restore", "Namespace", &name))?;
            Ok("Namespace")
        }
        Drift::Quota => restore(context, cell.quota.as_ref(), boundary::quota(&name, envelope)).await,
        Drift::Closed => restore(context, cell.closed.as_ref(), boundary::closed(&name)).await,
        Drift::LimitRange => {
            let desired = boundary::limit_range(&name, envelope);
            restore(context, cell.limit_range.as_ref(), desired).await
        }
        Drift::ServiceAccount => {
            let desired = boundary::service_account(&name);
            restore(context, cell.service_account.as_ref(), desired).await
        }
    }
}

/// Puts the network policy back, so that nothing else gets out while the pod ends. The preview ends all the same.
///
/// # Errors
/// If the API server refuses.
pub async fn reseal(context: &Context, name: &str, cell: &Cell, envelope: &Envelope) -> Result<()> {
    let api: Api<NetworkPolicy> = context.api(name);
    for foreign in &cell.foreign_policies {
        let deleted = found(api.delete(foreign, &DeleteParams::default()).await);
        deleted.map_err(Error::kube(
            "delete the foreign",
            "NetworkPolicy",
            format!("{name}/{foreign}"),
        ))?;
    }
    // Nothing can be created in a namespace that is going; its policy stays until the pod is gone.
    let namespace = cell.namespace.as_ref();
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(());
    }
    let desired = network::policy(name, envelope, &context.settings.house);
    put(&api, cell.network_policy.as_ref(), &desired).await?;
    let repairs = &context.metrics.repairs;
    repairs.with_label_values(&["NetworkPolicy"]).inc();
    Ok(())
}

/// Where the egress proxy is, for a preview that may reach any name.
fn way_out<'a>(context: &Context, envelope: &Envelope, proxy: Option<&'a str>) -> Result<Option<&'a str>> {
    if envelope.egress.is_empty() {
        return Ok(None);
    }
    proxy.map(Some).ok_or_else(|| {
        Error::Installation(format!(
            "this preview may reach {}, but Service {}/{} has no cluster address: is the chart installed?",
            envelope.egress.join(", "),
            context.settings.house.namespace,
            context.settings.egress
        ))
    })
}

/// Why a part of a cell is not there.
enum Unmade {
    /// To be tried again at once.
    Again,
    /// A quota does not let it be.
    Refused(Error),
    Failed(Error),
}

impl From<Error> for Unmade {
    fn from(error: Error) -> Self {
        if is_by_quota(&error) {
            Self::Refused(error)
        } else {
            Self::Failed(error)
        }
    }
}

/// A part of a cell: the one that is there, or made.
async fn part<K: Part>(
    context: &Context,
    cell: &str,
    live: Option<&K>,
    desired: K,
) -> std::result::Result<K, Unmade> {
    if let Some(live) = live {
        return Ok(live.clone());
    }
    let api: Api<K> = context.api(cell);
    match create(&api, &desired).await {
        Ok(made) => Ok(made),
        Err(error) if recount(context, &desired, &error).await? => Err(Unmade::Again),
        Err(error) => Err(error.into()),
    }
}

/// Makes a part of a cell be what it is to be; its kind.
async fn restore<K: Part>(context: &Context, live: Option<&K>, desired: K) -> Result<&'static str> {
    let api: Api<K> = context.api(desired.meta().namespace.as_deref().unwrap_or_default());
    match put(&api, live, &desired).await {
        // The quota is missing now, and the next look puts both back.
        Err(error) if !recount(context, &desired, &error).await? => Err(error),
        _ => Ok(K::KIND),
    }
}

/// Whether to try again what a quota of ours refused: because our object is there after all, or because the quota counts one that is
/// not; then the quota is removed, and the next attempt makes one that counts anew. Where what is there is as many as the quota allows,
/// somebody else's object is what is too many.
///
/// A create that is cut off between the quota's admission and the store (its operator was killed) leaves such a charge, and
/// the controller-manager looks only every five minutes. The object's name, not the quota, keeps two attempts from two.
async fn recount<K: Part>(context: &Context, desired: &K, error: &Error) -> Result<bool> {
    let Some(by) = refusing(error) else {
        return Ok(false);
    };
    let cell = desired.meta().namespace.as_deref().unwrap_or_default();
    let quotas: Api<ResourceQuota> = context.api(cell);
    let quota = found(quotas.get(by).await).map_err(Error::kube("get", "ResourceQuota", by))?;
    let Some(quota) = quota else { return Ok(true) };
    let kind = K::plural(&());
    let charged = boundary::counts(&quota, &kind);
    let there = there(context, cell, &kind).await?;
    // Charged first, stored then: an operator beside this one may have stored our object since we asked for it.
    let ours = desired.name_any();
    if there.iter().any(|object| object.name.as_ref() == Some(&ours)) {
        return Ok(true);
    }
    if charged.is_none_or(|charged| charged <= there.len()) {
        return Ok(false);
    }
    tracing::info!(
        cell,
        by,
        "the quota counts a {} that was never made; counting anew",
        K::KIND
    );
    count_anew(context, &quota).await?;
    Ok(true)
}

/// Has a quota made anew by the next look: a new one is counted at once, one that is there every five minutes.
async fn count_anew(context: &Context, quota: &ResourceQuota) -> Result<()> {
    let (cell, name) = (quota.namespace().unwrap_or_default(), quota.name_any());
    let quotas: Api<ResourceQuota> = context.api(&cell);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: quota.uid(),
        resource_version: None,
    });
    let deleted = found(quotas.delete(&name, &params).await);
    deleted.map_err(Error::kube("recount", "ResourceQuota", format!("{cell}/{name}")))?;
    Ok(())
}

/// What there is in a cell of a kind of the core group, given as a resource; of all that cells have and quotas count, each is in that group.
async fn there(context: &Context, cell: &str, kind: &str) -> Result<Vec<ObjectMeta>> {
    if kind == ConfigMap::plural(&()) {
        let authority = authority(context, cell).await?;
        return Ok(authority
            .map(|authority| authority.metadata)
            .into_iter()
            .collect());
    }
    let resource = ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        plural: kind.to_owned(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), cell, &resource);
    let there = api.list_metadata(&ListParams::default()).await;
    let there = there.map_err(Error::kube("list what is in", "Namespace", cell))?;
    Ok(there.items.into_iter().map(|object| object.metadata).collect())
}

/// What a cell consists of, and the pod in it.
trait Part:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
{
    const KIND: &'static str;
}

impl<K> Part for K
where
    K: k8s_openapi::Resource
        + Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    const KIND: &'static str = <K as k8s_openapi::Resource>::KIND;
}

/// Which quota of ours it was that refused, if one did. The API server tells it in words only (apiserver, quota admission:
/// "exceeded quota: NAME, requested: …").
fn refusing(error: &Error) -> Option<&'static str> {
    let answer = quotas_answer(error)?;
    let refused = |by: &&str| answer.message.contains(&format!("exceeded quota: {by}, "));
    [names::SEAL, names::CLOSED].into_iter().find(refused)
}

/// Whether it was a quota that refused.
pub fn is_by_quota(error: &Error) -> bool {
    quotas_answer(error).is_some()
}

/// The answer of a quota that refused; the API server has no reason of its own for it.
fn quotas_answer(error: &Error) -> Option<&kube::core::Status> {
    let Error::Kube { source, .. } = error else {
        return None;
    };
    error::status(source).filter(|answer| answer.is_forbidden() && answer.message.contains("exceeded quota"))
}

async fn create<K: Part>(api: &Api<K>, object: &K) -> Result<K> {
    let name = format!(
        "{}/{}",
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.name_any()
    );
    match api.create(&PostParams::default(), object).await {
        Ok(created) => Ok(created),
        // Another attempt of ours was quicker: what is there is judged like everything that is there.
        Err(error) if is_there(&error) => {
            api.get(&object.name_any())
                .await
                .map_err(Error::kube("get", K::KIND, name))
        }
        Err(error) => Err(Error::kube("create", K::KIND, name)(error)),
    }
}

/// Makes an object be what it is to be: whole, so that nothing that somebody added stays.
async fn put<K: Part>(api: &Api<K>, live: Option<&K>, desired: &K) -> Result<K> {
    let Some(live) = live else {
        return create(api, desired).await;
    };
    let name = desired.name_any();
    let mut desired = desired.clone();
    desired.meta_mut().resource_version = live.resource_version();
    let put = api.replace(&name, &PostParams::default(), &desired).await;
    put.map_err(Error::kube(
        "restore",
        K::KIND,
        format!("{}/{name}", desired.namespace().unwrap_or_default()),
    ))
}
