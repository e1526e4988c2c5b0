//! What is to be done next for one preview. Pure: from what was seen and the time to one [`Plan`].
//!
//! Every fact that a later decision needs is in the cluster before the act that follows from it, so that an operator killed
//! between any two writes, or another one beside it, comes to the same end.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{LimitRange, Namespace, Pod, ResourceQuota, ServiceAccount},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{ResourceExt, core::PartialObjectMeta};
use vitrine_crds::{
    Amount, PreviewPolicy, PreviewPolicySpec, PreviewSandbox, PreviewSandboxStatus, SkuListing, StatusReason,
    TimeSpan,
    conditions::{self, types},
    preview_policy::{Admission, BlockedSubject, Expiry, IsolationTargets, NodeSetAside, Requirement},
    preview_sandbox::{AbuseFinding, EndResult, IsolationEvidence, Measure, PodIdentity, TargetEvidence},
};
use vitrine_policies::{
    Envelope,
    abuse::{self, Signs},
    cell::{
        Tenant, boundary, network,
        record::{self, Record},
        seal,
    },
    envelope, names,
    probe::{Outside, UP, Verdict},
    queue::{Behind, Lack, Place},
    slots::{self, Demand},
};

use super::{
    observe::{self, End, PodView, Product, Proof, Trouble},
    report::Report,
    standing,
};
use crate::{activity::Attention, costs::Used, receipts::spool::Keep};

/// How long the unconfined prober may be silent before a proof counts as unproven.
const PROBER_PATIENCE_SECONDS: i64 = 10;
/// When to look again whether the gateways were asked, which is every five seconds.
const ASKED_SOON: Duration = Duration::from_secs(2);
/// How long a pod may be without a node before its status says so.
const NODE_PATIENCE: Duration = Duration::from_secs(2);
/// What a preview says while its probe runs.
pub const PROBING: &str = "the probe looks for a way out from inside the pod";
/// A live preview is looked at this often even if no watch says so: a lost watch must not lose an expiry.
pub const SAFETY: Duration = Duration::from_secs(30);
/// How often the first in a queue look where they stand.
const FRONT: Duration = Duration::from_secs(5);
/// An end takes one to three seconds; one that takes longer is worth a word.
pub const SLOW_END: Duration = Duration::from_secs(10);
/// How long a receipt outlives its preview where no policy says it: as long as PreviewPolicy has it by default.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long before its end a preview gets more time while time stands still: long enough for a new link to be known everywhere, and
/// for an operator that leads after another one.
pub const AHEAD: Duration = Duration::from_secs(60);
/// How much it gets: so long it lives at most once time runs again.
const STEP: Duration = Duration::from_secs(300);
/// Characters of a block's reason, as the schema has it.
const MOST_REASON: usize = 256;
/// When to look again whether it is known what pools have.
const POOLS: Duration = Duration::from_millis(50);
/// What this process has just written, the watch tells; if it is behind, it is looked at after this time.
pub const TOLD: Duration = Duration::from_secs(2);
/// How long a preview that was deleted waits for the sink before its receipt is put into the spool: most take it within milliseconds.
const SINK_PATIENCE: Duration = Duration::from_secs(2);
/// How often a node is asked whether a lost pod is gone.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What the cell holds.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// The namespace, if it exists.
    pub namespace: Option<Namespace>,
    /// Its quota.
    pub quota: Option<ResourceQuota>,
    /// The quota that closes it to everything else.
    pub closed: Option<ResourceQuota>,
    /// Its limit range.
    pub limit_range: Option<LimitRange>,
    /// Its service account.
    pub service_account: Option<ServiceAccount>,
    /// Its network policy.
    pub network_policy: Option<NetworkPolicy>,
    /// Network policies in it that are not Vitrine's.
    pub foreign_policies: Vec<String>,
    /// Its pod.
    pub pod: Option<Pod>,
}

impl Cell {
    /// The epoch that the cell is in.
    pub fn epoch(&self) -> Option<&str> {
        let namespace = self.namespace.as_ref()?;
        namespace
            .annotations()
            .get(names::EPOCH_ANNOTATION)
            .map(String::as_str)
    }

    /// Whether nothing that confines it is missing.
    pub const fn is_whole(&self) -> bool {
        self.namespace.is_some()
            && self.quota.is_some()
            && self.closed.is_some()
            && self.limit_range.is_some()
            && self.service_account.is_some()
            && self.network_policy.is_some()
    }

    /// What the verdict of its pod must carry.
    pub fn nonce(&self) -> Option<String> {
        let namespace = self.namespace.as_ref()?;
        Some(names::nonce(&namespace.name_any(), self.epoch()?))
    }
}

/// Everything that was seen.
#[derive(Clone, Debug)]
pub struct World {
    /// The preview.
    pub preview: PreviewSandbox,
    /// Who it is.
    pub tenant: Tenant,
    /// The platform's policy, if there is one.
    pub policy: Option<PreviewPolicy>,
    /// Its listing, if there is one.
    pub listing: Option<SkuListing>,
    /// Its cell.
    pub cell: Cell,
    /// Of which kind a cell would have to be in which it could be ready at once, if there is one.
    pub warm: Option<String>,
    /// Whether it is known what pools have.
    pub pools_known: bool,
    /// Where it stands in the queue, if it waits and could be admitted.
    pub place: Option<Place>,
    /// What the unconfined prober says of the proof's targets, if it was asked and answered.
    pub outside: Option<Outside>,
    /// Whether anybody looks at it, if every gateway has said so.
    pub attention: Option<Attention>,
    /// Slots that it holds and has to give back: all of them once its end is recorded, all that an admission which was cut off
    /// has left while it waits, and while it lives those that it was not admitted with.
    pub held_slots: Vec<Lease>,
    /// Cells that it has and does not live in: an admission that was cut off has left them, or two operators each took one.
    pub other_cells: Vec<PartialObjectMeta<Namespace>>,
    /// Slots that it was admitted with, and that are not its own any more.
    pub lost_slots: Vec<Lost>,
    /// What its node says that it used, if it was asked.
    pub cost: Option<Used>,
    /// What is known of it that may be taken for abuse.
    pub signs: Signs,
    /// Whether receipts go to a sink.
    pub sink: bool,
    /// Whether the sink has its receipt, as far as this process knows.
    pub acknowledged: bool,
    /// How long ago this process began to send its receipt, if it did.
    pub sent: Option<Duration>,
    /// Whether the nodes say that a lost pod is gone, if they were asked.
    pub reported_gone: Option<bool>,
    /// Whether all of it is as the watches have it, and nothing was read.
    pub unread: bool,
    /// Where Vitrine's own pods are.
    pub house: network::House,
}

