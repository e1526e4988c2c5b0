//! Takes cells, frees them, removes them. Writes Namespaces.
//!
//! A cell is taken as a slot is (`slots`): the write names the version that was seen, so it succeeds once; what counts is the
//! preview's status, which is written last and names the cell. `policies/tests/cell_reuse_protocol.rs` tries every order of these
//! writes.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};
use vitrine_crds::{
    PreviewPolicySpec, PreviewSandbox, StatusReason,
    preview_sandbox::{EndResult, Receipt},
};
use vitrine_policies::{
    Envelope,
    cell::{
        Tenant,
        record::{self, Record},
    },
    names,
};

use super::{
    Context,
    decide::{Cell, World},
};
use crate::{
    api,
    error::{Error, Result, found},
    pool::table::Warm,
};

/// How many free cells are tried before a new one is made: each that fails was taken by somebody else meanwhile.
const TRIES: usize = 4;

/// A text that no other epoch is.
pub fn new_epoch() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Takes a cell that is free for a preview, and says which; `None` if there is none. What an earlier attempt has left comes first.
///
/// # Errors
/// If the API server does not answer.
pub async fn take(
    context: &Context,
    preview: &PreviewSandbox,
    envelope: &Envelope,
    policy: &PreviewPolicySpec,
) -> Result<Option<String>> {
    let Some(tenant) = Tenant::of(preview) else {
        return Ok(None);
    };
    let lot = record::lot(envelope, preview.spec.trust_level, &context.settings.house);
    let candidates = context
        .watched
        .cells_for(&tenant.uid, &lot, &policy.cells, Timestamp::now());
    for cell in candidates.into_iter().take(TRIES) {
        let name = cell.name_any();
        let claimed = annotate(context, &cell, record::claimed(&tenant, Timestamp::now())).await?;
        if claimed.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Takes a cell that was ready when it was last looked at, if it is as it was; the cell as it is then. Why each part of this is needed,
/// `policies/tests/pool_protocol.rs` shows.
///
/// # Errors
/// If the API server does not answer.
pub async fn claim_warm(
    context: &Context,
    tenant: &Tenant,
    warm: &Warm,
) -> Result<Option<PartialObjectMeta<Namespace>>> {
    let Some(cell) = context.watched.cells.get(&warm.cell) else {
        return Ok(None);
    };
    let record = Record::of(&cell.metadata).filter(|record| record.tenant.is_none() && !record.going);
    let of_its_pod = |record: &Record| Some(names::nonce(&warm.cell, &record.epoch)) == warm.pod.nonce;
    if !record.as_ref().is_some_and(of_its_pod) {
        return Ok(None);
    }
    annotate(context, &cell, record::claimed(tenant, Timestamp::now())).await
}

/// Whether a preview has a cell now: asked for, not taken from the watch.
///
/// # Errors
/// If the API server does not answer.
pub async fn is_had(context: &Context, cell: &str, tenant: &Tenant) -> Result<bool> {
    let now = as_it_is(context, cell).await?;
    Ok(now.is_some_and(|now| is_ours(&now.metadata, tenant)))
}

async fn as_it_is(context: &Context, cell: &str) -> Result<Option<PartialObjectMeta<Namespace>>> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    found(namespaces.get_metadata(cell).await).map_err(Error::kube("get", "Namespace", cell))
}

/// Gives back cells that a preview has taken and does not live in, each in the very version that is given; whether all were as they were
/// given. Of a preview that waits, only after a write to the preview.
///
/// # Errors
/// If the API server does not answer.
pub async fn give_back<K: ResourceExt>(context: &Context, cells: &[K]) -> Result<bool> {
    let mut all = true;
    for cell in cells {
        all &= annotate(context, cell, record::returned(Timestamp::now()))
            .await?
            .is_some();
    }
    Ok(all)
}

/// Has a cell be nobody's after the preview that has it; whether it was as it was seen, or was so already.
///
/// # Errors
/// If the API server does not answer.
pub async fn forfeit(context: &Context, cell: &Cell) -> Result<bool> {
    let Some(namespace) = &cell.namespace else {
        return Ok(true);
    };
    if Record::of(&namespace.metadata).is_none_or(|record| record.lot.is_none()) {
        return Ok(true);
    }
    Ok(annotate(context, namespace, record::forfeited()).await?.is_some())
}

/// Whether a pod is the one that a cell is for now. A cell that was read before its pod may have been another's since, and a pod ended in
/// between: of that look, the pod that it finds then is a live preview's.
///
/// # Errors
/// If the API server does not answer.
pub async fn is_of_now(context: &Context, cell: &str, pod: &Pod) -> Result<bool> {
    let now = record_now(context, cell).await?.filter(|now| !now.going);
    Ok(now.is_some_and(|now| pod.annotations().get(names::EPOCH_ANNOTATION) == Some(&now.epoch)))
}

/// What is written on a cell now, if it is there: asked for, not taken from the watch.
///
/// # Errors
/// If the API server does not answer.
pub async fn record_now(context: &Context, cell: &str) -> Result<Option<Record>> {
    let now = as_it_is(context, cell).await?;
    Ok(now.and_then(|now| Record::of(&now.metadata)))
}

/// What became of a cell that was to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// A pod of the preview may be in it, or somebody wrote it first: it has to be looked at again.
    NotYet,
    /// It is the next one's, or was not the preview's any more.
    Free,
    /// Its namespace was told to go.
    Going,
}

