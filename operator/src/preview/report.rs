//! A preview's next status, in one place for each transition. Pure: conditions, phase and words.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use vitrine_crds::{
    Phase, PreviewSandbox, PreviewSandboxStatus, StatusReason, TimeSpan,
    conditions::{self, types},
    preview_sandbox::{EndResult, Receipt},
};
use vitrine_policies::{Envelope, cell::Tenant, queue::Behind};

use crate::costs::Used;

/// A status under construction.
#[derive(Clone, Debug)]
pub struct Report {
    /// The status as it is to be.
    pub status: PreviewSandboxStatus,
    uid: String,
    generation: Option<i64>,
    now: Time,
}

impl Report {
    /// Starts from what the preview says now.
    pub fn from(preview: &PreviewSandbox, now: Timestamp) -> Self {
        let mut status = preview.status.clone().unwrap_or_default();
        status.observed_generation = preview.metadata.generation;
        Self {
            status,
            uid: preview.uid().unwrap_or_default(),
            generation: preview.metadata.generation,
            now: Time(now),
        }
    }

    /// Waits, for a slot or for something that must exist first.
    pub fn queued(
        preview: &PreviewSandbox,
        reason: StatusReason,
        message: &str,
        behind: Option<&Behind>,
        now: Timestamp,
    ) -> Self {
        let mut report = Self::from(preview, now);
        report.status.queue_position = behind.map(|b| b.position);
        report.status.queue_estimate = behind.and_then(|b| b.estimate).map(Time);
        report.say(Phase::Queued, reason, message);
        report.set(types::ADMITTED, Some(false), reason, message);
        report
    }

    /// Gives slots back and lives on. What changes here makes the write one, whatever else the status says: an admission
    /// that began before it must fail at its own.
    pub fn yielded(&mut self) {
        self.status.yields = Some(self.status.yields.unwrap_or_default().saturating_add(1));
    }

    /// Asks for what it may not have.
    pub fn refused(preview: &PreviewSandbox, reason: StatusReason, message: &str, now: Timestamp) -> Self {
        let mut report = Self::from(preview, now);
        report.leaves_queue();
        report.say(Phase::Refused, reason, message);
        report.set(types::ADMITTED, Some(false), reason, message);
        report
    }

    /// Holds its slots; the envelope is frozen. `drained` is whether it might have been ready at once, had its pool not been empty.
    pub fn admitted(&mut self, tenant: &Tenant, envelope: &Envelope, slots: Vec<String>, drained: bool) {
        self.leaves_queue();
        self.status.slots = slots;
        self.status.admitted_at = Some(self.now.clone());
        self.status.cell = Some(tenant.cell.clone());
        self.status.envelope = Some(envelope.resolved());
        self.say(
            Phase::Provisioning,
            StatusReason::MakingCell,
            "its cell is being made",
        );
        self.set(
            types::ADMITTED,
            Some(true),
            StatusReason::Admitted,
            if drained {
                "within the envelope; slots held; made for it alone, since its pool had none ready"
            } else {
                "within the envelope; slots held"
            },
        );
    }

    fn leaves_queue(&mut self) {
        self.status.queue_position = None;
        self.status.queue_estimate = None;
    }

    /// The quota has no status yet.
    pub fn uncounted(&mut self) {
        self.say(
            Phase::Provisioning,
            StatusReason::WaitingForQuota,
            "the cell's quota has no status yet, and no pod is made before: is the controller-manager running?",
        );
    }

    /// Cell and pod exist.
    pub fn provisioned(&mut self, seal: String) {
        self.status.seal = Some(seal);
        self.set(
            types::PROVISIONED,
            Some(true),
            StatusReason::CellMade,
            "namespace, quota, policy and pod exist",
        );
    }

    /// The probe has not come to a verdict.
    pub fn proving(&mut self, reason: StatusReason, message: &str) {
        let phase = match reason {
            StatusReason::ProbeRunning => Phase::Proving,
            _ => Phase::Provisioning,
        };
        self.say(phase, reason, message);
        self.set(
            types::ISOLATED,
            Some(false),
            StatusReason::ProbeRunning,
            "not yet proven from inside",
        );
    }

    /// Isolation was seen to hold.
    pub fn isolated(&mut self) {
        let targets = self.status.isolation.as_ref().map_or(0, |i| i.targets.len());
        self.set(
            types::ISOLATED,
            Some(true),
            StatusReason::ProvenFromInside,
            &format!("from inside the pod {targets} targets were tried and none that is required answered"),
        );
    }

    /// Isolated, but the product does not answer yet.
    pub fn not_ready(&mut self, reason: StatusReason, message: &str) {
        self.say(Phase::Provisioning, reason, message);
        self.set(types::READY, Some(false), reason, message);
    }

