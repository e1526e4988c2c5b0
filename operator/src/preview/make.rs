//! Makes what a cell consists of, and the pod in it. Writes in one cell; each write can be repeated.

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::NetworkPolicy,
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
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
    decide::{Cell, Drift},
    quotas,
};
use crate::{
    error::{self, Error, Result, found},
    targets,
};

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
    if cell.closed.is_none() && !quotas::is_furnished(context, name, cell).await? {
        return Ok(Sealed::Unfurnished);
    }
    let closed = part(context, name, cell.closed.as_ref(), boundary::closed(name)).await?;
    // No pod before the quotas count: until then the API server would let everything through.
    if let Some(quota) = [&quota, &closed]
        .into_iter()
        .find(|quota| !quotas::is_counted(quota))
    {
        return Ok(Sealed::Uncounted(
            quota.metadata.creation_timestamp.as_ref().map(|made| made.0),
        ));
    }
    if quotas::misses_some(context, name, &closed).await? {
        return Ok(Sealed::Again);
    }
    Ok(Sealed::Whole(Box::new(policy)))
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
        Ok(None) if quotas::recount(context, &desired, &error).await? => Podded::Again,
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
        if quotas::is_by_quota(&error) {
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
        Err(error) if quotas::recount(context, &desired, &error).await? => Err(Unmade::Again),
        Err(error) => Err(error.into()),
    }
}

/// Makes a part of a cell be what it is to be; its kind.
async fn restore<K: Part>(context: &Context, live: Option<&K>, desired: K) -> Result<&'static str> {
    let api: Api<K> = context.api(desired.meta().namespace.as_deref().unwrap_or_default());
    match put(&api, live, &desired).await {
        // The quota is missing now, and the next look puts both back.
        Err(error) if !quotas::recount(context, &desired, &error).await? => Err(error),
        _ => Ok(K::KIND),
    }
}

/// What a cell consists of, and the pod in it.
pub trait Part:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Serialize
    + DeserializeOwned
    + std::fmt::Debug
{
    /// The kind, as Kubernetes writes it.
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