/// A slot that a live preview was admitted with, and that is not its own any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Somebody deleted it, or the cluster was restored without it.
    Gone(String),
    /// Another preview has it now.
    Taken(String),
}

impl Lost {
    fn taken(&self) -> Option<&str> {
        match self {
            Self::Taken(name) => Some(name),
            Self::Gone(_) => None,
        }
    }

    fn gone(&self) -> Option<String> {
        match self {
            Self::Gone(name) => Some(name.clone()),
            Self::Taken(_) => None,
        }
    }
}

/// One part of a cell that differs from what was built, and can be put back without ending the preview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drift {
    /// Labels or annotations of the namespace.
    Namespace,
    /// The quota.
    Quota,
    /// The quota that closes it.
    Closed,
    /// The limit range.
    LimitRange,
    /// The service account.
    ServiceAccount,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Nothing before the time is over.
    Idle(Option<Duration>),
    /// Write this status, and look again after the time.
    Report(Box<Report>, Option<Duration>),
    /// Take the slots and freeze the envelope.
    Admit(Box<Envelope>, Vec<Demand>),
    /// Say why it is not admitted, and then give back the slots that an admission which was cut off has left.
    Yield(Box<Report>),
    /// Give back slots beside those that it was admitted with: another operator took them at the same time.
    Shed,
    /// Take slots again that somebody deleted under it.
    Retake(Box<Envelope>, Vec<String>, Option<Duration>),
    /// Make what is missing of the cell, then the pod.
    Provision(Box<Envelope>),
    /// Put back what drifted.
    Repair(Box<Envelope>, Vec<Drift>),
    /// The preview is ready: sign its link and say so.
    Open(Box<Report>),
    /// Its time was extended: sign a new link and say so.
    Extend(Box<Report>),
    /// What it does is taken for abuse: give it a tenth of its processor time.
    Throttle(Amount, Option<Duration>),
    /// What it did is taken for abuse: its subject gets no other for a while.
    Block(Box<BlockedSubject>),
    /// Isolation did not hold on a node: it gets no other for a while.
    SetAside(Box<NodeSetAside>),
    /// Ask the pod to end; put the network policy back if it is broken.
    EndPod(Option<Box<Envelope>>),
    /// Let go of the pod whose end is recorded.
    ReleasePod,
    /// No pod was ever made: see to it that none comes, and say so.
    NeverStarted(Box<Report>),
    /// Remove the namespace, free the slots.
    RemoveCell,
    /// It ends, or its end is proven: record it, and go on.
    Record(Box<Report>),
    /// Nothing is left: sign the receipt and say so.
    Conclude(Box<Report>),
    /// Nothing is left of one that was deleted: sign the receipt, send it, and look again after the time.
    Send(Duration),
    /// The end is recorded and nothing is left: let go of the preview, and keep its receipt if it has to be.
    ReleasePreview(Option<Keep>),
    /// It was kept long enough: delete the preview.
    Retire,
}

/// Why a preview ends, if it does. That one which was admitted is deleted, is a record of its own: nothing need be written first.
pub fn cause(preview: &PreviewSandbox) -> Option<StatusReason> {
    let status = preview.status.as_ref()?;
    if let Some(expired) = said_to_end(status) {
        let cause = serde_json::from_value(serde_json::Value::String(expired.reason.clone()));
        return Some(cause.unwrap_or(StatusReason::Deleted));
    }
    let deleted = preview.metadata.deletion_timestamp.is_some() && is_held(preview);
    (deleted && conditions::is_true(&status.conditions, types::ADMITTED)).then_some(StatusReason::Deleted)
}

/// Whether our finalizer is on it: without, nothing outside of it was ever made.
pub fn is_held(preview: &PreviewSandbox) -> bool {
    preview.finalizers().iter().any(|f| f == names::PREVIEW_FINALIZER)
}

fn said_to_end(status: &PreviewSandboxStatus) -> Option<&Condition> {
    conditions::find(&status.conditions, types::EXPIRED).filter(|said| said.status == "True")
}

/// Decides.
pub fn decide(world: &World, now: Timestamp) -> Plan {
    let preview = &world.preview;
    let status = preview.status.clone().unwrap_or_default();
    let deleted = preview.metadata.deletion_timestamp.is_some();
    let ours = is_held(preview);

    if status.phase.is_terminal() {
        return finished(&status, world, deleted, ours, now);
    }
    if let Some(cause) = cause(preview) {
        return ending(&status, world, cause, now);
    }
    if deleted {
        return if !ours {
            Plan::Idle(None)
        } else if status.admitted_at.is_none() && !world.has_what_it_should_not() {
            // It waited, or was refused: nothing was ever made for it.
            Plan::ReleasePreview(None)
        } else {
            end(world, StatusReason::Deleted, "the preview was deleted", now)
        };
    }
    if conditions::is_true(&status.conditions, types::ADMITTED) {
        match admitted(&status, world, now) {
            // Why it ends is recorded: what follows needs no other look.
            Plan::Report(report, _) if said_to_end(&report.status).is_some() => Plan::Record(report),
            plan => plan,
        }
    } else {
        match admission(world, now) {
            // Only who is admitted keeps what an admission that was cut off has left.
            Plan::Report(mut report, _) if world.has_what_it_should_not() => {
                report.yielded();
                Plan::Yield(report)
            }
            plan => plan,
        }
    }
}