    /// The clock starts.
    pub fn ready(&mut self, ttl: Duration) {
        let expires = self
            .now
            .0
            .saturating_add(SignedDuration::try_from(ttl).unwrap_or_default());
        self.status.started_at = Some(self.now.clone());
        self.status.expires_at = Some(Time(expires.unwrap_or(self.now.0)));
        self.say(
            Phase::Ready,
            StatusReason::Answering,
            "isolated, answering, and the link works",
        );
        self.set(
            types::READY,
            Some(true),
            StatusReason::Answering,
            "the product answers",
        );
    }

    /// Lives longer.
    pub fn extended(&mut self, ttl: TimeSpan, expires: Timestamp) {
        if let Some(envelope) = &mut self.status.envelope {
            envelope.ttl = ttl;
        }
        self.status.expires_at = Some(Time(expires));
        self.status.message = Some(format!("extended to {ttl}"));
    }

    /// Was not extended.
    pub fn extension_refused(&mut self, message: &str) {
        self.status.message = Some(message.to_owned());
    }

    /// Has come to its end.
    pub fn ending(&mut self, cause: StatusReason, message: &str) {
        // The first message says why it ends; later ones would only say how far that is.
        if self.status.phase != Phase::Ending || self.status.message.is_none() {
            self.say(Phase::Ending, cause, message);
            self.leaves_queue();
            self.status.url = None;
            self.set(types::EXPIRED, Some(true), cause, message);
            self.set(types::READY, Some(false), cause, message);
            self.set(
                types::TORN_DOWN,
                Some(false),
                StatusReason::EndingPod,
                "the pod is being ended",
            );
            if conditions::find(&self.status.conditions, types::ADMITTED).is_none_or(|c| c.status != "True") {
                self.set(types::ADMITTED, Some(false), cause, message);
            }
        } else {
            self.set(types::TORN_DOWN, Some(false), StatusReason::EndingPod, message);
        }
    }

    /// Has come to its end when it was deleted.
    pub fn deleted(&mut self, at: &Time) {
        let now = std::mem::replace(&mut self.now, at.clone());
        self.ending(StatusReason::Deleted, "the preview was deleted");
        self.now = now;
    }

    /// Nobody saw the containers end.
    pub fn unknown(&mut self, cause: StatusReason, node: Option<&str>) {
        self.ending(cause, "");
        let message = format!(
            "the pod vanished before its containers were seen to end; the slot is kept until {} reports it gone",
            node.map_or_else(|| "every node".to_owned(), |n| format!("node {n}"))
        );
        self.status.message = Some(message.clone());
        self.set(types::TORN_DOWN, None, StatusReason::EndUnknown, &message);
    }

    /// The end is proven: the receipt is written before anything is let go.
    pub fn ended(&mut self, tenant: &Tenant, cause: StatusReason, result: EndResult, used: Option<&Used>) {
        let status = &self.status;
        self.status.receipt = Some(Receipt {
            preview: self.uid.clone(),
            image: status
                .envelope
                .as_ref()
                .map(|e| e.image.clone())
                .unwrap_or_default(),
            cell: tenant.cell.clone(),
            pod: status.pod.as_ref().map(|p| p.uid.clone()),
            isolated_at: status.isolation.as_ref().map(|i| i.proven_at.clone()),
            started_at: status.started_at.clone(),
            ended_at: self.now.clone(),
            cause,
            result,
            cost: used.map(|used| used.cost(self.now.0)),
            signed: None,
            delivered_at: None,
        });
        self.status.ended_at = Some(self.now.clone());
        let how = match result {
            EndResult::Verified => "every container was seen to have ended; the cell is being closed",
            EndResult::NeverStarted => "no container was ever started; the cell is being closed",
            EndResult::ReportedGone => {
                "its node reports that nothing of it runs, or was removed; the cell is being closed"
            }
        };
        self.set(types::TORN_DOWN, Some(false), StatusReason::ClosingCell, how);
    }

    /// Nothing is left.
    pub fn torn_down(&mut self) {
        self.status.phase = if self.status.started_at.is_some() {
            Phase::Ended
        } else {
            Phase::Failed
        };
        let result = self.status.receipt.as_ref().map(|r| r.result);
        let message = match result {
            Some(EndResult::ReportedGone) => {
                "nothing of it is left; the node reported the end afterwards, or was removed"
            }
            Some(EndResult::NeverStarted) => "nothing was ever started, and nothing of it is left",
            _ => "every container was seen to have ended, and nothing of it is left",
        };
        self.set(types::TORN_DOWN, Some(true), StatusReason::EndVerified, message);
    }

    /// Whether it says anything else than the preview says now.
    pub fn differs(&self, preview: &PreviewSandbox) -> bool {
        preview.status.as_ref() != Some(&self.status)
    }

    fn say(&mut self, phase: Phase, reason: StatusReason, message: &str) {
        self.status.phase = phase;
        self.status.reason = Some(reason);
        self.status.message = Some(message.to_owned()).filter(|m| !m.is_empty());
    }

    fn set(&mut self, type_: &str, status: Option<bool>, reason: StatusReason, message: &str) {
        conditions::set(
            &mut self.status.conditions,
            type_,
            status,
            reason,
            message,
            self.generation,
            &self.now,
        );
    }
}
