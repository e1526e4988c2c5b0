//! Removes cells and slots whose preview is gone: what a forced deletion of the preview itself leaves. Writes the cluster.
//!
//! Also counts previews by phase, since it looks at all of them anyway.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
};
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_policies::{cell::pod::GRACE_SECONDS, names, slots};

use super::{
    Context, apply,
    observe::{self, End},
};
use crate::error::{Error, Result, found};

/// How often orphans are looked for. They come from forced deletions, which are rare, and cost a namespace each.
const PERIOD: Duration = Duration::from_secs(15);

/// While there is an orphan it is looked at again after this, and then after twice as long each time, up to `PERIOD`: pod,
/// namespace and slot go one after the other, and nothing else wakes the sweep.
const SOON: Duration = Duration::from_secs(1);

/// Sweeps for ever.
pub async fn run(context: Arc<Context>) {
    let mut pause = SOON;
    loop {
        count(&context);
        let clean = match sweep(&context).await {
            Ok(clean) => clean,
            Err(error) => {
                context
                    .metrics
                    .errors
                    .with_label_values(&[error.category()])
                    .inc();
                tracing::warn!(%error, "failed to sweep orphans, will try again");
                true
            }
        };
        if clean {
            pause = SOON;
            tokio::time::sleep(PERIOD).await;
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PERIOD);
        }
    }
}

fn count(context: &Context) {
    let previews = context.watched();
    for phase in Phase::ALL {
        let count = previews
            .iter()
            .filter(|p| p.status.as_ref().map_or(Phase::Queued, |s| s.phase) == phase)
            .count();
        context
            .metrics
            .previews
            .with_label_values(&[phase.as_str()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// One sweep; whether there was nothing to do.
async fn sweep(context: &Context) -> Result<bool> {
    let mut clean = true;
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    let cells = ListParams::default().labels(&format!("{}=true", names::CELL_LABEL));
    let cells = namespaces
        .list(&cells)
        .await
        .map_err(Error::kube("list", "Namespace", "cells"))?;
    for namespace in &cells.items {
        let name = namespace.name_any();
        let Some(uid) = namespace.annotations().get(names::PREVIEW_UID_ANNOTATION) else {
            continue;
        };
        // A namespace that carries our label but not our name is somebody else's.
        if name != names::cell(uid) || lives(context, namespace.annotations(), uid).await? {
            continue;
        }
        clean = false;
        tracing::warn!(
            cell = name,
            preview_uid = uid,
            "removing a cell whose preview is gone"
        );
        remove(context, namespace).await?;
    }
    let leases: Api<Lease> = context.api(&context.settings.slots);
    let slots = ListParams::default().labels(slots::DIMENSION_LABEL);
    let slots = leases
        .list(&slots)
        .await
        .map_err(Error::kube("list", "Lease", &context.settings.slots))?;
    for lease in &slots.items {
        let Some(uid) = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()) else {
            continue;
        };
        if lives(context, lease.annotations(), &uid).await? {
            continue;
        }
        clean = false;
        // The slot goes last: while its cell is there something of the preview may run.
        let cell = names::cell(&uid);
        if found(namespaces.get(&cell).await)
            .map_err(Error::kube("get", "Namespace", &cell))?
            .is_none()
        {
            tracing::warn!(
                slot = lease.name_any(),
                preview_uid = uid,
                "freeing a slot whose preview is gone"
            );
            apply::free_slot(context, &lease.name_any(), &uid).await?;
            context.metrics.orphans.inc();
        }
    }
    Ok(clean)
}

/// Whether the preview that an object was made for still exists, as itself.
async fn lives(
    context: &Context,
    annotations: &std::collections::BTreeMap<String, String>,
    uid: &str,
) -> Result<bool> {
    let Some((namespace, name)) = annotations
        .get(names::PREVIEW_ANNOTATION)
        .and_then(|text| text.split_once('/'))
    else {
        return Ok(false);
    };
    let api: Api<PreviewSandbox> = context.api(namespace);
    match api.get(name).await {
        Ok(preview) => Ok(preview.uid().as_deref() == Some(uid)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        // It exists and cannot be read: it is not ours to judge.
        Err(kube::Error::SerdeError(_)) => Ok(true),
        Err(error) => Err(Error::kube(
            "get",
            "PreviewSandbox",
            format!("{namespace}/{name}"),
        )(error)),
    }
}

async fn remove(context: &Context, namespace: &Namespace) -> Result<()> {
    let cell = namespace.name_any();
    let pods: Api<Pod> = context.api(&cell);
    match found(pods.get(names::POD).await).map_err(Error::kube("get", "Pod", &cell))? {
        // It takes a while to go, and counts once.
        None if namespace.metadata.deletion_timestamp.is_some() => {}
        None => {
            apply::delete_namespace(context, namespace).await?;
            context.metrics.orphans.inc();
        }
        Some(pod) => match observe::end(&pod) {
            End::NotAsked => {
                let params = DeleteParams {
                    grace_period_seconds: u32::try_from(GRACE_SECONDS).ok(),
                    preconditions: Some(Preconditions {
                        uid: pod.uid(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                found(pods.delete(names::POD, &params).await).map_err(Error::kube("delete", "Pod", &cell))?;
            }
            End::Pending => {}
            End::Verified | End::NeverStarted => {
                apply::release(&pods, "Pod", &pod, names::POD_FINALIZER).await?;
            }
        },
    }
    Ok(())
}