fn finished(status: &PreviewSandboxStatus, world: &World, deleted: bool, ours: bool, now: Timestamp) -> Plan {
    if deleted {
        if !ours {
            return Plan::Idle(None);
        }
        let keep = owed(status, world, now);
        let over = conditions::find(&status.conditions, types::TORN_DOWN);
        let left = over.and_then(|over| remaining(over.last_transition_time.0, SINK_PATIENCE, now));
        return match (keep, left) {
            (Some(Keep::UntilDelivered), Some(left)) => Plan::Idle(Some(left)),
            (keep, _) => Plan::ReleasePreview(keep),
        };
    }
    // From the end of everything, not of the pod: a namespace can take longer to go than a short retention lasts.
    let Some(finished) = conditions::find(&status.conditions, types::TORN_DOWN) else {
        return Plan::Idle(None);
    };
    // Without a policy nobody says how long: it is kept.
    let Some(policy) = &world.policy else {
        return Plan::Idle(None);
    };
    match remaining(
        finished.last_transition_time.0,
        policy.spec.retention.as_duration(),
        now,
    ) {
        None => Plan::Retire,
        Some(left) => Plan::Idle(Some(left)),
    }
}

/// Whether the receipt of a preview that is about to go has to be kept without it.
fn owed(status: &PreviewSandboxStatus, world: &World, now: Timestamp) -> Option<Keep> {
    let receipt = status.receipt.as_ref()?;
    // Of what was never admitted nothing ever ran: nobody asks for its end.
    status.admitted_at.as_ref()?;
    if world.sink {
        let has_it = receipt.delivered_at.is_some() || world.acknowledged;
        return (!has_it).then_some(Keep::UntilDelivered);
    }
    let retention = world
        .policy
        .as_ref()
        .map_or(RETENTION, |policy| policy.spec.retention.as_duration());
    let until = receipt
        .ended_at
        .0
        .saturating_add(SignedDuration::try_from(retention).unwrap_or_default())
        .ok()?;
    (until > now).then_some(Keep::Until(until))
}

fn admission(world: &World, now: Timestamp) -> Plan {
    let preview = &world.preview;
    let refused = |reason, message: &str, again| {
        let report = Report::refused(preview, reason, message, now);
        Plan::Report(Box::new(report), again)
    };
    let Some(all) = &world.policy else {
        let message = "the cluster has no PreviewPolicy named \"default\": install the chart or create one";
        let report = Report::queued(preview, StatusReason::PolicyNotFound, message, None, now);
        return Plan::Report(Box::new(report), None);
    };
    let policy = &all.spec;
    if let Some(block) = envelope::blocked(all, &preview.spec.subject, now) {
        let until = block.until.as_ref().map(|until| until.0);
        let message = match until {
            Some(until) => format!("this subject gets no preview until {until}"),
            None => "this subject gets no preview".to_owned(),
        };
        let again = until.and_then(|then| self::until(then, now));
        return refused(StatusReason::SubjectBlocked, &message, again);
    }
    let Some(listing) = &world.listing else {
        let message = format!(
            "no SkuListing {:?} in namespace {:?}",
            preview.spec.listing_ref.name, world.tenant.namespace
        );
        return wait(world, policy, StatusReason::ListingNotFound, &message, None, now);
    };
    let pinned = &preview.spec.listing_ref;
    if pinned
        .uid
        .as_ref()
        .is_some_and(|uid| Some(uid) != listing.metadata.uid.as_ref())
        || pinned
            .generation
            .is_some_and(|generation| Some(generation) != listing.metadata.generation)
    {
        let message = format!(
            "the preview pins another state of the listing than {}",
            envelope::listing_identity(listing)
        );
        return refused(StatusReason::ListingChanged, &message, None);
    }
    let envelope = match envelope::resolve(policy, listing, preview) {
        Ok(envelope) => envelope,
        Err(refusal) => return refused(StatusReason::OutsideEnvelope, &refusal.to_string(), None),
    };
    if policy.maintenance.admission == Admission::Suspended {
        let message =
            "the platform lets no new previews in for now (PreviewPolicy spec.maintenance.admission)";
        return wait(
            world,
            policy,
            StatusReason::AdmissionSuspended,
            message,
            None,
            now,
        );
    }
    match &world.place {
        Some(Place::Behind(behind)) => {
            let reason = match behind.lack {
                Lack::Slots { .. } => StatusReason::WaitingForSlot,
                Lack::Room { .. } => StatusReason::WaitingForCapacity,
            };
            wait(world, policy, reason, &behind.words(), Some(behind), now)
        }
        // It may be ready at once.
        _ if !world.pools_known && world.warm.is_none() => Plan::Idle(Some(POOLS)),
        // Late or not: what is free is better given than refused.
        _ => Plan::Admit(Box::new(envelope), slots::demands(policy, listing, preview)),
    }
}

/// Says what a preview waits for; ends it when it has waited too long.
fn wait(
    world: &World,
    policy: &PreviewPolicySpec,
    reason: StatusReason,
    message: &str,
    behind: Option<&Behind>,
    now: Timestamp,
) -> Plan {
    let deadline = policy.queue.deadline;
    let made = world
        .preview
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |t| t.0);
    let Some(left) = remaining(made, deadline.as_duration(), now) else {
        let message = format!("it waited {deadline}, as long as a preview may: {message}");
        return end(world, StatusReason::QueueDeadline, &message, now);
    };
    let report = Report::queued(&world.preview, reason, message, behind, now);
    // Whose turn it is, is woken. The others only say where they stand, and those in front more often: a long queue must not
    // write all its places whenever one moves.
    let look = behind.and_then(|behind| u64::try_from(behind.position).ok());
    let look = look.map_or(SAFETY, |place| Duration::from_secs(place).clamp(FRONT, SAFETY));
    Plan::Report(Box::new(report), Some(left.min(look)))
}

