//! Carries a plan out. Writes the cluster; each write can be repeated, and each is refused if somebody else wrote first.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::{
        events::{Event, EventType},
        reflector::ObjectRef,
    },
};
use tokio::time::Instant;
use vitrine_crds::{
    Amount, PreviewPolicy, PreviewSandbox, StatusReason,
    preview_sandbox::{EndResult, PodIdentity, Receipt},
};
use vitrine_policies::{
    Envelope,
    cell::{Tenant, pod, record},
    names,
    queue::{Behind, Lack, Place},
    slots::{Demand, Dimension, Owner, own_demands},
};

use super::{
    Context,
    cells::{self, Closed},
    decide::{self, Cell, Drift, Plan, TOLD, World, seal_identity},
    dereference,
    make::{self, Podded, Sealed},
    pods, quotas,
    report::Report,
    slots::{self, Taken},
    standing, status,
};
use crate::{
    error::{self, Error, Result, found},
    link,
    pool::{self, keep, table::BEHIND},
    receipts::spool::{Keep, Kept},
    workqueue::Action,
};

/// Where nothing is known of when to look again, a watch will tell; this is only for the watch that was lost.
const SAFETY: Duration = Duration::from_secs(30);
/// A preview whose turn it was and who found nothing looks again after this, beside being woken by a freed slot.
const QUEUE: Duration = Duration::from_secs(5);
/// In metrics: ready at once, in a cell of a pool; or built and proven first.
const WARM: &str = "warm";
const COLD: &str = "cold";
/// How long a preview that is to go may be kept by a spool that does not take its receipt: a shop's namespace waits for it.
const RECEIPT_PATIENCE: Duration = Duration::from_secs(120);
/// How long a quota may be without a status before the preview says so.
const QUOTA_PATIENCE: Duration = Duration::from_secs(2);

/// What comes after a plan that was carried out.
pub enum Next {
    /// Nothing before this.
    Wait(Action),
    /// What is to be decided now, of what the writes have answered.
    Decide(Box<World>),
}

/// Carries the plan out.
///
/// # Errors
/// If a write fails; the whole is tried again from a fresh look.
pub async fn apply(context: &Context, mut world: World, plan: Plan) -> Result<Next> {
    match plan {
        Plan::Record(report) => {
            world.preview = status::write(context, &world.preview, *report).await?;
            let status = world.preview.status.clone().unwrap_or_default();
            dereference::own(&mut world.cell, &world.tenant, &status, true);
            match (&world.cell.pod, &status.receipt) {
                // Nobody has seen how it ended: its node has to be asked.
                (None, None) => return Ok(Next::Wait(Action::requeue(Duration::ZERO))),
                (None, Some(_)) => dereference::leftovers(context, &mut world).await?,
                (Some(_), _) => {}
            }
            Ok(Next::Decide(Box::new(world)))
        }
        Plan::ReleasePod => release_pod(context, world).await,
        Plan::RemoveCell => remove_cell(context, world).await,
        plan => carry_out(context, &world, plan).await.map(Next::Wait),
    }
}

