//! `PreviewPolicy`: the platform's envelope, one for the cluster, named `default`. Types only.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{duration::TimeSpan, preview_sandbox::TrustLevel, quantity, sku_listing::Size};

/// The platform's envelope: no preview and no listing gets more than this, whoever asks.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "PreviewPolicy",
    plural = "previewpolicies",
    category = "vitrine",
    status = "PreviewPolicyStatus",
    doc = "The platform's envelope for previews; there is one, named `default`.",
    validation = Rule::new("self.metadata.name == 'default'").message("there is one PreviewPolicy a cluster and its name is \"default\""),
    printcolumn(json_path = ".spec.ttl.default", name = "TTL", type_ = "string"),
    printcolumn(json_path = ".spec.ttl.max", name = "Max TTL", type_ = "string"),
    printcolumn(json_path = ".spec.limits.perSubject", name = "Per subject", type_ = "integer"),
    printcolumn(json_path = ".spec.limits.cluster", name = "Cluster", type_ = "integer"),
    printcolumn(json_path = ".spec.maintenance.admission", name = "Admission", type_ = "string"),
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
    /// How many previews may live at once. A preview counts from its admission to the proof of its end.
    #[serde(default)]
    pub limits: Limits,
    /// What differs by how well a subject is known.
    #[serde(default)]
    pub trust_levels: TrustLevels,
    /// How previews wait for a slot.
    #[serde(default)]
    pub queue: Queue,
    /// How much of the nodes previews may take.
    #[serde(default)]
    pub capacity: Capacity,
    /// Subjects that get no preview.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["sha256".into()]))]
    pub blocked_subjects: Vec<BlockedSubject>,
    /// Switches for people who repair something.
    #[serde(default)]
    pub maintenance: Maintenance,
    /// How the namespaces of previews are used.
    #[serde(default)]
    pub cells: Cells,
    /// How many cells may wait for previews.
    #[serde(default)]
    pub pools: Pools,
    /// The largest preview.
    pub size: SizeRange,
    /// Where images may come from.
    #[serde(default)]
    pub images: ImageRange,
    /// Under which runtimes previews run.
    #[serde(default)]
    pub runtimes: Runtimes,
    /// What is taken for abuse, and what is done about it. Nothing if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abuse: Option<AbuseRules>,
    /// Where previews may connect to.
    #[serde(default)]
    pub egress: EgressRange,
    /// How much traffic a preview may have.
    #[serde(default)]
    pub traffic: Traffic,
    /// Where previews may be shown.
    #[serde(default)]
    pub embedding: Embedding,
    /// What the isolation probe must find shut.
    pub isolation: IsolationTargets,
    /// What a listing must have to be sold.
    #[serde(default)]
    pub publishing: Publishing,
}

/// What a listing must have to be sold, beside being sound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Publishing {
    /// Whether its manifest must be signed.
    #[serde(default)]
    pub signature: SignatureRule,
}

/// Whether a listing's manifest must be signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SignatureRule {
    /// It need not be.
    #[default]
    Optional,
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

/// How many previews may live at once. Every limit holds at every moment, with any number of operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Previews of one subject.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub per_subject: i32,
    /// Previews from one network. Previews that name no network are not counted here.
    #[serde(default = "default_per_network")]
    #[schemars(range(min = 1, max = 1000))]
    pub per_network: i32,
    /// Previews of one listing.
    #[serde(default = "default_per_listing")]
    #[schemars(range(min = 1, max = 20000))]
    pub per_listing: i32,
    /// Previews of all listings of one seller.
    #[serde(default = "default_per_seller")]
    #[schemars(range(min = 1, max = 20000))]
    pub per_seller: i32,
    /// All previews.
    #[serde(default = "default_cluster")]
    #[schemars(range(min = 1, max = 20000))]
    pub cluster: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_subject: one(),
            per_network: default_per_network(),
            per_listing: default_per_listing(),
            per_seller: default_per_seller(),
            cluster: default_cluster(),
        }
    }
}

/// What differs by how well a subject is known. Only the group `vitrine:requesters` may name a level above Anonymous.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(!has(self.anonymous.maxTtl) || duration(self.anonymous.maxTtl) > duration('0s')) && (!has(self.signedIn.maxTtl) || duration(self.signedIn.maxTtl) > duration('0s')) && (!has(self.paymentVerified.maxTtl) || duration(self.paymentVerified.maxTtl) > duration('0s'))").message("maxTtl of a trust level must be longer than 0s"))]
pub struct TrustLevels {
    /// Nothing is known of the subject.
    #[serde(default)]
    pub anonymous: Level,
    /// The subject is signed in.
    #[serde(default)]
    pub signed_in: Level,
    /// The subject has paid before.
    #[serde(default)]
    pub payment_verified: Level,
}