fn admitted(status: &PreviewSandboxStatus, world: &World, now: Timestamp) -> Plan {
    if world.has_what_it_should_not() {
        return Plan::Shed;
    }
    let Some(envelope) = thaw(status, world) else {
        return end(
            world,
            StatusReason::SealBroken,
            "the preview's status carries no readable envelope",
            now,
        );
    };
    let ready = conditions::is_true(&status.conditions, types::READY);
    if let (true, Some(expires)) = (ready, &status.expires_at)
        && expires.0 <= now
    {
        return end(
            world,
            StatusReason::TimeOver,
            &format!("its time was over at {}", expires.0),
            now,
        );
    }
    let deadline = status
        .admitted_at
        .as_ref()
        .map(|t| remaining(t.0, envelope.provisioning_deadline.as_duration(), now));
    let too_late = !ready && matches!(deadline, Some(None));

    if !conditions::is_true(&status.conditions, types::PROVISIONED) {
        if too_late {
            return end(
                world,
                StatusReason::ProvisioningDeadline,
                &late(&envelope, "the cell was not made"),
                now,
            );
        }
        if world.listing.as_ref().map(envelope::listing_identity).as_deref()
            != Some(envelope.listing.as_str())
        {
            return end(
                world,
                StatusReason::ListingChanged,
                "the listing was changed or removed during admission",
                now,
            );
        }
        // A cell that others had before: what confines it is looked at before anything is made in it.
        if world.cell.is_whole() && world.cell.pod.is_none() {
            if let Some(broken) = seal_broken(status, world, &envelope) {
                return end(world, StatusReason::SealBroken, &broken, now);
            }
            let drift = drifted(world, &envelope);
            if !drift.is_empty() {
                return Plan::Repair(Box::new(envelope), drift);
            }
        }
        return Plan::Provision(Box::new(envelope));
    }

    if let Some(broken) = seal_broken(status, world, &envelope).or_else(|| planted(world, &envelope)) {
        return end(world, StatusReason::SealBroken, &broken, now);
    }
    let Some(pod) = &world.cell.pod else {
        return end(
            world,
            StatusReason::PodLost,
            "the pod is gone and nobody here ended it",
            now,
        );
    };
    if pod.uid() != status.pod.as_ref().map(|p| p.uid.clone()) {
        return end(
            world,
            StatusReason::SealBroken,
            "another pod stands in the cell than the one that was made",
            now,
        );
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return end(world, StatusReason::PodLost, "somebody else deleted the pod", now);
    }
    let drift = drifted(world, &envelope);
    if !drift.is_empty() {
        return Plan::Repair(Box::new(envelope), drift);
    }
    let view = observe::view(pod, &world.cell.nonce().unwrap_or_default());
    if let Some(plan) = given_up(&view, ready, world, now) {
        return plan;
    }
    if too_late {
        let (reason, what) = match &view.trouble {
            Some(trouble) => (trouble.reason, trouble.message.as_str()),
            None => (StatusReason::ProvisioningDeadline, "the product does not answer"),
        };
        return end(world, reason, &late(&envelope, what), now);
    }
    if let Some(taken) = world.lost_slots.iter().find_map(Lost::taken) {
        let message = format!("somebody deleted its slot {taken}, and another preview was admitted with it");
        return end(world, StatusReason::SlotLost, &message, now);
    }
    if let (true, Some(plan)) = (ready, prolonged(status, world, now)) {
        return plan;
    }
    let wake = if ready {
        let expires = status.expires_at.as_ref();
        let left = expires.and_then(|t| until(t.0, now));
        // When it is to be prolonged; at its end if that is nearer, because it can be prolonged no more.
        left.map(|left| match left.saturating_sub(world.prolongs()) {
            Duration::ZERO => left,
            sooner => sooner,
        })
    } else {
        deadline.flatten()
    };
    let mut wake = Some(wake.unwrap_or(SAFETY).min(SAFETY));
    if ready {
        let policy = world.policy.as_ref();
        match policy.and_then(|policy| deserted(status, policy, world.attention.as_ref())) {
            Some(Deserted::Since(reason, message)) => return end(world, reason, &message, now),
            // A little later if it is over by now: the gateways are asked in between.
            Some(Deserted::From(time)) => wake = wake.min(until(time, now).or(Some(ASKED_SOON))),
            None => {}
        }
        let plan = extension(status, world, wake, now);
        let idles = match &plan {
            Plan::Idle(_) => true,
            Plan::Report(report, _) => !report.differs(&world.preview),
            _ => false,
        };
        // First what its owner asked for: a throttle that the cluster refuses is tried again at every look.
        let abused = idles
            .then(|| abused(status, world, &envelope, wake, now))
            .flatten();
        // Last: whether slots can be taken is nothing that a preview's own safety may wait for.
        let plan = abused.unwrap_or(plan);
        match plan {
            Plan::Idle(_) if !world.lost_slots.is_empty() => {
                let gone = world.lost_slots.iter().filter_map(Lost::gone).collect();
                Plan::Retake(Box::new(envelope), gone, wake)
            }
            plan => plan,
        }
    } else {
        progress(status, world, &view, &envelope, wake, now)
    }
}

/// Nobody looks at a preview.
pub enum Deserted {
    /// For as long as the policy lets it be.
    Since(StatusReason, String),
    /// It will have been for so long at that time, if nobody comes.
    From(Timestamp),
}

/// Whether nobody has opened a preview, or nobody uses it any more, for longer than the policy lets it be; `None` if somebody is
/// there, or the policy does not mind, or nobody knows.
pub fn deserted(
    status: &PreviewSandboxStatus,
    policy: &PreviewPolicy,
    attention: Option<&Attention>,
) -> Option<Deserted> {
    let traffic = &policy.spec.traffic;
    let (known, started) = (attention?, status.started_at.as_ref()?.0);
    if known.open {
        return None;
    }
    let (patience, from, reason, what) = match known.last {
        None => (
            traffic.unopened?,
            started,
            StatusReason::Unopened,
            "nobody has opened it",
        ),
        Some(last) => (traffic.idle?, last, StatusReason::Idle, "nobody has used it"),
    };
    // What was before all gateways counted, nobody knows.
    let from = from.max(known.since);
    let over = from.saturating_add(SignedDuration::try_from(patience.as_duration()).unwrap_or_default());
    let over = over.ok()?;
    Some(if over <= known.at {
        Deserted::Since(reason, format!("{what} for {patience}"))
    } else {
        Deserted::From(over)
    })
}

