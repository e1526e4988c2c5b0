//! Carries a plan out. Writes the cluster; each write can be repeated, and each is refused if somebody else wrote first.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{LimitRange, Namespace, Pod, ResourceQuota, ServiceAccount},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use vitrine_crds::{
    Amount, PreviewSandbox, StatusReason,
    preview_sandbox::{EndResult, PodIdentity, Receipt},
};
use vitrine_policies::{
    Envelope, capacity,
    cell::{boundary, network, pod, record},
    names,
    queue::{Behind, Lack},
    slots::Demand,
};

use super::{
    Context, cells,
    decide::{self, Drift, Plan, World, seal_identity},
    report::Report,
    slots::{self, Taken},
    standing, status,
};
use crate::{
    error::{self, Error, Result, found},
    link,
    receipts::spool::{Keep, Kept},
    targets,
};

/// Where nothing is known of when to look again, a watch will tell; this is only for the watch that was lost.
const SAFETY: Duration = Duration::from_secs(30);
/// A preview whose turn it was and who found nothing looks again after this, beside being woken by a freed slot.
const QUEUE: Duration = Duration::from_secs(5);
/// How long a preview that is to go may be kept by a spool that does not take its receipt: a shop's namespace waits for it.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a quota may be without a status before the preview says so.
const QUOTA_PATIENCE: Duration = Duration::from_secs(2);

