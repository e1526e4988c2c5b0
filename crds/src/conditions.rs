//! Conditions, phases and the closed lists of reasons that a preview's status may show. Pure.
//!
//! Conditions follow the Kubernetes API conventions: `lastTransitionTime` moves only when `status` changes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a preview is, in one word. A summary of the conditions for people; code decides by the conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Waits for a slot.
    #[default]
    Queued,
    /// Its cell and pod are being made.
    Provisioning,
    /// Its pod runs the isolation probe; nothing of the seller runs yet.
    Proving,
    /// Isolated and answering; the clock runs.
    Ready,
    /// Cut off; its end is being proven.
    Ending,
    /// Over after having been ready.
    Ended,
    /// Asked for more than the platform's envelope allows.
    Refused,
    /// Over without ever having been ready.
    Failed,
}

impl Phase {
    /// By what a status says, if there is one, and whether the preview is being deleted: then it ends, whatever was said before.
    pub fn of(said: Option<Self>, deleted: bool) -> Self {
        let said = said.unwrap_or(Self::Queued);
        if deleted && !said.is_terminal() {
            return Self::Ending;
        }
        said
    }

    /// Whether nothing of the preview is left and nothing will change any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Ended | Self::Failed)
    }

    /// The word that metrics and columns use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "Queued",
            Self::Provisioning => "Provisioning",
            Self::Proving => "Proving",
            Self::Ready => "Ready",
            Self::Ending => "Ending",
            Self::Ended => "Ended",
            Self::Refused => "Refused",
            Self::Failed => "Failed",
        }
    }

    /// Every phase, for metrics that must show zeros too.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Provisioning,
        Self::Proving,
        Self::Ready,
        Self::Ending,
        Self::Ended,
        Self::Refused,
        Self::Failed,
    ];
}

/// The condition types of a `PreviewSandbox`.
pub mod types {
    /// The envelope allows it and its slot is held.
    pub const ADMITTED: &str = "Admitted";
    /// Namespace, quota, policy and pod exist.
    pub const PROVISIONED: &str = "Provisioned";
    /// The probe saw, from inside the pod, that isolation holds.
    pub const ISOLATED: &str = "Isolated";
    /// The product answers and the link works.
    pub const READY: &str = "Ready";
    /// The preview has come to its end, for whatever reason.
    pub const EXPIRED: &str = "Expired";
    /// The end is proven: no container runs, nothing is left.
    pub const TORN_DOWN: &str = "TornDown";
}

/// Why a preview is as it is: the closed list. Events, conditions, columns and metrics use these words only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum StatusReason {
    /// The envelope allows it and a slot is held.
    Admitted,
    /// The slots of its subject, network, listing, seller or the cluster are taken by other previews.
    WaitingForSlot,
    /// The room that the nodes have for previews is taken.
    WaitingForCapacity,
    /// The platform lets no new previews in for now.
    AdmissionSuspended,
    /// It waited longer than the policy lets previews wait.
    QueueDeadline,
    /// The platform gives this subject no preview.
    SubjectBlocked,
    /// The preview asks for more than the envelope allows.
    OutsideEnvelope,
    /// The listing does not exist.
    ListingNotFound,
    /// The listing was replaced or changed since the preview named it.
    ListingChanged,
    /// The platform's PreviewPolicy `default` does not exist.
    PolicyNotFound,
    /// The cell is being made.
    MakingCell,
    /// The quota has no status yet; no pod is made before.
    WaitingForQuota,
    /// The pod waits for a node.
    WaitingForNode,
    /// Cell and pod exist.
    CellMade,
    /// The probe is looking for a way out.
    ProbeRunning,
    /// Isolation was seen to hold from inside.
    ProvenFromInside,
    /// The product is starting.
    ProductStarting,
    /// The product answers.
    Answering,
    /// The probe reached what it must not: the network does not enforce the cell's policy.
    NetworkNotEnforcing,
    /// The node's container runtime gives images volumes of their own on its disk.
    ImageVolumes,
    /// The probe could not tell: its own canary did not answer, or a target was not up.
    Unproven,
    /// The probe ended without a verdict that belongs to this pod.
    ProbeFailed,
    /// A running preview reached what it must not, or the sidecar that looks for that was killed.
    IsolationBroken,
    /// What seals the cell was touched under the preview: its network policies, its namespace, its pod.
    SealBroken,
    /// The image is not to be had.
    ImageUnavailable,
    /// The product ended by itself before it was ready.
    ProductCrashed,
    /// The product ended by itself after it was ready.
    ProductExited,
    /// The API server refused the pod because of the cell's quota.
    QuotaExceeded,
    /// The API server or the node refused the pod.
    PodRejected,
    /// No node takes the pod.
    Unschedulable,
    /// It was not ready before the provisioning deadline.
    ProvisioningDeadline,
    /// Its time is over.
    TimeOver,
    /// Nobody opened it.
    Unopened,
    /// It was opened, and then nobody used it any more.
    Idle,
    /// What it did is taken for abuse.
    Abuse,
    /// Somebody deleted the preview.
    Deleted,
    /// The pod vanished and nobody saw its containers end.
    PodLost,
    /// Somebody deleted one of its slots, and another preview has it now: both would be one more than the limit.
    SlotLost,
    /// The pod is being ended.
    EndingPod,
    /// Every container was seen to have ended.
    EndVerified,
    /// Nobody saw the containers end; the slot is kept until the node says they are gone.
    EndUnknown,
    /// The cell is being made free for the next preview, or removed.
    ClosingCell,
}