/// The pod, or what is in it, has ended or cannot come to be.
fn given_up(view: &PodView, ready: bool, world: &World, now: Timestamp) -> Option<Plan> {
    let stop = |reason, message: &str| Some(end(world, reason, message, now));
    if let Some((reason, broken)) = &view.watch_broken {
        return stop(*reason, broken);
    }
    if let Proof::Failed(reason, message) = &view.proof {
        return stop(*reason, message);
    }
    // The sidecar ends before its liveness can end the product: a product that ended beside a sound one ended by itself.
    if let Product::Ended { why } = &view.product {
        let (reason, when) = if ready {
            (StatusReason::ProductExited, "after it was ready")
        } else {
            (StatusReason::ProductCrashed, "before it was ready")
        };
        return stop(reason, &format!("the product ended by itself {when}, {why}"));
    }
    if let Some(message) = &view.given_up {
        return stop(StatusReason::PodRejected, message);
    }
    match &view.trouble {
        Some(Trouble {
            reason,
            message,
            hopeless: true,
        }) => stop(*reason, message),
        _ => None,
    }
}

/// A pod on its way to being ready.
fn progress(
    status: &PreviewSandboxStatus,
    world: &World,
    view: &PodView,
    envelope: &Envelope,
    wake: Option<Duration>,
    now: Timestamp,
) -> Plan {
    let mut report = Report::from(&world.preview, now);
    let Proof::Isolated(verdict) = &view.proof else {
        let (reason, message) = match &view.trouble {
            Some(trouble) => (trouble.reason, trouble.message.clone()),
            None if view.node.is_none() => (StatusReason::WaitingForNode, "waiting for a node".to_owned()),
            None => (StatusReason::ProbeRunning, PROBING.to_owned()),
        };
        // A pod is without a node for its first milliseconds: that is not worth a write.
        let young = status
            .admitted_at
            .as_ref()
            .is_some_and(|t| remaining(t.0, NODE_PATIENCE, now).is_some());
        if young && reason == StatusReason::WaitingForNode {
            return Plan::Idle(Some(NODE_PATIENCE));
        }
        report.proving(reason, &message);
        return Plan::Report(Box::new(report), wake);
    };
    report.status.node = view.node.clone();
    report.status.pod = Some(PodIdentity {
        uid: view.uid.clone(),
        ip: view.ip.clone(),
        port: i32::from(envelope.port),
        nonce: world.cell.nonce(),
    });

    if status.isolation.is_none() {
        let Some(outside) = &world.outside else {
            let waited = now.as_second() - status.admitted_at.as_ref().map_or(0, |t| t.0.as_second());
            let patience = i64::try_from(envelope.proof_deadline.as_secs()).unwrap_or(i64::MAX)
                + PROBER_PATIENCE_SECONDS;
            if waited > patience {
                let message =
                    "the unconfined prober did not answer, so nobody knows that the targets were up";
                return end(world, StatusReason::Unproven, message, now);
            }
            return Plan::Idle(Some(Duration::from_millis(500)));
        };
        let targets = evidence(verdict, outside);
        if let Some(down) = targets.iter().find(|t| t.required && t.outside != UP) {
            let message = format!(
                "{} ({}) was silent, but it was not up either ({}): its silence proves nothing",
                down.name, down.address, down.outside
            );
            return end(world, StatusReason::Unproven, &message, now);
        }
        report.status.isolation = Some(IsolationEvidence {
            proven_at: Time(now),
            pod_uid: view.uid.clone(),
            rounds: i32::try_from(verdict.rounds).unwrap_or(i32::MAX),
            image_volumes: verdict.image_volumes,
            targets,
        });
    }
    report.isolated();
    if view.watching && view.product == (Product::Running { ready: true }) && view.ip.is_some() {
        report.ready(envelope.ttl.as_duration());
        return Plan::Open(Box::new(report));
    }
    match &view.trouble {
        Some(trouble) => report.not_ready(trouble.reason, &trouble.message),
        None => report.not_ready(StatusReason::ProductStarting, "isolated; the product is starting"),
    }
    Plan::Report(Box::new(report), wake)
}

impl World {
    /// Slots or cells that it has and does not live with.
    const fn has_what_it_should_not(&self) -> bool {
        !self.held_slots.is_empty() || !self.other_cells.is_empty()
    }

    /// How long before its end a preview is looked at so that its time can stand still.
    fn prolongs(&self) -> Duration {
        let maintenance = self.policy.as_ref().map(|policy| &policy.spec.maintenance);
        if maintenance.is_some_and(|maintenance| maintenance.expiry == Expiry::Suspended) {
            AHEAD
        } else {
            Duration::ZERO
        }
    }
}

/// While time stands still, a preview that is about to end gets a little more, up to the longest that it may come to live: the
/// bound that its pod has too.
fn prolonged(status: &PreviewSandboxStatus, world: &World, now: Timestamp) -> Option<Plan> {
    let ahead = Some(world.prolongs()).filter(|ahead| !ahead.is_zero())?;
    let (started, expires) = (status.started_at.as_ref()?.0, status.expires_at.as_ref()?.0);
    let cap = status.envelope.as_ref()?.ttl_cap.as_duration();
    let new = after(expires, STEP).min(after(started, cap));
    if until(expires, now).is_some_and(|left| left > ahead) || new <= expires {
        return None;
    }
    let lives = u64::try_from(new.duration_since(started).as_secs()).ok()?;
    let mut report = Report::from(&world.preview, now);
    report.extended(TimeSpan::from_secs(lives), new);
    Some(Plan::Extend(Box::new(report)))
}

