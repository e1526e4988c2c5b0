//! `PreviewPool`: previews of one listing that are ready before anybody asks for them. Types only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::TimeSpan, preview_sandbox::TrustLevel};

/// How many cells with a running, proven product wait for previews of one listing.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "PreviewPool",
    plural = "previewpools",
    shortname = "ppool",
    category = "vitrine",
    namespaced,
    status = "PreviewPoolStatus",
    derive = "PartialEq",
    doc = "Previews of one listing that are ready before anybody asks for them.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("self.metadata.name.size() <= 63").message("a pool's name has at most 63 characters"),
    printcolumn(json_path = ".spec.listingRef.name", name = "Listing", type_ = "string"),
    printcolumn(json_path = ".spec.replicas", name = "Wanted", type_ = "integer"),
    printcolumn(json_path = ".status.ready", name = "Ready", type_ = "integer"),
    printcolumn(json_path = ".status.warming", name = "Warming", type_ = "integer"),
    printcolumn(json_path = ".status.claimed", name = "Claimed", type_ = "integer"),
    printcolumn(json_path = ".status.reason", name = "Short", type_ = "string"),
    printcolumn(json_path = ".status.oldest", name = "Oldest", type_ = "date", priority = 1),
    printcolumn(json_path = ".status.message", name = "Message", type_ = "string", priority = 1),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.listingRef == oldSelf.listingRef").message("listingRef is immutable: make a new pool").field_path(".listingRef"))]
#[x_kube(validation = Rule::new("self.trustLevel == oldSelf.trustLevel").message("trustLevel is immutable: make a new pool").field_path(".trustLevel"))]
#[x_kube(validation = Rule::new("duration(self.maxAge) >= duration('10s') && duration(self.maxAge) <= duration('24h')").message("maxAge must be 10s to 24h").field_path(".maxAge"))]
pub struct PreviewPoolSpec {
    /// The listing, in the same namespace.
    pub listing_ref: PoolListing,
    /// For subjects known this well: a cell that one had never goes to another level.
    #[serde(default)]
    pub trust_level: TrustLevel,
    /// How many are to wait, beside those that previews have. The platform's policy may allow fewer.
    #[schemars(range(min = 0, max = 20000))]
    pub replicas: i32,
    /// How fast what was taken is made anew.
    #[serde(default)]
    pub refill: Refill,
    /// How long one waits at most before it is made anew.
    #[serde(default = "default_max_age")]
    pub max_age: TimeSpan,
    /// Makes none anew. What waits is given to previews still.
    #[serde(default)]
    pub paused: bool,
}

/// A listing in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolListing {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A token bucket. A rate below that of the previews lets the pool run dry, and those that find nothing are made cold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refill {
    /// How many a second.
    #[serde(default = "default_per_second")]
    #[schemars(range(min = 1, max = 1000))]
    pub per_second: i32,
    /// How many at once after a pause.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1000))]
    pub burst: i32,
}

impl Default for Refill {
    fn default() -> Self {
        Self {
            per_second: default_per_second(),
            burst: default_burst(),
        }
    }
}

/// How a pool is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewPoolStatus {
    /// How many wait or are being made, for `kubectl scale` and autoscalers.
    #[serde(default)]
    pub replicas: i32,
    /// How many previews can be ready at once.
    #[serde(default)]
    pub ready: i32,
    /// How many are being made.
    #[serde(default)]
    pub warming: i32,
    /// How many of its cells previews have.
    #[serde(default)]
    pub claimed: i32,
    /// The labels of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Since when the one that waits longest has been ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// Why fewer are ready than are wanted, from the closed list; absent if none is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ShortReason>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The condition Full: as many are ready as are wanted. Its reason is one of those above, or AllReady.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The condition type of a `PreviewPool`: as many are ready as are wanted. Its reason is one of [`ShortReason`], or [`ALL_READY`].
pub const FULL: &str = "Full";
/// The reason of the condition where nothing is missing.
pub const ALL_READY: &str = "AllReady";

/// Why a pool has fewer ready than it wants: the closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ShortReason {
    /// They are being made, as fast as the refill rate lets them.
    Refilling,
    /// It is paused.
    Paused,
    /// It wants more than the platform's policy allows.
    OutsideEnvelope,
    /// The slots of its listing, its seller or the cluster are taken.
    WaitingForSlot,
    /// The room that the nodes have for previews is taken.
    WaitingForCapacity,
    /// Previews wait, and what they need goes before what only waits.
    GivesWay,
    /// The listing does not exist.
    ListingNotFound,
    /// The platform's PreviewPolicy `default` does not exist.
    PolicyNotFound,
    /// The listing asks for more than the platform's envelope allows.
    ListingRefused,
    /// What was made did not come to be ready.
    Failing,
}

impl From<ShortReason> for &'static str {
    fn from(reason: ShortReason) -> Self {
        reason.as_str()
    }
}

impl ShortReason {
    /// The CamelCase word of the reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refilling => "Refilling",
            Self::Paused => "Paused",
            Self::OutsideEnvelope => "OutsideEnvelope",
            Self::WaitingForSlot => "WaitingForSlot",
            Self::WaitingForCapacity => "WaitingForCapacity",
            Self::GivesWay => "GivesWay",
            Self::ListingNotFound => "ListingNotFound",
            Self::PolicyNotFound => "PolicyNotFound",
            Self::ListingRefused => "ListingRefused",
            Self::Failing => "Failing",
        }
    }
}

const fn default_per_second() -> i32 {
    10
}

const fn default_burst() -> i32 {
    20
}

fn default_max_age() -> TimeSpan {
    TimeSpan::from_secs(1800)
}