impl From<StatusReason> for &'static str {
    fn from(reason: StatusReason) -> Self {
        reason.as_str()
    }
}

impl StatusReason {
    /// The CamelCase word of the reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "Admitted",
            Self::WaitingForSlot => "WaitingForSlot",
            Self::WaitingForCapacity => "WaitingForCapacity",
            Self::AdmissionSuspended => "AdmissionSuspended",
            Self::QueueDeadline => "QueueDeadline",
            Self::SubjectBlocked => "SubjectBlocked",
            Self::OutsideEnvelope => "OutsideEnvelope",
            Self::ListingNotFound => "ListingNotFound",
            Self::ListingChanged => "ListingChanged",
            Self::PolicyNotFound => "PolicyNotFound",
            Self::MakingCell => "MakingCell",
            Self::WaitingForQuota => "WaitingForQuota",
            Self::WaitingForNode => "WaitingForNode",
            Self::CellMade => "CellMade",
            Self::ProbeRunning => "ProbeRunning",
            Self::ProvenFromInside => "ProvenFromInside",
            Self::ProductStarting => "ProductStarting",
            Self::Answering => "Answering",
            Self::NetworkNotEnforcing => "NetworkNotEnforcing",
            Self::ImageVolumes => "ImageVolumes",
            Self::Unproven => "Unproven",
            Self::ProbeFailed => "ProbeFailed",
            Self::IsolationBroken => "IsolationBroken",
            Self::SealBroken => "SealBroken",
            Self::ImageUnavailable => "ImageUnavailable",
            Self::ProductCrashed => "ProductCrashed",
            Self::ProductExited => "ProductExited",
            Self::QuotaExceeded => "QuotaExceeded",
            Self::PodRejected => "PodRejected",
            Self::Unschedulable => "Unschedulable",
            Self::ProvisioningDeadline => "ProvisioningDeadline",
            Self::TimeOver => "TimeOver",
            Self::Unopened => "Unopened",
            Self::Idle => "Idle",
            Self::Abuse => "Abuse",
            Self::Deleted => "Deleted",
            Self::PodLost => "PodLost",
            Self::SlotLost => "SlotLost",
            Self::EndingPod => "EndingPod",
            Self::EndVerified => "EndVerified",
            Self::EndUnknown => "EndUnknown",
            Self::ClosingCell => "ClosingCell",
        }
    }
}

/// Sets one condition in the list, moving `lastTransitionTime` only when its status changes.
///
/// Returns whether anything but the time differs from before.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: Option<bool>,
    reason: impl Into<&'static str>,
    message: &str,
    generation: Option<i64>,
    now: &Time,
) -> bool {
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let mut next = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.into().to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(current) => {
            if current.status == next.status {
                next.last_transition_time = current.last_transition_time.clone();
            }
            let changed = *current != next;
            *current = next;
            changed
        }
        None => {
            conditions.push(next);
            true
        }
    }
}

/// The condition of this type, if it was ever set.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether the condition is set and true.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_changes() {
        let mut list = vec![];
        assert!(set(
            &mut list,
            types::READY,
            Some(false),
            StatusReason::MakingCell,
            "a",
            Some(1),
            &at(1)
        ));
        assert!(set(
            &mut list,
            types::READY,
            Some(false),
            StatusReason::ProbeRunning,
            "b",
            Some(1),
            &at(2)
        ));
        assert_eq!(list[0].last_transition_time, at(1));
        assert!(!set(
            &mut list,
            types::READY,
            Some(false),
            StatusReason::ProbeRunning,
            "b",
            Some(1),
            &at(3)
        ));
        assert!(set(
            &mut list,
            types::READY,
            Some(true),
            StatusReason::Answering,
            "",
            Some(1),
            &at(4)
        ));
        assert_eq!(list[0].last_transition_time, at(4));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn a_reason_is_written_as_serde_writes_it() {
        for reason in [
            StatusReason::Admitted,
            StatusReason::NetworkNotEnforcing,
            StatusReason::EndUnknown,
            StatusReason::ClosingCell,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.as_str());
        }
    }
}
