//! `PreviewSandbox`: one visitor's try of one product, locked and short-lived. Types only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    conditions::{Phase, StatusReason},
    duration::TimeSpan,
    sku_listing::Size,
};

/// One visitor's try of one product. Immutable but for `ttl`, which may only grow.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "PreviewSandbox",
    plural = "previewsandboxes",
    shortname = "preview",
    shortname = "previews",
    shortname = "pvw",
    category = "vitrine",
    namespaced,
    status = "PreviewSandboxStatus",
    derive = "PartialEq",
    doc = "One visitor's try of one product in a locked, short-lived sandbox.",
    validation = Rule::new("self.metadata.name.size() <= 63").message("a preview's name has at most 63 characters"),
    printcolumn(json_path = ".status.phase", name = "Phase", type_ = "string"),
    printcolumn(json_path = ".status.reason", name = "Reason", type_ = "string"),
    printcolumn(json_path = ".spec.listingRef.name", name = "Listing", type_ = "string"),
    printcolumn(json_path = ".status.cell", name = "Cell", type_ = "string"),
    printcolumn(json_path = ".status.expiresAt", name = "Until", type_ = "string"),
    printcolumn(json_path = ".status.queuePosition", name = "Queue", type_ = "integer", priority = 1),
    printcolumn(json_path = ".status.node", name = "Node", type_ = "string", priority = 1),
    printcolumn(json_path = ".status.message", name = "Message", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date"),
    selectable = ".spec.subject"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.listingRef == oldSelf.listingRef").message("listingRef is immutable: make a new preview").field_path(".listingRef"))]
#[x_kube(validation = Rule::new("self.subject == oldSelf.subject").message("subject is immutable: make a new preview").field_path(".subject"))]
#[x_kube(validation = Rule::new("self.trustLevel == oldSelf.trustLevel").message("trustLevel is immutable: make a new preview").field_path(".trustLevel"))]
#[x_kube(validation = Rule::new("has(self.network) == has(oldSelf.network) && (!has(self.network) || self.network == oldSelf.network)").message("network is immutable: make a new preview"))]
#[x_kube(validation = Rule::new("has(self.size) == has(oldSelf.size) && (!has(self.size) || self.size == oldSelf.size)").message("size is immutable: make a new preview"))]
#[x_kube(validation = Rule::new("has(self.egress) == has(oldSelf.egress) && (!has(self.egress) || self.egress == oldSelf.egress)").message("egress is immutable: make a new preview"))]
#[x_kube(validation = Rule::new("!has(oldSelf.ttl) || (has(self.ttl) && duration(self.ttl) >= duration(oldSelf.ttl))").message("ttl may only grow: end a preview early by deleting it"))]
#[x_kube(validation = Rule::new("!has(self.ttl) || duration(self.ttl) > duration('0s')").message("ttl must be longer than 0s"))]
pub struct PreviewSandboxSpec {
    /// The listing to preview, in the same namespace.
    pub listing_ref: ListingRef,
    /// For whom: an opaque name that the requester chooses, the same for the same person.
    #[schemars(length(min = 1, max = 253))]
    pub subject: String,
    /// How well the subject is known.
    #[serde(default)]
    pub trust_level: TrustLevel,
    /// Where the request came from, truncated (/24 or /48) by the requester, for limits by network; not counted if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub network: Option<String>,
    /// How long it lives once it is ready; the policy's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<TimeSpan>,
    /// A size narrower than the listing's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Host names narrower than the listing's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub egress: Option<Vec<String>>,
}

/// A listing in the same namespace, optionally pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListingRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its uid: a listing made anew under the same name is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
    /// Its generation: a listing changed since is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub generation: Option<i64>,
}

/// How well the subject is known to the shop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrustLevel {
    /// Nothing is known.
    #[default]
    Anonymous,
    /// Signed in.
    SignedIn,
    /// Has paid before.
    PaymentVerified,
}

impl PreviewSandbox {
    /// How far it is: one that nobody has looked at yet waits, and one that was deleted and is not over yet is ending, whatever its
    /// status still says.
    pub fn phase(&self) -> Phase {
        let said = self.status.as_ref().map(|status| status.phase);
        Phase::of(said, self.metadata.deletion_timestamp.is_some())
    }
}

