//! `PreviewPolicy`: the platform's envelope, one for the cluster, named `default`. Types only.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::TimeSpan, sku_listing::Size};

/// The platform's envelope: no preview and no listing gets more than this, whoever asks.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "PreviewPolicy",
    plural = "previewpolicies",
    category = "vitrine",
    doc = "The platform's envelope for previews; there is one, named `default`.",
    validation = Rule::new("self.metadata.name == 'default'").message("there is one PreviewPolicy a cluster and its name is \"default\""),
    printcolumn(json_path = ".spec.ttl.default", name = "TTL", type_ = "string"),
    printcolumn(json_path = ".spec.ttl.max", name = "Max TTL", type_ = "string"),
    printcolumn(json_path = ".spec.limits.perSubject", name = "Per subject", type_ = "integer"),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.proofDeadline) > duration('0s') && duration(self.proofDeadline) <= duration(self.provisioningDeadline)").message("proofDeadline must be longer than 0s and no longer than provisioningDeadline"))]
#[x_kube(validation = Rule::new("duration(self.provisioningDeadline) <= duration('1h')").message("provisioningDeadline is at most 1h"))]
pub struct PreviewPolicySpec {
    /// How long previews may live, counted from the moment they are ready.
    pub ttl: TtlRange,
    /// How long a preview may take from its slot to being ready before it is given up.
    #[serde(default = "default_provisioning_deadline")]
    pub provisioning_deadline: TimeSpan,
    /// How long the isolation probe may look before it says that the network does not enforce.
    #[serde(default = "default_proof_deadline")]
    pub proof_deadline: TimeSpan,
    /// How long a finished preview stays to be looked at.
    #[serde(default = "default_retention")]
    pub retention: TimeSpan,
    /// How many previews may live at once.
    #[serde(default)]
    pub limits: Limits,
    /// The largest preview.
    pub size: SizeRange,
    /// Where previews may connect to.
    #[serde(default)]
    pub egress: EgressRange,
    /// What the isolation probe must find shut.
    pub isolation: IsolationTargets,
}

/// The range of times to live.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("duration(self.min) <= duration(self.default) && duration(self.default) <= duration(self.max)")
        .message("ttl must satisfy min <= default <= max")
)]
#[x_kube(validation = Rule::new("duration(self.min) > duration('0s')").message("ttl.min must be longer than 0s"))]
#[x_kube(validation = Rule::new("duration(self.max) <= duration('24h')").message("ttl.max is at most 24h"))]
pub struct TtlRange {
    /// The shortest a preview may ask for.
    pub min: TimeSpan,
    /// The longest a preview may ask for.
    pub max: TimeSpan,
    /// What a preview gets that does not ask.
    pub default: TimeSpan,
}

/// How many previews may live at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Previews of one subject.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub per_subject: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_subject: one() }
    }
}

/// The largest size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizeRange {
    /// No preview is larger than this.
    pub max: Size,
}

/// Where previews may connect to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRange {
    /// Exact host names.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub allowed_names: Vec<String>,
}

/// Whether a target's being shut is a condition for a preview or only reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Requirement {
    /// No preview is ready before the target is seen to be shut.
    #[default]
    Required,
    /// What was seen is printed on every receipt; it stops nothing.
    Reported,
}

/// What the isolation probe must find shut, beside the targets it knows by itself (API server, kubelet, DNS, neighbour).
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.internet + (has(self.metadata) ? self.metadata : [])).all(a, a.matches('^[0-9.]{7,15}:[1-9][0-9]{0,4}$') && isIP(a.split(':')[0]) && int(a.split(':')[1]) <= 65535)")
        .message("targets are written as IPv4 address and port, like 1.1.1.1:443")
)]
pub struct IsolationTargets {
    /// Addresses that answer on the internet, as `ip:port`.
    #[schemars(length(min = 1, max = 4), inner(length(max = 21)))]
    pub internet: Vec<String>,
    /// The cloud's metadata service, as `ip:port`.
    #[serde(default = "default_metadata")]
    #[schemars(length(max = 4), inner(length(max = 21)))]
    pub metadata: Vec<String>,
    /// Whether the node's own listeners (kubelet, API server on its node) must be shut.
    #[serde(default)]
    pub node_targets: Requirement,
    /// Whether the metadata service must be up to be proven shut (a cluster outside a cloud has none).
    #[serde(default)]
    pub metadata_target: Requirement,
}

fn default_provisioning_deadline() -> TimeSpan {
    TimeSpan::from_secs(120)
}

fn default_proof_deadline() -> TimeSpan {
    TimeSpan::from_secs(30)
}

fn default_retention() -> TimeSpan {
    TimeSpan::from_secs(24 * 3600)
}

fn default_metadata() -> Vec<String> {
    vec!["169.254.169.254:80".to_owned()]
}

const fn one() -> i32 {
    1
}
