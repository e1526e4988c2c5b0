//! Asks pods to end, and lets go of what has ended. Writes single objects.

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::PartialObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vitrine_crds::PreviewSandbox;
use vitrine_policies::names;

use super::Context;
use crate::{
    api,
    error::{Error, Result, found},
};

/// Asks a pod, this very one, to end.
///
/// # Errors
/// If the API server refuses.
pub async fn end(context: &Context, pod: &Pod, grace_seconds: i64) -> Result<()> {
    let (cell, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let params = DeleteParams {
        grace_period_seconds: u32::try_from(grace_seconds).ok(),
        preconditions: Some(Preconditions {
            uid: pod.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let deleted = found(context.api::<Pod>(&cell).delete(&name, &params).await);
    deleted.map_err(Error::kube("delete", "Pod", format!("{cell}/{name}")))?;
    Ok(())
}

/// Takes our finalizer off a preview in the version that was seen, and leaves others.
///
/// # Errors
/// If the API server refuses; also by conflict, when somebody wrote meanwhile.
pub async fn release_preview(context: &Context, preview: &PreviewSandbox) -> Result<()> {
    let seen = json!({"resourceVersion": preview.resource_version()});
    let api = context.api(&preview.namespace().unwrap_or_default());
    release(&api, "PreviewSandbox", preview, names::PREVIEW_FINALIZER, seen).await?;
    Ok(())
}

/// Takes our finalizer off a pod whose end is known, this very one in whatever version: what is known of an end does not change any more,
/// and its kubelet writes the pod in the same moment. Others stay: nothing that is being deleted can come to have one more.
///
/// Answers with the pod as it is then, or with `None` if it was gone before.
///
/// # Errors
/// If the API server refuses.
pub async fn release_pod(context: &Context, pod: &Pod) -> Result<Option<PartialObjectMeta<Pod>>> {
    let api: Api<Pod> = context.api(&pod.namespace().unwrap_or_default());
    let seen = json!({"uid": pod.uid()});
    let error = match release(&api, "Pod", pod, names::POD_FINALIZER, seen).await {
        Ok(released) => return Ok(released),
        Err(error) => error,
    };
    // To the API server another uid is an invalid one (k8s.io/apimachinery, `ValidateObjectMetaUpdate`).
    let now = found(api.get_metadata(&pod.name_any()).await);
    let now = now.map_err(Error::kube("get", "Pod", pod.name_any()))?;
    if now.is_none_or(|now| now.uid() != pod.uid()) {
        return Ok(None);
    }
    Err(error)
}

async fn release<K>(
    objects: &Api<K>,
    kind: &'static str,
    object: &K,
    finalizer: &str,
    mut metadata: Value,
) -> Result<Option<PartialObjectMeta<K>>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let others: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    metadata["finalizers"] = json!(others);
    metadata["managedFields"] = api::untracked();
    let name = object.name_any();
    let patch = Patch::Merge(json!({"metadata": metadata}));
    let patched = found(
        objects
            .patch_metadata(&name, &PatchParams::default(), &patch)
            .await,
    );
    patched.map_err(Error::kube(
        "let go of",
        kind,
        format!("{}/{name}", object.namespace().unwrap_or_default()),
    ))
}

/// Whether the API server has removed a pod with the write that it answers with this: one whose deletion was confirmed, and that nobody
/// holds (k8s.io/apiserver, `deletionFinalizersForGarbageCollection`).
pub fn is_gone(pod: &PartialObjectMeta<Pod>) -> bool {
    let meta = &pod.metadata;
    meta.deletion_timestamp.is_some()
        && meta.deletion_grace_period_seconds == Some(0)
        && pod.finalizers().is_empty()
}
