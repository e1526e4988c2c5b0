//! What the operator tells the isolation probe, and what the probe answers. Types and judgement, pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// In an address: stands for the address of the node that the pod runs on, which only the pod knows.
pub const NODE_PLACEHOLDER: &str = "{node}";
/// The environment variable with the [`Orders`].
pub const ORDERS_ENV: &str = "VITRINE_PROBE";
/// The environment variable with the node's address.
pub const NODE_IP_ENV: &str = "VITRINE_NODE_IP";
/// Where the sidecar finds the pod's memory of its life: a folder that outlives its container and that nobody else has.
pub const WATCH_LIFE: &str = "/run/vitrine";

/// For how long the sidecar may take to listen. It takes milliseconds; a busy node takes longer.
pub const LISTEN_PATIENCE_SECONDS: u8 = 20;

/// What the probe is to do, as JSON in [`ORDERS_ENV`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Orders {
    /// To be repeated in the verdict: ties it to this pod.
    pub nonce: String,
    /// `ip:port` that must answer: the only egress that the cell's policy allows.
    pub canary: String,
    /// What must be shut.
    pub targets: Vec<Target>,
    /// How long to look before giving up, in seconds.
    pub deadline_seconds: u64,
    /// Whether a node is refused that gives an image's VOLUMEs folders on its disk.
    pub refuse_image_volumes: bool,
}

/// Something that a preview must not reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its name, like `internet` or `kubelet`.
    pub name: String,
    /// `ip:port`; the ip may be [`NODE_PLACEHOLDER`].
    pub address: String,
    /// Whether reaching it is a breach, or only reported.
    pub required: bool,
}

/// What one attempt from inside came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome", content = "how")]
pub enum Outcome {
    /// No connection: how it was refused (time-out, reset, ICMP).
    Shut(String),
    /// A connection was made.
    Reached,
    /// The attempt failed in the pod itself (no port, no descriptor): says nothing about the network.
    Unproven(String),
}

/// What the probe saw at one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// The target's name.
    pub name: String,
    /// The address that was tried.
    pub address: String,
    /// Whether the preview depends on it.
    pub required: bool,
    /// What was seen.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The sum of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Judgement {
    /// The canary answered and every required target was shut.
    Isolated,
    /// A required target was reached.
    Leaking,
    /// Neither could be shown.
    Unproven,
    /// Whatever the network does: the node gives an image's VOLUMEs folders on its disk, and is to be refused for that.
    ImageVolumes,
}

/// What the probe says at its end: the container's termination message, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The nonce of the orders.
    pub nonce: String,
    /// The judgement of the last round.
    pub judgement: Judgement,
    /// How many rounds it took.
    pub rounds: u32,
    /// How many milliseconds it took.
    pub elapsed_ms: u64,
    /// Whether the canary answered in the last round.
    pub canary: bool,
    /// Addresses of a family that no policy covers; must be none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// Whether the node gives an image's VOLUMEs folders on its disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub image_volumes: bool,
    /// Target by target in the last round.
    pub targets: Vec<Seen>,
}

/// Sums up a round. A local error at a required target is never "shut"; an address of an uncovered family is a leak.
pub fn judge(canary: bool, ipv6: &[String], seen: &[Seen]) -> Judgement {
    let required = || seen.iter().filter(|s| s.required);
    if !ipv6.is_empty() || required().any(|s| s.outcome == Outcome::Reached) {
        Judgement::Leaking
    } else if !canary || required().any(|s| matches!(s.outcome, Outcome::Unproven(_))) {
        Judgement::Unproven
    } else {
        Judgement::Isolated
    }
}

/// What to say of a node that gives images volumes, to whoever looks after it.
const IMAGE_VOLUMES: &str = "the node's container runtime gives an image's VOLUMEs folders on its disk, past the pod's read-only root and its limits: set \
     ignore_image_defined_volumes = true (containerd) or image_volumes = \"ignore\" (CRI-O), or isolation.imageVolumes: Reported where no \
     image with a VOLUME can come";

/// Whether a folder is a mount of its own, by the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5): the fifth field).
pub fn is_mounted(folder: &str, mountinfo: &str) -> bool {
    mountinfo
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(folder))
}

impl Orders {
    /// The orders with the node's address put in.
    #[must_use]
    pub fn on_node(mut self, node_ip: &str) -> Self {
        for target in &mut self.targets {
            target.address = target.address.replace(NODE_PLACEHOLDER, node_ip);
        }
        self
    }
}