/// Carries out what is followed by a fresh look.
async fn carry_out(context: &Context, world: &World, plan: Plan) -> Result<Action> {
    let preview = &world.preview;
    match plan {
        // Carried out by `apply`.
        Plan::Record(_) | Plan::ReleasePod | Plan::RemoveCell => Ok(Action::requeue(Duration::ZERO)),
        Plan::Idle(after) => Ok(wake(after)),
        Plan::Report(report, after) => {
            status::write(context, preview, *report).await?;
            if matches!(world.place, Some(Place::Behind(_))) {
                keep::make_way(context);
            }
            Ok(wake(after))
        }
        Plan::Admit(envelope, demands) => admit(context, world, &envelope, &demands).await,
        Plan::Yield(report) => {
            status::write(context, preview, *report).await?;
            slots::give_back(context, &world.held_slots).await?;
            cells::give_back(context, &world.other_cells).await?;
            // The watch tells what became of them.
            touch(context, &world.preview);
            Ok(Action::requeue(TOLD))
        }
        // Which slots and which cell it lives with stands in its status and never changes: the others are nobody's.
        Plan::Shed => {
            slots::give_back(context, &world.held_slots).await?;
            cells::give_back(context, &world.other_cells).await?;
            // The watch tells what became of them.
            touch(context, &world.preview);
            Ok(Action::requeue(TOLD))
        }
        Plan::Retake(envelope, lost, after) => {
            match slots::retake(context, preview, &envelope, &lost).await {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => {
                    let note = format!("somebody deleted {} under it; taken again", taken.join(", "));
                    restored(context, preview, "Lease", &note);
                }
                // Their namespace is gone, perhaps. The preview goes on as it is.
                Err(error) => {
                    tracing::warn!(preview = preview.name_any(), %error, "its slots cannot be taken again")
                }
            }
            Ok(wake(after))
        }
        Plan::Provision(envelope) => provision(context, world, &envelope).await,
        Plan::Repair(envelope, drift) => {
            // First: while a part was missing, anything may have come into the cell.
            if !cells::forfeit(context, &world.cell).await? {
                return Ok(Action::requeue(TOLD));
            }
            for part in drift {
                repair(context, world, &envelope, part).await?;
            }
            touch(context, &world.preview);
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::Open(report) | Plan::Extend(report) => {
            open(context, &world.tenant, preview, *report).await?;
            Ok(Action::requeue(TOLD))
        }
        Plan::Throttle(cpu, after) => {
            throttle(context, world, cpu).await?;
            Ok(wake(after))
        }
        Plan::Block(block) => {
            if let Some(policy) = &world.policy {
                let (now, until) = (Timestamp::now(), block.until.clone());
                standing::write(context, policy, |status| standing::block(status, *block, now)).await?;
                let until = until.map_or_else(|| "for good".to_owned(), |until| format!("until {}", until.0));
                let note = format!("its subject gets no other preview {until}");
                status::publish(context, preview, status::warning("SubjectBlocked", &note));
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
                status::publish(context, preview, status::warning("NodeSetAside", &note));
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::EndPod(broken) => {
            if let Some(envelope) = broken {
                make::reseal(context, &world.tenant.cell, &world.cell, &envelope).await?;
            }
            if let Some(pod) = &world.cell.pod {
                pods::end(context, pod, pod::GRACE_SECONDS).await?;
            }
            // That it is about to end is no news to look at; that it takes long is.
            Ok(wake(Some(decide::SLOW_END)))
        }
        Plan::NeverStarted(report) => {
            let closed = match &report.status.receipt {
                Some(receipt) => cells::close(context, world, receipt).await?,
                None => Closed::NotYet,
            };
            if closed != Closed::NotYet {
                status::write(context, preview, *report).await?;
            }
            Ok(Action::requeue(Duration::ZERO))
        }
        Plan::Conclude(report) => conclude(context, preview, *report).await,
        Plan::Send(patience) => {
            context.receipts.post.send(&with_signature(context, preview)?);
            Ok(wake(Some(patience)))
        }
        Plan::ReleasePreview(keep) => {
            if let Some(keep) = keep {
                keep_receipt(context, preview, keep).await?;
            }
            if let Some(status) = preview
                .status
                .as_ref()
                .filter(|status| !status.phase.is_terminal())
                && let Some(event) = status::receipt(status, "Receipt")
            {
                status::publish(context, preview, event);
            }
            pods::release_preview(context, preview).await?;
            context.looks.released(&world.tenant.uid, Instant::now());
            Ok(Action::await_change())
        }
        Plan::Retire => retire(context, world).await,
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
            status::publish(context, &world.preview, status::warning("Throttled", &note));
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
    if let Some(kind) = &world.warm
        && let Some(action) = admit_warm(context, world, &preview, envelope, policy, kind).await?
    {
        return Ok(action);
    }
    if world.unread {
        return Ok(read_again(context, &preview));
    }
    match slots::take(context, &Owner::preview(&preview), policy, demands).await? {
        Taken::All(slots) => {
            let mut tenant = world.tenant.clone();
            if let Some(free) = cells::take(context, &preview, envelope, &policy.spec).await? {
                tenant.cell = free;
            }
            let kind = pool::kind(&context.settings, envelope, preview.spec.trust_level);
            let mut report = Report::from(&preview, Timestamp::now());
            report.admitted(
                &tenant,
                envelope,
                slots.iter().map(ResourceExt::name_any).collect(),
                context.pools.keeps(&kind),
            );
            status::write(context, &preview, report).await?;
            context.metrics.admissions.with_label_values(&[COLD]).inc();
            Ok(Action::requeue(TOLD))
        }
        Taken::Full {
            dimension,
            limit,
            taken,
        } => {
            write_full(context, &preview, dimension, limit, !taken.is_empty()).await?;
            slots::give_back(context, &taken).await?;
            Ok(Action::requeue(QUEUE))
        }
    }
}

/// Says that somebody was quicker, or has not let go yet.
async fn write_full(
    context: &Context,
    preview: &PreviewSandbox,
    dimension: Dimension,
    limit: i32,
    yields: bool,
) -> Result<()> {
    let behind = Behind {
        lack: Lack::Slots { dimension, limit },
        position: 1,
        estimate: None,
    };
    let words = behind.words();
    let now = Timestamp::now();
    let mut report = Report::queued(preview, StatusReason::WaitingForSlot, &words, Some(&behind), now);
    if yields {
        report.yielded();
    }
    status::write(context, preview, report).await?;
    Ok(())
}

/// Takes a cell of a pool in which the preview is ready at once; `None` if the last one was taken by somebody else.
async fn admit_warm(
    context: &Context,
    world: &World,
    preview: &PreviewSandbox,
    envelope: &Envelope,
    policy: &PreviewPolicy,
    kind: &str,
) -> Result<Option<Action>> {
    let demands = own_demands(&policy.spec, preview);
    let owner = Owner::preview(preview);
    let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
    // What confines the cell was looked at before it was ready, and is doubted since when a watch tells of it.
    let begun = context.looks.begin(&namespace, &name);
    let tenant = &world.tenant;
    let Some(warm) = context
        .pools
        .take(kind, &tenant.cell, |warm| context.watched.trusts(warm))
    else {
        return Ok(None);
    };
    // None needs the others: what is taken in vain is given back.
    let (claimed, taken, is_current) = tokio::join!(
        cells::claim_warm(context, tenant, &warm),
        slots::take(context, &owner, policy, &demands),
        dereference::is_current(context, world)
    );
    // Whatever comes of it, the cell is not as it was known to be, and its pool has one less.
    context.wakes.cells([warm.cell.clone()]);
    context.wakes.pool(&warm.pool);
    let slots = match taken? {
        Taken::All(slots) => slots,
        Taken::Full {
            dimension,
            limit,
            taken,
        } => {
            write_full(context, preview, dimension, limit, true).await?;
            slots::give_back(context, &taken).await?;
            cells::give_back(context, &claimed?.into_iter().collect::<Vec<_>>()).await?;
            return Ok(Some(Action::requeue(QUEUE)));
        }
    };
    let (claimed, is_current) = (claimed?.is_some(), is_current?);
    if !claimed && cells::is_had(context, &warm.cell, tenant).await? {
        // An operator beside this one was quicker, and is about to say so. If it does not, the next attempt takes another cell.
        return Ok(Some(Action::requeue(BEHIND)));
    }
    if !claimed || !is_current {
        // What it has taken is taken over by the next attempt, or given back.
        return Ok(Some(read_again(context, preview)));
    }
    let tenant = Tenant {
        cell: warm.cell.clone(),
        ..tenant.clone()
    };
    let mut report = Report::from(preview, Timestamp::now());
    report.admitted(
        &tenant,
        envelope,
        slots.iter().map(ResourceExt::name_any).collect(),
        false,
    );
    report.status.node = warm.node;
    report.status.pod = Some(warm.pod);
    report.provisioned(warm.seal);
    report.status.isolation = Some(warm.isolation);
    report.isolated();
    report.ready(envelope.ttl.as_duration());
    open(context, &tenant, preview, report).await?;
    context.looks.opened(&namespace, &name, &tenant.uid, begun);
    context.metrics.admissions.with_label_values(&[WARM]).inc();
    Ok(Some(Action::requeue(TOLD)))
}

/// It is looked at again at once, by what is read and not by what the watches have.
fn read_again(context: &Context, preview: &PreviewSandbox) -> Action {
    touch(context, preview);
    Action::requeue(Duration::ZERO)
}

/// It is looked at again as a whole.
fn touch(context: &Context, preview: &PreviewSandbox) {
    let namespace = preview.namespace().unwrap_or_default();
    context
        .looks
        .touch(&ObjectRef::new(&preview.name_any()).within(&namespace));
}

/// Signs the link of a preview that is ready, and says so.
async fn open(
    context: &Context,
    tenant: &Tenant,
    preview: &PreviewSandbox,
    mut report: Report,
) -> Result<()> {
    let status = &report.status;
    let expires = status.expires_at.as_ref().map(|time| time.0);
    let path = status
        .envelope
        .as_ref()
        .map_or("/", |envelope| envelope.landing_path.as_str());
    report.status.url = expires.map(|at| url(context, &tenant.uid, path, at));
    status::write(context, preview, report).await?;
    Ok(())
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
    match &cell.namespace {
        None => {
            let lot = record::lot(envelope, world.preview.spec.trust_level, &world.house);
            let now = Timestamp::now();
            let made = record::made(&tenant.cell, Some(tenant), cells::new_epoch(), lot, now);
            make::namespace(context, &made).await?;
        }
        Some(namespace) if !cells::is_ours(&namespace.metadata, tenant) => {
            return Err(Error::Foreign {
                kind: "Namespace",
                name: tenant.cell.clone(),
            });
        }
        Some(_) => {}
    }
    let policy = match make::seal(context, &tenant.cell, cell, envelope).await? {
        Sealed::Whole(policy) => *policy,
        Sealed::Again => return Ok(Action::requeue(Duration::ZERO)),
        Sealed::Unfurnished => return Ok(Action::requeue(quotas::FURNISHED)),
        Sealed::Refused(error) => return rejected(context, world, error).await,
        Sealed::Uncounted(made) => {
            let now = Timestamp::now();
            // The controller-manager counts a new quota within milliseconds: only a longer wait is worth a write.
            if made.is_some_and(|made| decide::remaining(made, QUOTA_PATIENCE, now).is_none()) {
                let mut report = Report::from(&world.preview, now);
                report.uncounted();
                status::write(context, &world.preview, report).await?;
            }
            return Ok(Action::requeue(QUOTA_PATIENCE));
        }
    };
    let pod = match &cell.pod {
        Some(pod) => pod.clone(),
        None => {
            let Some(epoch) = epoch_to_build_in(context, world).await? else {
                return Ok(Action::requeue(Duration::ZERO));
            };
            match make::pod(
                context,
                &tenant.cell,
                &epoch,
                envelope,
                world.policy.as_ref(),
                None,
            )
            .await?
            {
                Podded::There(pod) => *pod,
                Podded::Again => return Ok(Action::requeue(Duration::ZERO)),
                Podded::Refused(error) => return rejected(context, world, error).await,
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

/// The API server refused the pod, or a part of its cell: told within this reconciliation, with the API server's own words.
async fn rejected(context: &Context, world: &World, error: Error) -> Result<Action> {
    let Error::Kube { source, .. } = &error else {
        return Err(error);
    };
    let Some(answer) = error::status(source).filter(|s| s.is_forbidden() || s.is_invalid()) else {
        return Err(error);
    };
    let reason = if quotas::is_by_quota(&error) {
        StatusReason::QuotaExceeded
    } else {
        StatusReason::PodRejected
    };
    let mut report = Report::from(&world.preview, Timestamp::now());
    report.ending(reason, &answer.message);
    status::write(context, &world.preview, report).await?;
    Ok(Action::requeue(TOLD))
}

async fn repair(context: &Context, world: &World, envelope: &Envelope, part: Drift) -> Result<()> {
    let desired = record::had_by(&world.tenant);
    let kind = make::repair(context, &desired, &world.cell, envelope, part).await?;
    let note = format!(
        "somebody changed or removed the {kind} of cell {}; it was put back",
        world.tenant.cell
    );
    restored(context, &world.preview, kind, &note);
    Ok(())
}

/// Counts and tells that something was put back.
fn restored(context: &Context, preview: &PreviewSandbox, kind: &str, note: &str) {
    context.metrics.repairs.with_label_values(&[kind]).inc();
    let event = Event {
        type_: EventType::Warning,
        reason: "Restored".to_owned(),
        note: Some(note.to_owned()),
        // One a kind: the recorder takes events of one action for repetitions of the first, and drops their notes.
        action: format!("Restore{kind}"),
        secondary: None,
    };
    status::publish(context, preview, event);
}

/// Lets go of the pod whose end is recorded.
async fn release_pod(context: &Context, mut world: World) -> Result<Next> {
    let Some(pod) = world.cell.pod.take() else {
        return Ok(Next::Wait(Action::requeue(Duration::ZERO)));
    };
    // With its node gone nobody is left who would confirm the deletion, as a kubelet does.
    if receipt_of(&world.preview).is_some_and(|receipt| receipt.result == EndResult::ReportedGone) {
        pods::end(context, &pod, 0).await?;
    }
    let released = pods::release_pod(context, &pod).await?;
    // A kubelet that has yet to clean up confirms the deletion when it has, and the watch tells.
    if released.is_some_and(|pod| !pods::is_gone(&pod)) {
        return Ok(Next::Wait(Action::requeue(TOLD)));
    }
    dereference::leftovers(context, &mut world).await?;
    Ok(Next::Decide(Box::new(world)))
}

/// The slots are somebody else's only when nothing can run in the cell any more.
async fn remove_cell(context: &Context, mut world: World) -> Result<Next> {
    let again = Ok(Next::Wait(Action::requeue(TOLD)));
    let Some(receipt) = receipt_of(&world.preview) else {
        return again;
    };
    let closed = cells::close(context, &world, receipt).await?;
    if closed == Closed::NotYet {
        return again;
    }
    let freed = slots::give_back(context, &world.held_slots).await?;
    let returned = cells::give_back(context, &world.other_cells).await?;
    match closed {
        // Its going is waited for.
        Closed::Going => Ok(Next::Wait(wake(Some(SAFETY)))),
        _ if !(freed && returned) => again,
        _ => {
            world.cell = Cell::default();
            world.held_slots.clear();
            world.other_cells.clear();
            Ok(Next::Decide(Box::new(world)))
        }
    }
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
    if context.receipts.office.sink.is_some() {
        context.receipts.post.send(&written);
    }
    Ok(Action::requeue(TOLD))
}

/// A preview whose end is recorded, with its receipt signed.
fn with_signature(context: &Context, preview: &PreviewSandbox) -> Result<PreviewSandbox> {
    let mut preview = preview.clone();
    let signed = signed(context, &preview)?;
    if let Some(receipt) = preview.status.as_mut().and_then(|status| status.receipt.as_mut()) {
        receipt.signed = signed;
    }
    Ok(preview)
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
        // It was deleted, and nobody has signed yet. Two operators may sign now: what the spool takes first, counts.
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
        Kept::Spooled => context.receipts.post.look(),
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
            status::publish(context, preview, event);
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