/// What a preview does is taken for abuse. The finding is written first, so that what follows from it survives whoever found it;
/// the block comes before the end, so that nobody slips in between.
fn abused(
    status: &PreviewSandboxStatus,
    world: &World,
    envelope: &Envelope,
    wake: Option<Duration>,
    now: Timestamp,
) -> Option<Plan> {
    let policy = world.policy.as_ref()?;
    let rules = policy.spec.abuse.as_ref()?;
    let judgement = abuse::judge(rules, &world.signs);
    let known = status.abuse.as_ref();
    if let Some(measure) = judgement.measure
        && known.is_none_or(|known| measure > known.measure)
    {
        let mut report = Report::from(&world.preview, now);
        report.status.abuse = Some(AbuseFinding {
            score: judgement.score,
            measure,
            reasons: judgement.reasons,
            at: Time(now),
        });
        return Some(Plan::Report(Box::new(report), Some(TOLD)));
    }
    let known = known?;
    let reasons = known.reasons.join(", ");
    match known.measure {
        Measure::Throttle => {
            let allowed = abuse::throttled(envelope.cpu);
            let pod = world.cell.pod.as_ref()?;
            (observe::cpu_limit(pod)? > allowed).then_some(Plan::Throttle(allowed, wake))
        }
        Measure::End | Measure::Block => {
            if let Some(plan) = unblocked(status, world, now) {
                return Some(plan);
            }
            let message = format!("taken for abuse, {} points: {reasons}", known.score);
            Some(end(world, StatusReason::Abuse, &message, now))
        }
    }
}

/// The block of a preview's subject, if it is to be blocked and is not yet.
fn unblocked(status: &PreviewSandboxStatus, world: &World, now: Timestamp) -> Option<Plan> {
    let found = status
        .abuse
        .as_ref()
        .filter(|found| found.measure == Measure::Block)?;
    let policy = world.policy.as_ref()?;
    let time = policy.spec.abuse.as_ref()?.block_for.as_duration();
    let until = after(found.at.0, time);
    let subject = &world.preview.spec.subject;
    (until > now && envelope::blocked(policy, subject, now).is_none()).then(|| {
        Plan::Block(Box::new(BlockedSubject {
            sha256: envelope::subject_hash(subject),
            until: Some(Time(until)),
            reason: Some(found.reasons.join(", ").chars().take(MOST_REASON).collect()),
        }))
    })
}

/// What has to be remembered of a preview that ends.
fn remembered(
    status: &PreviewSandboxStatus,
    world: &World,
    cause: StatusReason,
    now: Timestamp,
) -> Option<Plan> {
    untrusted(status, world, cause, now).or_else(|| unblocked(status, world, now))
}

/// The node of a preview whose isolation did not hold, if it is to be set aside and is not yet.
fn untrusted(
    status: &PreviewSandboxStatus,
    world: &World,
    cause: StatusReason,
    now: Timestamp,
) -> Option<Plan> {
    if !matches!(
        cause,
        StatusReason::IsolationBroken | StatusReason::NetworkNotEnforcing | StatusReason::ImageVolumes
    ) {
        return None;
    }
    let policy = world.policy.as_ref()?;
    let quarantine = policy.spec.isolation.node_quarantine?.as_duration();
    let name = node_of(world).or_else(|| status.node.clone())?;
    let seen = conditions::find(&status.conditions, types::EXPIRED)?;
    // A sidecar that was killed says nothing of the node.
    if cause == StatusReason::IsolationBroken && !seen.message.starts_with(observe::BREACH) {
        return None;
    }
    let until = after(seen.last_transition_time.0, quarantine);
    let mut known = policy.status.iter().flat_map(|status| &status.nodes_set_aside);
    let already = known.any(|node| node.name == name && node.until.0 >= until);
    (until > now && !already).then(|| {
        Plan::SetAside(Box::new(NodeSetAside {
            name,
            until: Time(until),
            reason: seen.message.chars().take(standing::MOST_REASON).collect(),
        }))
    })
}

/// A ready preview whose `ttl` has grown lives longer, within the envelope as it is now.
fn extension(status: &PreviewSandboxStatus, world: &World, wake: Option<Duration>, now: Timestamp) -> Plan {
    let (Some(policy), Some(started), Some(expires), Some(frozen)) = (
        &world.policy,
        &status.started_at,
        &status.expires_at,
        &status.envelope,
    ) else {
        return Plan::Idle(wake);
    };
    let Some(asked) = world.preview.spec.ttl.filter(|asked| *asked > frozen.ttl) else {
        return Plan::Idle(wake);
    };
    let allowed = envelope::time_to_live(&policy.spec, world.listing.as_ref(), &world.preview).is_ok()
        && asked <= frozen.ttl_cap;
    let new = started
        .0
        .saturating_add(SignedDuration::try_from(asked.as_duration()).unwrap_or_default());
    let mut report = Report::from(&world.preview, now);
    match (allowed, new) {
        (true, Ok(new)) if new > expires.0 => {
            report.extended(asked, new);
            Plan::Extend(Box::new(report))
        }
        _ => {
            report.extension_refused(&format!(
                "ttl {asked} is outside the envelope, at most {}; it ends at {} as before",
                frozen.ttl_cap, expires.0
            ));
            Plan::Report(Box::new(report), wake)
        }
    }
}