/// What became of the preview. `phase`, `reason` and `message` sum the conditions up for people.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewSandboxStatus {
    /// How it is, in one word.
    #[serde(default)]
    pub phase: Phase,
    /// Why, from the closed list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<StatusReason>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The conditions Admitted, Provisioned, Isolated, Ready, Expired, TornDown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Its place among those that wait for the same slots; 1 is next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<i32>,
    /// When its turn comes at the latest, if those before it use all their time and are not extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_estimate: Option<Time>,
    /// How often slots were given back because others were missing, or because its turn had passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yields: Option<i32>,
    /// The slots held, by the names of their Leases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub slots: Vec<String>,
    /// When the slot was taken: the provisioning deadline counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted_at: Option<Time>,
    /// The namespace it lives in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<String>,
    /// What was resolved from policy, listing and preview at admission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envelope: Option<ResolvedEnvelope>,
    /// Identity of the cell's network policy as it was when the cell was sealed (`uid/generation`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<String>,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodIdentity>,
    /// What the probe saw from inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationEvidence>,
    /// What it did that is taken for abuse, and what is done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abuse: Option<AbuseFinding>,
    /// The link to it: a bearer secret until `expiresAt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it became ready: its time counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When its end was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// What can be shown of it afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

/// What a preview did that is taken for abuse. What is done about it only grows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AbuseFinding {
    /// The points.
    pub score: i32,
    /// What is done.
    pub measure: Measure,
    /// Each sign in words.
    pub reasons: Vec<String>,
    /// When.
    pub at: Time,
}

/// What is done about abuse, the milder first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Measure {
    /// It gets a tenth of its processor time.
    Throttle,
    /// It is ended.
    End,
    /// It is ended, and its subject gets no other for a while.
    Block,
}

impl Measure {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Throttle => "Throttle",
            Self::End => "End",
            Self::Block => "Block",
        }
    }
}

/// What policy, listing and preview came to, frozen at admission.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedEnvelope {
    /// How long it lives once ready.
    pub ttl: TimeSpan,
    /// The longest it may come to live by extensions.
    pub ttl_cap: TimeSpan,
    /// How long it may take from its slot to being ready.
    pub provisioning_deadline: TimeSpan,
    /// How long the isolation probe may look.
    pub proof_deadline: TimeSpan,
    /// The image, by digest.
    pub image: String,
    /// The port on which the product serves.
    pub port: i32,
    /// The path that a visitor is sent to first.
    pub landing_path: String,
    /// The listing's uid and generation that were used (`uid/generation`).
    pub listing: String,
    /// Who sells it.
    #[serde(default)]
    pub seller: String,
    /// The names that the preview may reach: its pod by the egress proxy, its script from the visitor's browser.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// The pages that may show it in a frame.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frame_ancestors: Vec<String>,
    /// The RuntimeClass, if it is not the cluster's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// The size.
    pub size: Size,
}

/// A pod, bound to what could change under the same name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// Its uid.
    pub uid: String,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The port on which the product serves.
    pub port: i32,
    /// What its sidecar answers when it is asked who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// What the probe saw from inside the pod, and that each target was up meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationEvidence {
    /// When.
    pub proven_at: Time,
    /// The uid of the pod that it is true of.
    pub pod_uid: String,
    /// Rounds until the network enforced.
    pub rounds: i32,
    /// Whether the node gives an image's VOLUMEs folders on its disk, which the policy lets pass.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub image_volumes: bool,
    /// Target by target.
    pub targets: Vec<TargetEvidence>,
}

/// One target of the probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetEvidence {
    /// Its name, like `internet` or `kubelet`.
    pub name: String,
    /// Its address, `ip:port`.
    pub address: String,
    /// Whether the preview depends on it.
    pub required: bool,
    /// What the probe saw from inside, like `shut: timed out`.
    pub inside: String,
    /// What the unconfined prober saw in the same seconds: `up` or why not.
    pub outside: String,
}

/// What can be shown of a preview afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The preview's uid.
    pub preview: String,
    /// What ran.
    pub image: String,
    /// Where.
    pub cell: String,
    /// The pod's uid, if one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// When its isolation was proven, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolated_at: Option<Time>,
    /// When it became ready, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When its end was proven.
    pub ended_at: Time,
    /// Why it ended.
    pub cause: StatusReason,
    /// Whether the end was seen.
    pub result: EndResult,
    /// What it used, if its node told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// All of the above as an in-toto statement in a signed DSSE envelope, once nothing of the preview is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<String>,
    /// When the audit sink acknowledged it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<Time>,
}

/// What the containers of a preview used, as their node counted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Processor time, in milliseconds of one core.
    pub cpu_milliseconds: i64,
    /// The largest working set that was seen, in bytes.
    pub memory_peak_bytes: i64,
    /// When the node counted last.
    pub sampled_at: Time,
    /// Whether that was too long before the end to be all of it.
    pub partial: bool,
}

/// Whether the end of a preview was seen or only inferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EndResult {
    /// Every container was seen to have ended.
    Verified,
    /// No container was ever started.
    NeverStarted,
    /// The pod vanished first; its node said later that nothing of it runs.
    ReportedGone,
}