impl TrustLevels {
    /// What holds for subjects known this well.
    pub const fn of(&self, level: TrustLevel) -> &Level {
        match level {
            TrustLevel::Anonymous => &self.anonymous,
            TrustLevel::SignedIn => &self.signed_in,
            TrustLevel::PaymentVerified => &self.payment_verified,
        }
    }
}

/// What holds for subjects of one trust level. What is absent is as for everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// Previews of one subject, in place of `limits.perSubject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub per_subject: Option<i32>,
    /// Previews from one network, in place of `limits.perNetwork`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub per_network: Option<i32>,
    /// The longest time to live, where it is to be shorter than `ttl.max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<TimeSpan>,
    /// Higher goes first in the queue; previews of one priority go by age.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
}

/// How previews wait for a slot.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.deadline) > duration('0s') && duration(self.deadline) <= duration('24h')").message("queue.deadline must be longer than 0s and at most 24h"))]
pub struct Queue {
    /// How long a preview may wait, from its creation, before it is given up.
    #[serde(default = "default_queue_deadline")]
    pub deadline: TimeSpan,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            deadline: default_queue_deadline(),
        }
    }
}

/// How much of the nodes previews may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Previews wait for room once they request more than so many hundredths of what is allocatable on the nodes that take
    /// them. If absent, the nodes are not considered: for clusters that grow when pods are pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub percent_of_nodes: Option<i32>,
}

/// A subject that gets no preview. Named by a hash: this object is read by many, and subjects are people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockedSubject {
    /// SHA-256 of the subject in hexadecimal, as `printf %s SUBJECT | sha256sum` writes it.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"), length(max = 64))]
    pub sha256: String,
    /// Until when; for good if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Why, for the people who look after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

/// Switches for people who repair something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Maintenance {
    /// Whether new previews are let in. Those that wait keep their place, and their deadline in the queue.
    #[serde(default)]
    pub admission: Admission,
    /// Whether the time of live previews runs.
    #[serde(default)]
    pub expiry: Expiry,
}

/// Whether the time of live previews runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Expiry {
    /// It does.
    #[default]
    Running,
    /// A preview whose time is about to be over gets a little more, again and again, up to the longest that it may come to live.
    Suspended,
}

/// Whether new previews are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Admission {
    /// As the limits allow.
    #[default]
    Open,
    /// None.
    Suspended,
}

/// What the operator keeps about the policy. No `observedGeneration`: nothing here follows a change at once, and whoever waits
/// for it, as Helm does, would wait in vain.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewPolicyStatus {
    /// Below which index slots may be held. Raised before the first slot of a raised limit is taken; lowered after a limit
    /// only when no slot above it is held any more, so that whoever takes a slot knows how far up others may still hold some.
    #[serde(default)]
    pub ceilings: Ceilings,
    /// Subjects that get no preview because of what one of theirs did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["sha256".into()]))]
    pub blocked_subjects: Vec<BlockedSubject>,
    /// Nodes that get no preview because isolation did not hold on them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub nodes_set_aside: Vec<NodeSetAside>,
    /// Until when no cells are made for previews that may come: `vitrine drain` removes those that are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining_until: Option<Time>,
}

/// A node that gets no preview for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSetAside {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Until when.
    pub until: Time,
    /// What was seen on it.
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// Below which index slots of each dimension may be held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ceilings {
    /// Of one subject.
    #[serde(default)]
    pub subject: i32,
    /// Of one network.
    #[serde(default)]
    pub network: i32,
    /// Of one listing.
    #[serde(default)]
    pub listing: i32,
    /// Of one seller.
    #[serde(default)]
    pub seller: i32,
    /// Of the cluster.
    #[serde(default)]
    pub cluster: i32,
}

/// How cells, the namespaces of previews, are used. A preview has one for itself while it lives.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.maxAge) > duration('0s') && duration(self.maxAge) <= duration('720h') && duration(self.keepFree) <= duration('24h')").message("cells.maxAge must be longer than 0s and at most 720h, cells.keepFree at most 24h"))]
pub struct Cells {
    /// Whether a cell is used again, by previews of the same seller and trust level that are confined alike, once its preview was seen
    /// to end and nothing was wrong with it.
    #[serde(default)]
    pub mode: CellUse,
    /// How old a cell may be and still be used again.
    #[serde(default = "default_cell_age")]
    pub max_age: TimeSpan,
    /// How many previews may have a cell, one after the other.
    #[serde(default = "default_cell_uses")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_uses: i32,
    /// How long a free cell is kept for the next preview.
    #[serde(default = "default_keep_free")]
    pub keep_free: TimeSpan,
}

impl Default for Cells {
    fn default() -> Self {
        Self {
            mode: CellUse::default(),
            max_age: default_cell_age(),
            max_uses: default_cell_uses(),
            keep_free: default_keep_free(),
        }
    }
}