fn ending(status: &PreviewSandboxStatus, world: &World, cause: StatusReason, now: Timestamp) -> Plan {
    if let Some(pod) = &world.cell.pod {
        let end = observe::end(pod);
        let result = match end {
            End::Verified => EndResult::Verified,
            End::NeverStarted => EndResult::NeverStarted,
            // Its node was removed, and nobody is left who could show how it ended.
            End::Pending if world.reported_gone == Some(true) => EndResult::ReportedGone,
            End::NotAsked => {
                let broken = (cause == StatusReason::SealBroken)
                    .then(|| thaw(status, world))
                    .flatten()
                    .filter(|envelope| seal_broken(status, world, envelope).is_some());
                return Plan::EndPod(broken.map(Box::new));
            }
            // The pod is told to end first, and that it has ended is recorded first: neither waits for the policy's status.
            End::Pending => {
                return remembered(status, world, cause, now)
                    .unwrap_or_else(|| pending(pod, world, cause, now));
            }
        };
        // Also where it was said already that none ever started: the API server had let this one in, and was slow to store it.
        let news = status
            .receipt
            .as_ref()
            .is_none_or(|said| end == End::Verified && said.result == EndResult::NeverStarted);
        if news {
            let mut report = begun(world, now);
            report.ended(&world.tenant, cause, result, world.cost.as_ref());
            // The pod goes, and where it was may still be needed.
            report.status.node = report.status.node.or_else(|| node_of(world));
            return Plan::Record(Box::new(report));
        }
        if pod.finalizers().iter().any(|f| f == names::POD_FINALIZER) {
            return Plan::ReleasePod;
        }
        // Let go already: the kubelet removes the object when it has cleaned up, and the watch tells.
        return Plan::Idle(Some(SAFETY));
    }
    if status.receipt.is_some() {
        // The pod is gone: the namespace is told to go and the slots are freed, since others wait for them; then it is waited for.
        if world.cell.namespace.is_some() || world.has_what_it_should_not() {
            return Plan::RemoveCell;
        }
        if let Some(plan) = remembered(status, world, cause, now) {
            return plan;
        }
        if world.preview.metadata.deletion_timestamp.is_some() {
            return vanishes(status, world, now);
        }
        let mut report = Report::from(&world.preview, now);
        report.torn_down();
        return Plan::Conclude(Box::new(report));
    }
    let mut report = begun(world, now);
    if status.pod.is_none() {
        report.ended(&world.tenant, cause, EndResult::NeverStarted, None);
        return Plan::NeverStarted(Box::new(report));
    }
    if world.reported_gone == Some(true) {
        report.ended(&world.tenant, cause, EndResult::ReportedGone, world.cost.as_ref());
        return Plan::Record(Box::new(report));
    }
    report.unknown(cause, status.node.as_deref());
    Plan::Report(Box::new(report), Some(ASK_AGAIN))
}

/// The status of a preview that ends: one that was deleted may not say so yet.
fn begun(world: &World, now: Timestamp) -> Report {
    let mut report = Report::from(&world.preview, now);
    if let (Some(at), None) = (
        &world.preview.metadata.deletion_timestamp,
        said_to_end(&report.status),
    ) {
        report.deleted(at);
    }
    report
}

/// A preview of which nothing is left but itself, and which was deleted: nobody reads what its status would say. Its receipt is all
/// that remains.
fn vanishes(status: &PreviewSandboxStatus, world: &World, now: Timestamp) -> Plan {
    let keep = owed(status, world, now);
    if keep != Some(Keep::UntilDelivered) {
        return Plan::ReleasePreview(keep);
    }
    match world.sent {
        None => Plan::Send(SINK_PATIENCE),
        Some(ago) if ago < SINK_PATIENCE => Plan::Idle(Some(SINK_PATIENCE - ago)),
        Some(_) => Plan::ReleasePreview(keep),
    }
}

/// A pod that was asked to end and has not yet. Said in the status only when it takes longer than ends do.
fn pending(pod: &Pod, world: &World, cause: StatusReason, now: Timestamp) -> Plan {
    let asked = pod.metadata.deletion_timestamp.as_ref().map_or(now, |t| t.0);
    if let Some(left) = remaining(asked, SLOW_END, now) {
        return Plan::Idle(Some(left));
    }
    let mut report = begun(world, now);
    let node = pod
        .spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .unwrap_or("the node");
    report.ending(
        cause,
        &format!("{node} has not shown every container terminated: is its kubelet running?"),
    );
    Plan::Report(Box::new(report), Some(SAFETY))
}

/// The node that a preview's pod was bound to.
fn node_of(world: &World) -> Option<String> {
    world.cell.pod.as_ref()?.spec.as_ref()?.node_name.clone()
}

fn end(world: &World, cause: StatusReason, message: &str, now: Timestamp) -> Plan {
    let mut report = Report::from(&world.preview, now);
    report.ending(cause, message);
    Plan::Report(Box::new(report), Some(TOLD))
}

fn thaw(status: &PreviewSandboxStatus, world: &World) -> Option<Envelope> {
    let isolation = world
        .policy
        .as_ref()
        .map_or_else(no_targets, |p| p.spec.isolation.clone());
    Envelope::thaw(status.envelope.as_ref()?, world.listing.as_ref(), &isolation).ok()
}

/// Without a policy no pod is made; what already runs needs no targets.
fn no_targets() -> IsolationTargets {
    IsolationTargets {
        internet: vec![],
        metadata: vec![],
        // Nobody asks it.
        kubelet_port: 0,
        node_ports: vec![],
        node_targets: Requirement::Required,
        metadata_target: Requirement::Required,
        image_volumes: Requirement::Required,
        node_quarantine: None,
    }
}

/// How the network policies of a cell show themselves: uid and generation, so that a change that was undone is seen too.
pub fn seal_identity<K: ResourceExt>(policy: &K) -> String {
    format!(
        "{}/{}",
        policy.uid().unwrap_or_default(),
        policy.meta().generation.unwrap_or_default()
    )
}