impl Verdict {
    /// In one sentence what stands in the way of isolation.
    pub fn complaint(&self) -> String {
        if self.judgement == Judgement::ImageVolumes {
            return IMAGE_VOLUMES.to_owned();
        }
        let name = |s: &Seen| format!("{} ({})", s.name, s.address);
        let reached: Vec<_> = self
            .targets
            .iter()
            .filter(|s| s.required && s.outcome == Outcome::Reached)
            .map(name)
            .collect();
        if !self.ipv6.is_empty() {
            return format!(
                "the pod has IPv6 addresses that no policy covers: {}",
                self.ipv6.join(", ")
            );
        }
        if !reached.is_empty() {
            return format!(
                "after {} rounds in {} ms the pod could still reach {}: the cluster's network does not enforce its NetworkPolicy",
                self.rounds,
                self.elapsed_ms,
                reached.join(", ")
            );
        }
        if !self.canary {
            return "the responder's canary port never answered, so silence elsewhere proves nothing: is vitrine-responder running?".to_owned();
        }
        let local: Vec<_> = self
            .targets
            .iter()
            .filter(|s| s.required)
            .filter_map(|s| match &s.outcome {
                Outcome::Unproven(why) => Some(format!("{}: {why}", name(s))),
                Outcome::Shut(_) | Outcome::Reached => None,
            })
            .collect();
        format!("not all targets could be tried: {}", local.join(", "))
    }
}

impl Outcome {
    /// In words for status and receipt.
    pub fn words(&self) -> String {
        match self {
            Self::Shut(how) => format!("shut: {how}"),
            Self::Reached => "REACHED".to_owned(),
            Self::Unproven(why) => format!("unproven: {why}"),
        }
    }
}

/// Addresses of `up` by target address, as the unconfined prober reports them.
pub type Outside = BTreeMap<String, String>;

/// The word of the unconfined prober for a target that answered.
pub const UP: &str = "up";

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(required: bool, outcome: Outcome) -> Seen {
        Seen {
            name: "internet".into(),
            address: "203.0.113.10:80".into(),
            required,
            outcome,
        }
    }

    #[test]
    fn isolated_only_if_the_canary_answers_and_every_required_target_is_shut() {
        let shut = || seen(true, Outcome::Shut("timed out".into()));
        assert_eq!(judge(true, &[], &[shut()]), Judgement::Isolated);
        assert_eq!(judge(false, &[], &[shut()]), Judgement::Unproven);
        assert_eq!(
            judge(true, &[], &[shut(), seen(true, Outcome::Reached)]),
            Judgement::Leaking
        );
        assert_eq!(
            judge(true, &[], &[shut(), seen(false, Outcome::Reached)]),
            Judgement::Isolated
        );
    }

    #[test]
    fn a_folder_is_mounted_only_as_itself() {
        let text = "22 1 0:20 / / ro - overlay overlay ro\n31 22 8:1 /v/1 /run/volume rw,relatime - ext4 /dev/sda rw\n";
        assert!(is_mounted("/run/volume", text));
        for other in ["/run", "/run/volume/in", "/v/1", ""] {
            assert!(!is_mounted(other, text), "{other}");
        }
    }

    #[test]
    fn a_local_error_is_unproven_never_shut() {
        let no_ports = seen(true, Outcome::Unproven("EADDRNOTAVAIL".into()));
        assert_eq!(
            judge(true, &[], std::slice::from_ref(&no_ports)),
            Judgement::Unproven
        );
        assert_eq!(
            judge(true, &[], &[no_ports, seen(true, Outcome::Reached)]),
            Judgement::Leaking
        );
    }

    #[test]
    fn an_address_of_a_family_without_policies_is_a_leak() {
        assert_eq!(judge(true, &["fe80::1".into()], &[]), Judgement::Leaking);
    }

    #[test]
    fn a_verdict_is_written_in_the_form_that_the_operator_reads() {
        let verdict = Verdict {
            nonce: "n".into(),
            judgement: Judgement::Isolated,
            rounds: 2,
            elapsed_ms: 120,
            canary: true,
            ipv6: vec![],
            image_volumes: false,
            targets: vec![seen(true, Outcome::Shut("timed out".into()))],
        };
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "nonce": "n", "judgement": "isolated", "rounds": 2, "elapsedMs": 120, "canary": true,
                "targets": [{"name": "internet", "address": "203.0.113.10:80", "required": true, "outcome": "shut", "how": "timed out"}]
            })
        );
        assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    }

    #[test]
    fn the_complaint_names_what_was_reached() {
        let verdict = Verdict {
            nonce: "n".into(),
            judgement: Judgement::Leaking,
            rounds: 9,
            elapsed_ms: 30_000,
            canary: true,
            ipv6: vec![],
            image_volumes: false,
            targets: vec![seen(true, Outcome::Reached)],
        };
        assert!(
            verdict
                .complaint()
                .contains("could still reach internet (203.0.113.10:80)")
        );
    }
}