/// Whether cells are used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CellUse {
    /// They are.
    #[default]
    Reuse,
    /// Each preview gets a new one, which is removed at its end.
    Fresh,
}

/// How many cells may wait for previews. Each takes a slot of its listing, its seller and the cluster while it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pools {
    /// Of one pool, whatever it asks for.
    #[serde(default = "default_pool_replicas")]
    #[schemars(range(min = 0, max = 20000))]
    pub max_replicas: i32,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            max_replicas: default_pool_replicas(),
        }
    }
}

/// The largest size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SizeRange {
    /// No preview is larger than this.
    pub max: Size,
}

/// Where images may come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageRange {
    /// Repositories, or folders of them, like `mirror.example/verified`: into which only verified images are copied. `{seller}` in one,
    /// as in `mirror.example/{seller}`, stands for the listing's `spec.seller`, who then gets no other seller's images, unless another
    /// entry contains them; so write listings only for their sellers. Empty: images may come from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(regex(pattern = REPOSITORY), length(max = 255)))]
    pub repositories: Vec<String>,
}

/// A repository or a folder of repositories, with its registry and without a tag.
pub const REPOSITORY: &str =
    r"^[a-z0-9]([a-z0-9._:-]*[a-z0-9])?(/([a-z0-9]([a-z0-9._:-]*[a-z0-9])?|\{seller\}))*$";
/// What stands for the listing's seller in a repository, as a whole part of its path.
const SELLER: &str = "{seller}";

impl ImageRange {
    /// The repositories of one seller's images.
    pub fn of_seller(&self, seller: &str) -> Vec<String> {
        let repositories = self.repositories.iter();
        repositories.map(|one| one.replace(SELLER, seller)).collect()
    }

    /// Whether an image of a seller, named by digest, may run.
    pub fn allows(&self, image: &str, seller: &str) -> bool {
        let within = |repository: &String| {
            image
                .strip_prefix(repository.as_str())
                .is_some_and(|rest| rest.starts_with(['/', '@']))
        };
        self.repositories.is_empty() || self.of_seller(seller).iter().any(within)
    }
}

/// Under which runtimes previews run, by the names of their RuntimeClasses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtimes {
    /// Of previews whose listing asks for none; the cluster's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = RUNTIME), length(max = 253))]
    pub default: Option<String>,
    /// Others that listings may ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(regex(pattern = RUNTIME), length(max = 253)))]
    pub allowed: Vec<String>,
}

/// The name of a RuntimeClass (RFC 1123, a subdomain).
pub const RUNTIME: &str = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";

/// What is taken for abuse. Each sign that a preview shows adds its points; their sum decides what is done.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.blockFor) > duration('0s') && duration(self.blockFor) <= duration('8760h')").message("abuse.blockFor must be longer than 0s and at most 8760h"))]
#[x_kube(validation = Rule::new("!has(self.sustainedCpu) || (duration(self.sustainedCpu.period) >= duration('10s') && duration(self.sustainedCpu.period) <= duration('30m'))").message("abuse.sustainedCpu.period must be 10s to 30m"))]
pub struct AbuseRules {
    /// It uses nearly all the processor time that it may, for long: so do miners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sustained_cpu: Option<SustainedCpu>,
    /// It asks the egress proxy for names that it may not reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_denials: Option<Sign>,
    /// It has many processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Sign>,
    /// So many previews were made from its network within an hour, all subjects together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_previews: Option<Sign>,
    /// From so many points on it gets a tenth of its processor time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub throttle_at: Option<i32>,
    /// From so many points on it is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub end_at: Option<i32>,
    /// From so many points on it is ended, and its subject gets no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub block_at: Option<i32>,
    /// For how long its subject is blocked.
    #[serde(default = "default_block")]
    pub block_for: TimeSpan,
}

/// Processor time near the limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SustainedCpu {
    /// In hundredths of what it may use.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
    /// For how long.
    pub period: TimeSpan,
    /// What that adds.
    #[schemars(range(min = 1, max = 1000))]
    pub points: i32,
}

/// A count that is too high.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sign {
    /// From how many on.
    #[schemars(range(min = 1, max = 1000000))]
    pub count: i32,
    /// What that adds.
    #[schemars(range(min = 1, max = 1000))]
    pub points: i32,
}

fn default_block() -> TimeSpan {
    TimeSpan::from_secs(24 * 3600)
}

/// Where previews may connect to: only through the egress proxy, on ports 443 and 80.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressRange {
    /// Exact host names. One that is taken off the list is shut at once, for live previews too.
    #[serde(default)]
    #[schemars(length(max = 256), inner(regex(pattern = HOST_NAME), length(max = 253)))]
    pub allowed_names: Vec<String>,
}