/// Closes the cell of a preview that is over, so that no pod of it can come any more: frees it for the next preview, if nothing was
/// wrong with it, and removes it otherwise. Not yet, if something of the preview is in it then: an attempt that was slower than the end
/// may have made a pod before. One that the API server has let in already and stores only after this look is ended when it shows.
///
/// # Errors
/// If the API server does not answer, or somebody else wrote the namespace meanwhile.
pub async fn close(context: &Context, world: &World, receipt: &Receipt) -> Result<Closed> {
    let cell = &world.tenant.cell;
    let seen = world.cell.namespace.as_ref().map(|seen| &seen.metadata);
    let seen = seen.filter(|seen| is_ours(seen, &world.tenant));
    let mut shut = match seen {
        Some(seen) => shut_as_seen(context, world, receipt, seen).await?,
        None => None,
    };
    if shut.is_none() {
        // Where no namespace is, or it is somebody else's by now, nobody goes on to a pod before looking at the preview again. Whose it
        // is, may have a pod in it already: of the epoch that it is in now, and of none that was ours.
        shut = match as_it_is(context, cell).await? {
            Some(now) if is_ours(&now.metadata, &world.tenant) => match seen {
                // The watch was behind.
                Some(_) => shut_as_seen(context, world, receipt, &now.metadata).await?,
                // A slower attempt has made it just now.
                None => None,
            },
            now => {
                let record = now.and_then(|now| Record::of(&now.metadata));
                Some((record.map(|record| record.epoch), Closed::Free))
            }
        };
    }
    let Some((epoch, closed)) = shut else {
        return Ok(Closed::NotYet);
    };
    let pods: Api<Pod> = context.api(cell);
    let pod = found(pods.get_metadata(names::POD).await).map_err(Error::kube("get", "Pod", cell))?;
    let known = world
        .preview
        .status
        .as_ref()
        .and_then(|status| status.pod.as_ref());
    let is_anothers = |pod: PartialObjectMeta<Pod>| {
        let of_another = pod.annotations().get(names::EPOCH_ANNOTATION) == epoch.as_ref() && epoch.is_some();
        of_another && pod.uid().as_ref() != known.map(|known| &known.uid)
    };
    Ok(if pod.is_none_or(is_anothers) {
        closed
    } else {
        Closed::NotYet
    })
}

/// Frees or removes the cell that a preview has, in the version that was seen; the epoch that it is in then, or `None` if it is another
/// version by now, or gone.
async fn shut_as_seen(
    context: &Context,
    world: &World,
    receipt: &Receipt,
    seen: &ObjectMeta,
) -> Result<Option<(Option<String>, Closed)>> {
    let now = Timestamp::now();
    let namespace = PartialObjectMeta::<Namespace> {
        metadata: seen.clone(),
        ..PartialObjectMeta::default()
    };
    if let Some(record) = Record::of(seen).filter(|record| is_sound(world, receipt, record, now)) {
        let next = new_epoch();
        let freed = record::freed(&record, next.clone(), now);
        let freed = annotate(context, &namespace, freed).await?;
        return Ok(freed.map(|_| (Some(next), Closed::Free)));
    }
    match remove(&context.client, &namespace).await {
        Err(error) if error.is_conflict() => Ok(None),
        removed => removed.map(|()| Some((None, Closed::Going))),
    }
}

/// Whether the next preview may have the cell of one that ended like this.
fn is_sound(world: &World, receipt: &Receipt, record: &Record, now: Timestamp) -> bool {
    let rules = world.policy.as_ref().map(|policy| &policy.spec.cells);
    let seen = matches!(receipt.result, EndResult::Verified | EndResult::NeverStarted);
    seen && is_harmless(receipt.cause)
        && record.lot.is_some()
        && rules.is_some_and(|rules| record.may_be_used_again(rules, now))
}

/// Whether a preview that ended for this reason leaves no doubt about its cell. Whatever is not named here does.
const fn is_harmless(cause: StatusReason) -> bool {
    matches!(
        cause,
        StatusReason::TimeOver
            | StatusReason::Deleted
            | StatusReason::Unopened
            | StatusReason::Idle
            | StatusReason::ProductExited
            | StatusReason::ProductCrashed
            | StatusReason::ProvisioningDeadline
            | StatusReason::ImageUnavailable
            | StatusReason::ListingChanged
    )
}

/// Whether a namespace is the cell of a preview.
pub fn is_ours(namespace: &ObjectMeta, tenant: &Tenant) -> bool {
    Record::of(namespace).is_some_and(|record| record.tenant.as_ref() == Some(&tenant.uid))
}

/// Deletes a cell's namespace, as it was seen.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody wrote it meanwhile.
pub async fn remove<K: ResourceExt>(client: &Client, namespace: &K) -> Result<()> {
    if namespace.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    remove_free(client, namespace).await
}

/// Deletes a free cell, if it is as it was seen.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody took it meanwhile.
pub async fn remove_free<K: ResourceExt>(client: &Client, cell: &K) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: cell.uid(),
        resource_version: cell.resource_version(),
    });
    let name = cell.name_any();
    found(api.delete(&name, &params).await).map_err(Error::kube("delete", "Namespace", name))?;
    Ok(())
}

/// Writes annotations of a cell in the version that was seen; the cell as it is then, or `None` if it is another by now, or gone.
///
/// # Errors
/// If the API server does not answer.
pub async fn annotate<K: ResourceExt>(
    context: &Context,
    cell: &K,
    annotations: impl IntoIterator<Item = (String, Value)>,
) -> Result<Option<PartialObjectMeta<Namespace>>> {
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let annotations: serde_json::Map<_, _> = annotations.into_iter().collect();
    let patch = json!({"metadata": {
        "resourceVersion": cell.resource_version(), "annotations": annotations, "managedFields": api::untracked()
    }});
    let name = cell.name_any();
    let patched = found(
        namespaces
            .patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await,
    );
    match patched.map_err(Error::kube("write", "Namespace", name)) {
        Ok(patched) => Ok(patched),
        Err(error) if error.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}