/// In words what is wrong with the seal that cannot be mended: connections opened in the gap would outlive the repair.
fn seal_broken(status: &PreviewSandboxStatus, world: &World, envelope: &Envelope) -> Option<String> {
    let Some(namespace) = &world.cell.namespace else {
        return Some("the cell's namespace is gone".to_owned());
    };
    let had = Record::of(&namespace.metadata).and_then(|record| record.tenant);
    if had.is_some_and(|had| had != world.tenant.uid) {
        return Some("another preview was given the cell".to_owned());
    }
    if namespace.metadata.deletion_timestamp.is_some() {
        return Some("somebody deleted the cell's namespace".to_owned());
    }
    if let Some(foreign) = world.cell.foreign_policies.first() {
        return Some(format!(
            "a foreign NetworkPolicy {foreign:?} was put into the cell"
        ));
    }
    let Some(policy) = &world.cell.network_policy else {
        return Some("the NetworkPolicy was deleted".to_owned());
    };
    let desired = network::policy(&world.tenant.cell, envelope, &world.house);
    if !seal::same(&desired.spec, &policy.spec) {
        return Some("the NetworkPolicy was changed".to_owned());
    }
    if status
        .seal
        .as_ref()
        .is_some_and(|seal| *seal != seal_identity(policy))
    {
        return Some("the NetworkPolicy was changed and put back, or made anew".to_owned());
    }
    None
}

/// In words what is in the cell of a live preview beside what is its own. Before its pod is made, the quota says that itself by what it refuses.
fn planted(world: &World, envelope: &Envelope) -> Option<String> {
    quotas(&world.tenant.cell, &world.cell, envelope).find_map(|(live, desired)| {
        let kind = boundary::exceeded(live, &desired).next()?;
        Some(format!("there are more {kind} in the cell than its own"))
    })
}

/// The quotas of a cell that are there, beside what they are to be.
fn quotas<'a>(
    name: &str,
    cell: &'a Cell,
    envelope: &Envelope,
) -> impl Iterator<Item = (&'a ResourceQuota, ResourceQuota)> {
    let quota = cell
        .quota
        .as_ref()
        .map(|live| (live, boundary::quota(name, envelope)));
    let closed = cell.closed.as_ref().map(|live| (live, boundary::closed(name)));
    quota.into_iter().chain(closed)
}

/// In words what is wrong with what confines a cell that nobody has.
pub fn unsealed(
    name: &str,
    cell: &Cell,
    envelope: &Envelope,
    house: &network::House,
) -> Option<&'static str> {
    let spoiled = |live: Option<bool>| live == Some(false);
    let policy = network::policy(name, envelope, house);
    if spoiled(
        cell.network_policy
            .as_ref()
            .map(|live| seal::same(&policy.spec, &live.spec)),
    ) {
        return Some("the NetworkPolicy");
    }
    // Admission goes by what the status says is allowed (k8s.io/apiserver, plugin/resourcequota).
    let allowed = |live: &ResourceQuota| {
        let (spec, status) = (live.spec.as_ref(), live.status.as_ref());
        let allowed = status.and_then(|status| status.hard.as_ref());
        allowed.is_none() || allowed == spec.and_then(|spec| spec.hard.as_ref())
    };
    for (live, desired) in quotas(name, cell, envelope) {
        if !(is_quota(&desired, live) && allowed(live)) {
            return Some("the ResourceQuota");
        }
        if boundary::exceeded(live, &desired).next().is_some() {
            return Some("what is in it, by its ResourceQuota");
        }
    }
    let range = boundary::limit_range(name, envelope);
    if spoiled(cell.limit_range.as_ref().map(|live| seal::holds(&range, live))) {
        return Some("the LimitRange");
    }
    let account = boundary::service_account(name);
    spoiled(
        cell.service_account
            .as_ref()
            .map(|live| seal::holds(&account, live)),
    )
    .then_some("the ServiceAccount")
}

/// Whether a quota is what was built. The hard limits exactly: an additional scope or key could widen as well.
fn is_quota(desired: &ResourceQuota, live: &ResourceQuota) -> bool {
    seal::holds(desired, live) && seal::same(&desired.spec, &live.spec)
}

fn drifted(world: &World, envelope: &Envelope) -> Vec<Drift> {
    let (cell, tenant) = (&world.cell, &world.tenant);
    let gone_or = |holds: Option<bool>| !holds.unwrap_or(false);
    let mut drift = vec![];
    if gone_or(
        cell.namespace
            .as_ref()
            .map(|live| seal::holds(&record::had_by(tenant), live)),
    ) {
        drift.push(Drift::Namespace);
    }
    for (part, live, desired) in [
        (Drift::Quota, &cell.quota, boundary::quota(&tenant.cell, envelope)),
        (Drift::Closed, &cell.closed, boundary::closed(&tenant.cell)),
    ] {
        if gone_or(live.as_ref().map(|live| is_quota(&desired, live))) {
            drift.push(part);
        }
    }
    let range = boundary::limit_range(&tenant.cell, envelope);
    if gone_or(cell.limit_range.as_ref().map(|live| seal::holds(&range, live))) {
        drift.push(Drift::LimitRange);
    }
    let account = boundary::service_account(&tenant.cell);
    if gone_or(
        cell.service_account
            .as_ref()
            .map(|live| seal::holds(&account, live)),
    ) {
        drift.push(Drift::ServiceAccount);
    }
    drift
}

/// What was seen of each target from inside, beside what it answered outside.
pub fn evidence(verdict: &Verdict, outside: &Outside) -> Vec<TargetEvidence> {
    verdict
        .targets
        .iter()
        .map(|seen| TargetEvidence {
            name: seen.name.clone(),
            address: seen.address.clone(),
            required: seen.required,
            inside: seen.outcome.words(),
            outside: outside
                .get(&seen.address)
                .cloned()
                .unwrap_or_else(|| "not asked".to_owned()),
        })
        .collect()
}

fn late(envelope: &Envelope, what: &str) -> String {
    format!(
        "not ready within {} of its slot: {what}",
        envelope.provisioning_deadline
    )
}

/// How much of `span` is left since `start`; `None` when nothing is.
pub(super) fn remaining(start: Timestamp, span: Duration, now: Timestamp) -> Option<Duration> {
    until(after(start, span), now)
}

/// A time so long after another one; the end of all times if there is none.
fn after(start: Timestamp, span: Duration) -> Timestamp {
    start
        .saturating_add(SignedDuration::try_from(span).unwrap_or_default())
        .unwrap_or(Timestamp::MAX)
}

pub(super) fn until(then: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(then.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())
}