/// A host name of at least two labels, lower case, that is no IPv4 address (RFC 1123, section 2.1).
pub const HOST_NAME: &str = "^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]([a-z0-9-]*[a-z0-9])?$";

/// How much traffic a preview may have. Each gateway and each egress proxy counts for itself.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(!has(self.unopened) || duration(self.unopened) > duration('0s')) && (!has(self.idle) || duration(self.idle) > duration('0s'))").message("traffic.unopened and traffic.idle must be longer than 0s"))]
pub struct Traffic {
    /// Bytes that visitors may get of one preview in all, as a quantity.
    #[serde(default = "default_visitor_bytes")]
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub visitor_bytes: String,
    /// Requests that one preview gets a second; ten seconds' worth may come at once.
    #[serde(default = "default_requests_per_second")]
    #[schemars(range(min = 1, max = 100000))]
    pub requests_per_second: i32,
    /// Bytes, both ways, that one preview may exchange with the names it may reach, in all, as a quantity.
    #[serde(default = "default_egress_bytes")]
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub egress_bytes: String,
    /// A preview that nobody has opened so long after it was ready ends. If absent, it waits for its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unopened: Option<TimeSpan>,
    /// A preview that was opened, and then had no request and no open connection for so long, ends. If absent, it waits for
    /// its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<TimeSpan>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            visitor_bytes: default_visitor_bytes(),
            requests_per_second: default_requests_per_second(),
            egress_bytes: default_egress_bytes(),
            unopened: None,
            idle: None,
        }
    }
}

impl Traffic {
    /// `visitorBytes` as a number; nothing if the text is no quantity, which the API server refuses.
    pub fn visitor_limit(&self) -> u64 {
        bytes(&self.visitor_bytes)
    }

    /// `egressBytes` as a number; nothing if the text is no quantity, which the API server refuses.
    pub fn egress_limit(&self) -> u64 {
        bytes(&self.egress_bytes)
    }
}

fn bytes(text: &str) -> u64 {
    text.parse::<quantity::Amount>()
        .map_or(0, quantity::Amount::units)
}

fn default_visitor_bytes() -> String {
    "1Gi".to_owned()
}

fn default_egress_bytes() -> String {
    "256Mi".to_owned()
}

const fn default_requests_per_second() -> i32 {
    100
}

/// Where previews may be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Embedding {
    /// The origins, like `https://shop.example`, whose pages may show previews in a frame. None: previews are pages of their own.
    #[serde(default)]
    #[schemars(length(max = 64), inner(regex(pattern = ORIGIN), length(max = 261)))]
    pub allowed_origins: Vec<String>,
}

/// An origin as browsers write it (RFC 6454), without a default port.
pub const ORIGIN: &str = "^https?://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[1-9][0-9]{0,4})?$";

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
    /// The kubelet's port on every node.
    #[serde(default = "default_kubelet_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub kubelet_port: i32,
    /// Ports on which something listens on every node, beside the kubelet's, as an ingress controller's NodePort: some networks let
    /// pods reach these whatever their policies say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(range(min = 1, max = 65535)))]
    pub node_ports: Vec<i32>,
    /// Whether the node's own listeners (kubelet, API server on its node, `nodePorts`) must be shut.
    #[serde(default)]
    pub node_targets: Requirement,
    /// Whether the metadata service must be up to be proven shut (a cluster outside a cloud has none).
    #[serde(default)]
    pub metadata_target: Requirement,
    /// Whether nodes are refused whose container runtime gives an image's VOLUMEs folders on its disk, writable past the pod's
    /// read-only root and past its limits. `Reported` only where no image with a VOLUME can come.
    #[serde(default)]
    pub image_volumes: Requirement,
    /// For how long a node gets no preview after isolation did not hold on it. If absent, it goes on getting them, and each proves
    /// its isolation anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('24h')").message("isolation.nodeQuarantine must be longer than 0s and at most 24h"))]
    pub node_quarantine: Option<TimeSpan>,
}

fn default_cell_age() -> TimeSpan {
    TimeSpan::from_secs(24 * 3600)
}

const fn default_cell_uses() -> i32 {
    100
}

const fn default_pool_replicas() -> i32 {
    20
}

fn default_keep_free() -> TimeSpan {
    TimeSpan::from_secs(600)
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

/// Where Kubernetes' own tools have it listen.
const fn default_kubelet_port() -> i32 {
    10250
}

fn default_queue_deadline() -> TimeSpan {
    TimeSpan::from_secs(600)
}

const fn one() -> i32 {
    1
}

const fn default_per_network() -> i32 {
    10
}

const fn default_per_listing() -> i32 {
    50
}

const fn default_per_seller() -> i32 {
    100
}

const fn default_cluster() -> i32 {
    200
}