/// Carries the plan out.
///
/// # Errors
/// If a write fails; the whole is tried again from a fresh look.
pub async fn apply(context: &Context, world: World, plan: Plan) -> Result<Action> {
    let preview = &world.preview;
    match plan {
        Plan::Idle(after) => Ok(wake(after)),
        Plan::Report(report, after) => {
            status::write(context, preview, *report).await?;
            Ok(wake(after))
        }
        Plan::Admit(envelope, demands) => admit(context, &world, &envelope, &demands).await,
        Plan::Yield(report) => {
            status::write(context, preview, *report).await?;
            slots::give_back(context, &world.held_slots).await?;
            cells::give_back(context, &world.other_cells).await?;
            Ok(Action::requeue(Duration::ZERO))
        }
        // Which slots and which cell it lives with stands in its status and never changes: the others are nobody's.
        Plan::Shed => {
            slots::give_back(context, &world.held_slots).await?;
            cells::give_back(context, &world.other_cells).await?;
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::Retake(envelope, lost, after) => {
            match slots::retake(context, preview, &envelope, &lost).await {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => {
                    let note = format!("somebody deleted {} under it; taken again", taken.join(", "));
                    restored(context, preview, "Lease", &note).await;
                }
                // Their namespace is gone, perhaps. The preview goes on as it is.
                Err(error) => {
                    tracing::warn!(preview = preview.name_any(), %error, "its slots cannot be taken again")
                }
            }
            Ok(wake(after))
        }
        Plan::Provision(envelope) => provision(context, &world, &envelope).await,
        Plan::Repair(envelope, drift) => {
            for part in drift {
                repair(context, &world, &envelope, part).await?;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::Open(mut report) | Plan::Extend(mut report) => {
            let expires = report.status.expires_at.as_ref().map(|t| t.0);
            let path = report
                .status
                .envelope
                .as_ref()
                .map_or("/", |e| e.landing_path.as_str());
            let url = expires.map(|at| url(context, &world.tenant.uid, path, at));
            report.status.url = url;
            status::write(context, preview, *report).await?;
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::Throttle(cpu, after) => {
            throttle(context, &world, cpu).await?;
            Ok(wake(after))
        }
        Plan::Block(block) => {
            if let Some(policy) = &world.policy {
                let (now, until) = (Timestamp::now(), block.until.clone());
                standing::write(context, policy, |status| standing::block(status, *block, now)).await?;
                let until = until.map_or_else(|| "for good".to_owned(), |until| format!("until {}", until.0));
                let note = format!("its subject gets no other preview {until}");
                status::publish(context, preview, status::warning("SubjectBlocked", &note)).await;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::SetAside(node) => {
            if let Some(policy) = &world.policy {
                let now = Timestamp::now();
                let note = format!(
                    "node {} gets no preview until {}: {}",
                    node.name, node.until.0, node.reason
                );
                tracing::error!(node = node.name, until = %node.until.0, "isolation did not hold on this node");
                standing::write(context, policy, |status| standing::set_aside(status, *node, now)).await?;
                status::publish(context, preview, status::warning("NodeSetAside", &note)).await;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::EndPod(broken) => {
            if let Some(envelope) = broken {
                reseal(context, &world, &envelope).await?;
            }
            if let Some(pod) = &world.cell.pod {
                delete_pod(context, pod, pod::GRACE_SECONDS).await?;
            }
            Ok(wake(Some(SAFETY)))
        }
        Plan::ReleasePod => {
            if let Some(pod) = &world.cell.pod {
                // With its node gone nobody is left who would confirm the deletion, as a kubelet does.
                if receipt_of(preview).is_some_and(|receipt| receipt.result == EndResult::ReportedGone) {
                    delete_pod(context, pod, 0).await?;
                }
                release(
                    &context.api::<Pod>(&world.tenant.cell),
                    "Pod",
                    pod,
                    names::POD_FINALIZER,
                )
                .await?;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::NeverStarted(report) => {
            let closed = match &report.status.receipt {
                Some(receipt) => cells::close(context, &world, receipt).await?,
                None => false,
            };
            if closed {
                status::write(context, preview, *report).await?;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::RemoveCell => remove_cell(context, &world).await,
        Plan::Conclude(report) => conclude(context, preview, *report).await,
        Plan::ReleasePreview(keep) => {
            if let Some(keep) = keep {
                keep_receipt(context, preview, keep).await?;
            }
            let api: Api<PreviewSandbox> = context.api(&world.tenant.namespace);
            release(&api, "PreviewSandbox", preview, names::PREVIEW_FINALIZER).await?;
            Ok(Action::await_change())
        }
        Plan::Retire => retire(context, &world).await,
    }
}

/// Gives the product less processor time while it runs (Kubernetes "Resize CPU and Memory Resources assigned to Containers"). Where
/// the cluster cannot, the preview goes on as it is: its score may still grow to an end.
async fn throttle(context: &Context, world: &World, cpu: Amount) -> Result<()> {
    let pods: Api<Pod> = context.api(&world.tenant.cell);
    let amount = serde_json::json!({"cpu": cpu.to_string()});
    let patch = serde_json::json!({"spec": {"containers": [
        {"name": names::PRODUCT, "resources": {"requests": amount, "limits": amount}}
    ]}});
    let params = PatchParams::default();
    match pods
        .patch_resize(names::POD, &params, &Patch::Strategic(patch))
        .await
    {
        Ok(_) => {
            context.metrics.throttled.inc();
            let note = format!("taken for abuse: it gets {cpu} of a core from now on");
            status::publish(context, &world.preview, status::warning("Throttled", &note)).await;
            Ok(())
        }
        Err(kube::Error::Api(answer)) if !answer.is_conflict() && answer.code < 500 => {
            tracing::warn!(cell = world.tenant.cell, %answer, "the cluster does not let a running pod be throttled");
            Ok(())
        }
        Err(error) => Err(Error::kube("throttle", "Pod", &world.tenant.cell)(error)),
    }
}

fn wake(after: Option<Duration>) -> Action {
    after.map_or_else(Action::await_change, Action::requeue)
}

/// The link of a preview: its own host, so that every preview is an origin of its own.
fn url(context: &Context, uid: &str, path: &str, expires: Timestamp) -> String {
    let label = names::host_label(uid);
    let token = context.signer.sign(&label, path, expires);
    let base = context.settings.url.replace("{label}", &label);
    format!(
        "{}{}?{}={token}",
        base.trim_end_matches('/'),
        link::OPEN_PATH,
        link::TOKEN_PARAMETER
    )
}

async fn admit(context: &Context, world: &World, envelope: &Envelope, demands: &[Demand]) -> Result<Action> {
    let Some(policy) = &world.policy else {
        return Ok(Action::requeue(Duration::ZERO));
    };
    let preview = hold(context, &world.preview).await?;
    match slots::take(context, &preview, policy, demands).await? {
        Taken::All(slots) => {
            let mut tenant = world.tenant.clone();
            if let Some(free) = cells::take(context, &preview, envelope, &policy.spec).await? {
                tenant.cell = free;
            }
            let mut report = Report::from(&preview, Timestamp::now());
            report.admitted(
                &tenant,
                envelope,
                slots.iter().map(ResourceExt::name_any).collect(),
            );
            status::write(context, &preview, report).await?;
            Ok(Action::requeue(Duration::ZERO))
        }
        // Somebody was quicker, or has not let go yet.
        Taken::Full {
            dimension,
            limit,
            taken,
        } => {
            let behind = Behind {
                lack: Lack::Slots { dimension, limit },
                position: 1,
                estimate: None,
            };
            let mut report = Report::queued(
                &preview,
                StatusReason::WaitingForSlot,
                &behind.words(),
                Some(&behind),
                Timestamp::now(),
            );
            if !taken.is_empty() {
                report.yielded();
            }
            status::write(context, &preview, report).await?;
            slots::give_back(context, &taken).await?;
            Ok(Action::requeue(QUEUE))
        }
    }
}

/// Puts our finalizer on the preview: from here on something outside of it may have to be cleaned up.
async fn hold(context: &Context, preview: &PreviewSandbox) -> Result<PreviewSandbox> {
    if preview.finalizers().iter().any(|f| f == names::PREVIEW_FINALIZER) {
        return Ok(preview.clone());
    }
    let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
    let mut finalizers = preview.finalizers().to_vec();
    finalizers.push(names::PREVIEW_FINALIZER.to_owned());
    let patch = serde_json::json!({"metadata": {"resourceVersion": preview.resource_version(), "finalizers": finalizers}});
    let api: Api<PreviewSandbox> = context.api(&namespace);
    let patched = api
        .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    patched.map_err(Error::kube(
        "put the finalizer on",
        "PreviewSandbox",
        format!("{namespace}/{name}"),
    ))
}

async fn provision(context: &Context, world: &World, envelope: &Envelope) -> Result<Action> {
    let (tenant, cell) = (&world.tenant, &world.cell);
    let namespaces: Api<Namespace> = Api::all(context.client.clone());
    match &cell.namespace {
        None => {
            let lot = record::lot(envelope, world.preview.spec.trust_level, &world.house);
            let made = record::made(
                &tenant.cell,
                Some(tenant),
                cells::new_epoch(),
                lot,
                Timestamp::now(),
            );
            create(&namespaces, "Namespace", &made).await?;
        }
        Some(namespace) if !cells::is_ours(namespace, tenant) => {
            return Err(Error::Foreign {
                kind: "Namespace",
                name: tenant.cell.clone(),
            });
        }
        Some(_) => {}
    }
    let (quotas, ranges): (Api<ResourceQuota>, Api<LimitRange>) =
        (context.api(&tenant.cell), context.api(&tenant.cell));
    let (accounts, policies): (Api<ServiceAccount>, Api<NetworkPolicy>) =
        (context.api(&tenant.cell), context.api(&tenant.cell));
    let desired_policy = network::policy(&tenant.cell, envelope, &world.house);
    let made = tokio::try_join!(
        ensure(
            &quotas,
            "ResourceQuota",
            cell.quota.as_ref(),
            boundary::quota(&tenant.cell, envelope)
        ),
        ensure(
            &ranges,
            "LimitRange",
            cell.limit_range.as_ref(),
            boundary::limit_range(&tenant.cell, envelope)
        ),
        ensure(
            &accounts,
            "ServiceAccount",
            cell.service_account.as_ref(),
            boundary::service_account(&tenant.cell)
        ),
        ensure(
            &policies,
            "NetworkPolicy",
            cell.network_policy.as_ref(),
            desired_policy
        ),
    );
    let (quota, _, _, policy) = match made {
        Err(error) if recount(&quotas, &accounts, THE_ACCOUNT, &error).await? => {
            return Ok(Action::requeue(Duration::ZERO));
        }
        made => made?,
    };
    // No pod before the quota counts: until then the API server would let everything through.
    if quota.status.as_ref().and_then(|s| s.hard.as_ref()).is_none() {
        let (made, now) = (quota.metadata.creation_timestamp.as_ref(), Timestamp::now());
        // The controller-manager counts a new quota within milliseconds: only a longer wait is worth a write.
        if made.is_some_and(|made| decide::remaining(made.0, QUOTA_PATIENCE, now).is_none()) {
            let mut report = Report::from(&world.preview, now);
            report.uncounted();
            status::write(context, &world.preview, report).await?;
        }
        return Ok(Action::requeue(QUOTA_PATIENCE));
    }
    let pod = match &cell.pod {
        Some(pod) => pod.clone(),
        None => {
            let Some(epoch) = epoch_to_build_in(context, world).await? else {
                return Ok(Action::requeue(Duration::ZERO));
            };
            let landmarks = targets::landmarks(&context.client, &context.settings).await?;
            let nonce = names::nonce(&tenant.cell, &epoch);
            let orders = targets::orders(&landmarks, envelope, &tenant.cell, nonce);
            let proxy = way_out(context, envelope, landmarks.egress.as_deref())?;
            let policy = world.policy.as_ref();
            let avoid = policy.map(|policy| capacity::set_aside(policy, Timestamp::now()));
            let avoid = avoid.unwrap_or_default();
            let desired = pod::pod(
                &tenant.cell,
                &epoch,
                envelope,
                &context.settings.probe,
                &orders,
                proxy,
                &avoid,
            );
            let pods: Api<Pod> = context.api(&tenant.cell);
            match create(&pods, "Pod", &desired).await {
                Ok(pod) => pod,
                // The quota counts before the name is looked at: with our pod there already, made by an operator beside this
                // one, the answer is "exceeded quota", not "already exists".
                Err(error) => match found(pods.get(names::POD).await) {
                    Ok(Some(pod)) => pod,
                    Ok(None) if recount(&quotas, &pods, THE_POD, &error).await? => {
                        return Ok(Action::requeue(Duration::ZERO));
                    }
                    _ => return rejected(context, world, error).await,
                },
            }
        }
    };
    if cell.epoch().is_none()
        || pod.annotations().get(names::EPOCH_ANNOTATION).map(String::as_str) != cell.epoch()
    {
        return Err(Error::Foreign {
            kind: "Pod",
            name: format!("{}/{}", tenant.cell, names::POD),
        });
    }
    let mut report = Report::from(&world.preview, Timestamp::now());
    report.status.pod = Some(PodIdentity {
        uid: pod.uid().unwrap_or_default(),
        ip: None,
        port: i32::from(envelope.port),
        nonce: cell.nonce(),
    });
    report.provisioned(seal_identity(&policy));
    report.proving(StatusReason::ProbeRunning, decide::PROBING);
    status::write(context, &world.preview, report).await?;
    Ok(wake(Some(SAFETY)))
}

/// The epoch of the cell that a pod may be made in now; `None` if the preview has to be looked at anew first.
///
/// No pod is ever made for a preview that is over, however late its creation arrives:
/// - the cell was there, whole, before this look at the preview, which was not over then: whoever ends it later finds this cell and
///   closes it (`cells::close`), and nothing can be made in a namespace that is going;
/// - one that is used again has another epoch then, and so has a namespace of the same name that a slower attempt makes after that:
///   the admission policy `vitrine-operator` refuses a pod that names this one.
///
/// `policies/tests/cell_protocol.rs` tries every order of these writes.
async fn epoch_to_build_in(context: &Context, world: &World) -> Result<Option<String>> {
    let (preview, cell) = (&world.preview, &world.cell);
    if !cell.is_whole() {
        return Ok(None);
    }
    let Some(epoch) = cell.epoch() else {
        return Err(Error::Foreign {
            kind: "Namespace",
            name: world.tenant.cell.clone(),
        });
    };
    let api: Api<PreviewSandbox> = context.api(&world.tenant.namespace);
    let name = preview.name_any();
    let now = found(api.get_metadata(&name).await).map_err(Error::kube("get", "PreviewSandbox", &name))?;
    let same = now.is_some_and(|now| now.metadata.resource_version == preview.metadata.resource_version);
    Ok(same.then(|| epoch.to_owned()))
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

/// Whether to try again what a quota refused: because our object is there after all, or because the quota counts one that is
/// not; then the quota is removed, and the next attempt makes one that counts anew.
///
/// A create that is cut off between the quota's admission and the store (its operator was killed) leaves such a charge, and
/// the controller-manager looks only every five minutes. The object's name, not the quota, keeps two attempts from two.
async fn recount<K>(
    quotas: &Api<ResourceQuota>,
    api: &Api<K>,
    counted: Counted,
    error: &Error,
) -> Result<bool>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    if !matches!(error, Error::Kube { source, .. } if error::status(source).is_some_and(exceeds_quota)) {
        return Ok(false);
    }
    let quota =
        found(quotas.get(names::SEAL).await).map_err(Error::kube("get", "ResourceQuota", names::SEAL))?;
    let Some(quota) = quota else { return Ok(true) };
    let used = quota.status.as_ref().and_then(|s| s.used.as_ref());
    let charged = used.and_then(|used| used.get(counted.key)?.0.parse::<usize>().ok());
    let there = api.list_metadata(&ListParams::default()).await;
    let there = there.map_err(Error::kube("list", counted.kind, counted.name))?;
    // Charged first, stored then: an operator beside this one may have stored our object since we asked for it.
    if there.items.iter().any(|object| object.name_any() == counted.name) {
        return Ok(true);
    }
    if charged.is_none_or(|charged| charged <= there.items.len()) {
        return Ok(false);
    }
    tracing::info!(
        cell = quota.namespace(),
        "the quota counts a {} that was never made; counting anew",
        counted.kind
    );
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: quota.uid(),
        resource_version: None,
    });
    let deleted = found(quotas.delete(names::SEAL, &params).await);
    deleted.map_err(Error::kube("recount", "ResourceQuota", names::SEAL))?;
    Ok(true)
}

/// What the quota counts of our own.
struct Counted {
    kind: &'static str,
    name: &'static str,
    /// Its name in the quota (Kubernetes "Resource Quotas", object count quota).
    key: &'static str,
}

const THE_POD: Counted = Counted {
    kind: "Pod",
    name: names::POD,
    key: "count/pods",
};
const THE_ACCOUNT: Counted = Counted {
    kind: "ServiceAccount",
    name: names::SERVICE_ACCOUNT,
    key: "count/serviceaccounts",
};

/// Whether it was the quota that refused; the API server has no reason of its own for it.
fn exceeds_quota(answer: &kube::core::Status) -> bool {
    answer.is_forbidden() && answer.message.contains("exceeded quota")
}

/// The API server refused the pod: told within this reconciliation, with the API server's own words.
async fn rejected(context: &Context, world: &World, error: Error) -> Result<Action> {
    let Error::Kube { source, .. } = &error else {
        return Err(error);
    };
    let Some(answer) = error::status(source).filter(|s| s.is_forbidden() || s.is_invalid()) else {
        return Err(error);
    };
    let reason = if exceeds_quota(answer) {
        StatusReason::QuotaExceeded
    } else {
        StatusReason::PodRejected
    };
    let mut report = Report::from(&world.preview, Timestamp::now());
    report.ending(reason, &answer.message);
    status::write(context, &world.preview, report).await?;
    Ok(Action::requeue(Duration::ZERO))
}

async fn create<K>(api: &Api<K>, kind: &'static str, object: &K) -> Result<K>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let name = format!(
        "{}/{}",
        object.meta().namespace.as_deref().unwrap_or_default(),
        object.name_any()
    );
    match api.create(&PostParams::default(), object).await {
        Ok(created) => Ok(created),
        // Another attempt of ours was quicker: what is there is judged like everything that is there.
        Err(error) if error::status(&error).is_some_and(kube::core::Status::is_already_exists) => api
            .get(&object.name_any())
            .await
            .map_err(Error::kube("get", kind, name)),
        Err(error) => Err(Error::kube("create", kind, name)(error)),
    }
}

async fn ensure<K>(api: &Api<K>, kind: &'static str, live: Option<&K>, desired: K) -> Result<K>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    match live {
        Some(live) => Ok(live.clone()),
        None => create(api, kind, &desired).await,
    }
}

/// Makes an object be what it is to be: whole, so that nothing that somebody added stays.
async fn put<K>(api: &Api<K>, kind: &'static str, live: Option<&K>, mut desired: K) -> Result<K>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let Some(live) = live else {
        return create(api, kind, &desired).await;
    };
    let name = desired.name_any();
    desired.meta_mut().resource_version = live.resource_version();
    let put = api.replace(&name, &PostParams::default(), &desired).await;
    put.map_err(Error::kube(
        "restore",
        kind,
        format!("{}/{name}", desired.namespace().unwrap_or_default()),
    ))
}

async fn repair(context: &Context, world: &World, envelope: &Envelope, part: Drift) -> Result<()> {
    let (tenant, cell) = (&world.tenant, &world.cell);
    let name = match part {
        Drift::Namespace => {
            let api: Api<Namespace> = Api::all(context.client.clone());
            let desired = record::had_by(tenant);
            let patch = serde_json::json!({"metadata": {
                "resourceVersion": cell.namespace.as_ref().and_then(ResourceExt::resource_version),
                "labels": desired.metadata.labels, "annotations": desired.metadata.annotations}});
            let patched = api
                .patch(&tenant.cell, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            patched.map_err(Error::kube("restore", "Namespace", &tenant.cell))?;
            "Namespace"
        }
        Drift::Quota => {
            let desired = boundary::quota(&tenant.cell, envelope);
            put(
                &context.api::<ResourceQuota>(&tenant.cell),
                "ResourceQuota",
                cell.quota.as_ref(),
                desired,
            )
            .await?;
            "ResourceQuota"
        }
        Drift::LimitRange => {
            let desired = boundary::limit_range(&tenant.cell, envelope);
            put(
                &context.api::<LimitRange>(&tenant.cell),
                "LimitRange",
                cell.limit_range.as_ref(),
                desired,
            )
            .await?;
            "LimitRange"
        }
        Drift::ServiceAccount => {
            let desired = boundary::service_account(&tenant.cell);
            let api: Api<ServiceAccount> = context.api(&tenant.cell);
            let put = put(&api, "ServiceAccount", cell.service_account.as_ref(), desired).await;
            match put {
                // The quota is missing now, and the next look puts both back.
                Err(error) if recount(&context.api(&tenant.cell), &api, THE_ACCOUNT, &error).await? => {}
                put => drop(put?),
            }
            "ServiceAccount"
        }
    };
    let note = format!(
        "somebody changed or removed the {name} of cell {}; it was put back",
        tenant.cell
    );
    restored(context, &world.preview, name, &note).await;
    Ok(())
}

/// Counts and tells that something was put back.
async fn restored(context: &Context, preview: &PreviewSandbox, kind: &str, note: &str) {
    context.metrics.repairs.with_label_values(&[kind]).inc();
    let event = Event {
        type_: EventType::Warning,
        reason: "Restored".to_owned(),
        note: Some(note.to_owned()),
        // One a kind: the recorder takes events of one action for repetitions of the first, and drops their notes.
        action: format!("Restore{kind}"),
        secondary: None,
    };
    status::publish(context, preview, event).await;
}

/// Puts the network policy back, so that nothing else gets out while the pod ends. The preview ends all the same.
async fn reseal(context: &Context, world: &World, envelope: &Envelope) -> Result<()> {
    let cell = &world.tenant.cell;
    let api: Api<NetworkPolicy> = context.api(cell);
    for foreign in &world.cell.foreign_policies {
        let deleted = found(api.delete(foreign, &DeleteParams::default()).await);
        deleted.map_err(Error::kube(
            "delete the foreign",
            "NetworkPolicy",
            format!("{cell}/{foreign}"),
        ))?;
    }
    // Nothing can be created in a namespace that is going; its policy stays until the pod is gone.
    let namespace = world.cell.namespace.as_ref();
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(());
    }
    let desired = network::policy(&world.tenant.cell, envelope, &world.house);
    put(&api, "NetworkPolicy", world.cell.network_policy.as_ref(), desired).await?;
    context
        .metrics
        .repairs
        .with_label_values(&["NetworkPolicy"])
        .inc();
    Ok(())
}

/// Asks a pod, this very one, to end.
///
/// # Errors
/// If the API server refuses.
pub async fn delete_pod(context: &Context, pod: &Pod, grace_seconds: i64) -> Result<()> {
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

/// Takes one finalizer off an object, and leaves the others.
pub async fn release<K>(api: &Api<K>, kind: &'static str, object: &K, finalizer: &str) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    let finalizers: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).collect();
    let patch = serde_json::json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
    let name = object.name_any();
    let patched = found(
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await,
    );
    patched.map_err(Error::kube(
        "let go of",
        kind,
        format!("{}/{name}", object.namespace().unwrap_or_default()),
    ))?;
    Ok(())
}

/// The slots are somebody else's only when nothing can run in the cell any more.
async fn remove_cell(context: &Context, world: &World) -> Result<Action> {
    let Some(receipt) = receipt_of(&world.preview) else {
        return Ok(Action::requeue(Duration::ZERO));
    };
    if !cells::close(context, world, receipt).await? {
        return Ok(Action::requeue(Duration::ZERO));
    }
    slots::give_back(context, &world.held_slots).await?;
    cells::give_back(context, &world.other_cells).await?;
    // A namespace that goes is waited for; of one that is free there is nothing to wait for.
    let going = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_some();
    if world.cell.namespace.as_ref().is_some_and(going) {
        return Ok(wake(Some(SAFETY)));
    }
    Ok(Action::requeue(Duration::ZERO))
}

/// Signs the receipt, now that slots and cell are free: whoever waits for them does not wait for a signer.
async fn conclude(context: &Context, preview: &PreviewSandbox, mut report: Report) -> Result<Action> {
    let mut ended = preview.clone();
    ended.status = Some(report.status.clone());
    let signed = signed(context, &ended)?;
    if let Some(receipt) = &mut report.status.receipt {
        receipt.signed = signed;
    }
    let written = status::write(context, preview, report).await?;
    if receipt_of(&written).is_none_or(|receipt| receipt.signed.is_none()) {
        tracing::error!(
            preview = preview.name_any(),
            "the API server does not keep signed receipts: upgrade the chart vitrine-crds"
        );
    }
    context.receipts.news.notify_one();
    Ok(Action::requeue(Duration::ZERO))
}

fn receipt_of(preview: &PreviewSandbox) -> Option<&Receipt> {
    preview.status.as_ref()?.receipt.as_ref()
}

/// The signed receipt of a preview whose end is recorded.
fn signed(context: &Context, preview: &PreviewSandbox) -> Result<Option<String>> {
    let Some(statement) = vitrine_receipts::statement(preview) else {
        return Ok(None);
    };
    let signer = context.receipts.office.signer.as_ref();
    let envelope = vitrine_receipts::Envelope::sign(&statement, signer)?;
    Ok(serde_json::to_string(&envelope).ok())
}

/// Puts the receipt of a preview that is about to go into the spool.
async fn keep_receipt(context: &Context, preview: &PreviewSandbox, keep: Keep) -> Result<()> {
    let envelope = match receipt_of(preview).and_then(|receipt| receipt.signed.clone()) {
        Some(envelope) => envelope,
        // It ended under an operator that did not sign yet. Two of them may sign now: what the spool takes first, counts.
        None => signed(context, preview)?.unwrap_or_default(),
    };
    let asked = preview.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let is_last_try =
        asked.is_some_and(|asked| decide::remaining(asked, RECEIPT_PATIENCE, Timestamp::now()).is_none());
    match context
        .receipts
        .spool
        .keep(preview, &envelope, keep, is_last_try)
        .await?
    {
        Kept::Spooled => context.receipts.news.notify_one(),
        Kept::Dropped(why) => {
            context.metrics.receipts_dropped.inc();
            // The log is the last that holds it.
            tracing::error!(
                preview = format!(
                    "{}/{}",
                    preview.namespace().unwrap_or_default(),
                    preview.name_any()
                ),
                why,
                receipt = envelope,
                "a receipt is dropped"
            );
        }
    }
    Ok(())
}

async fn retire(context: &Context, world: &World) -> Result<Action> {
    let preview = &world.preview;
    let (namespace, name) = (&world.tenant.namespace, preview.name_any());
    if let Some(status) = &preview.status {
        if let Some(event) = status::receipt(status, "Retired") {
            status::publish(context, preview, event).await;
        }
        let receipt = status
            .receipt
            .as_ref()
            .and_then(|r| serde_json::to_string(r).ok());
        tracing::info!(
            preview = format!("{namespace}/{name}"),
            receipt,
            "retired a finished preview"
        );
    }
    let api: Api<PreviewSandbox> = context.api(namespace);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: preview.uid(),
        resource_version: preview.resource_version(),
    });
    found(api.delete(&name, &params).await).map_err(Error::kube(
        "delete",
        "PreviewSandbox",
        format!("{namespace}/{name}"),
    ))?;
    Ok(Action::await_change())
}
