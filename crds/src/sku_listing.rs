//! `SkuListing`: what a seller offers: how it is previewed, how it is sold, and whether it is. Types only.

#![allow(
    clippy::duplicated_attributes,
    reason = "the derive takes one printcolumn a column, and some columns share a type and a priority"
)]

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    conditions,
    duration::TimeSpan,
    preview_policy::{HOST_NAME, ORIGIN, RUNTIME},
    quantity,
};

/// A product, how it is previewed and how it is sold.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "SkuListing",
    plural = "skulistings",
    shortname = "sku",
    category = "vitrine",
    namespaced,
    status = "SkuListingStatus",
    derive = "PartialEq",
    doc = "A product of a seller, how it is previewed and how it is sold.",
    printcolumn(json_path = ".spec.sku", name = "SKU", type_ = "string"),
    printcolumn(json_path = ".spec.version", name = "Version", type_ = "string"),
    printcolumn(json_path = ".spec.seller", name = "Seller", type_ = "string"),
    printcolumn(
        json_path = ".spec.preview.image",
        name = "Image",
        type_ = "string",
        priority = 1
    ),
    printcolumn(
        json_path = r#".status.conditions[?(@.type=="Published")].status"#,
        name = "Published",
        type_ = "string"
    ),
    printcolumn(
        json_path = r#".status.conditions[?(@.type=="Published")].reason"#,
        name = "Why",
        type_ = "string"
    ),
    printcolumn(
        json_path = r#".status.conditions[?(@.type=="Published")].message"#,
        name = "Message",
        type_ = "string",
        priority = 1
    ),
    printcolumn(json_path = ".metadata.creationTimestamp", name = "Age", type_ = "date")
)]
#[serde(rename_all = "camelCase")]
pub struct SkuListingSpec {
    /// The product's name in the shop, unique with its seller.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"), length(max = 128))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("sku is immutable: make a new listing"))]
    pub sku: String,
    /// Who sells it.
    #[schemars(regex(pattern = "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"), length(max = 128))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("seller is immutable: make a new listing"))]
    pub seller: String,
    /// The version on offer, as semver.
    #[schemars(
        regex(pattern = "^[0-9]+\\.[0-9]+\\.[0-9]+(-[0-9A-Za-z.-]+)?(\\+[0-9A-Za-z.-]+)?$"),
        length(max = 64)
    )]
    pub version: String,
    /// How it is previewed.
    pub preview: PreviewTemplate,
    /// How it is sold. Not at all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sale: Option<Sale>,
}

/// How a product is sold: what an order and a licence take over when it is bought.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sale {
    /// Its name for buyers, in one line.
    #[schemars(regex(pattern = r"^[^\p{Cc}]+$"), length(min = 1, max = 200))]
    pub title: String,
    /// The versions that a licence is for, as a range of semver like `>=1.2, <2`. The version on offer is one of them.
    #[schemars(length(min = 1, max = 128))]
    pub versions: String,
    /// What one costs, a price a currency. Absent: who runs the shop says it there. Orders keep the price that they were made by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["currency".into()]))]
    pub prices: Option<Vec<Price>>,
    /// What its licences say.
    #[serde(default)]
    pub licence: LicenceTerms,
}

/// What one unit costs in one currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// Of which currency, as ISO 4217 writes it.
    #[schemars(regex(pattern = "^[A-Z]{3}$"))]
    pub currency: String,
    /// How much, in the currency's smallest unit: 2000 is 20.00 EUR, and 2000 JPY.
    #[schemars(range(min = 0, max = 999_999_999_999_i64))]
    pub minor: i64,
    /// The tax on it, in millionths: 190000 is 19 %.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub tax_rate_ppm: i32,
    /// Whether the price has the tax in it.
    #[serde(default)]
    pub tax_included: bool,
}

/// What each licence of a product says, beside whose it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LicenceTerms {
    /// For how many days it holds; for ever if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 36500))]
    pub days: Option<i32>,
    /// Installations at once; any number if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub instances: Option<i32>,
    /// People who use it; any number if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub users: Option<i32>,
    /// Domains that it may be used for; any if empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 64), inner(regex(pattern = HOST_NAME), length(max = 253)))]
    pub domains: BTreeSet<String>,
    /// What it allows, by names of the product's own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(
        length(max = 64),
        inner(regex(pattern = "^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$"), length(max = 64))
    )]
    pub entitlements: BTreeSet<String>,
}

/// Whether a product is sold.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkuListingStatus {
    /// The condition Published: shops sell it. Its reason is one of [`PublishedReason`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// The condition type of a `SkuListing`: shops sell it.
pub const PUBLISHED: &str = "Published";

/// Why a listing is published, or is not: the closed list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum PublishedReason {
    /// It is valid.
    Valid,
    /// It does not say how it is sold.
    NotForSale,
    /// How it is sold makes no sense.
    SaleUnsound,
    /// An older listing of this seller sells this SKU.
    SkuTaken,
    /// The platform's PreviewPolicy `default` does not exist.
    PolicyNotFound,
    /// Its preview asks for more than the platform's envelope allows.
    OutsideEnvelope,
}

impl From<PublishedReason> for &'static str {
    fn from(reason: PublishedReason) -> Self {
        reason.as_str()
    }
}

impl PublishedReason {
    /// The CamelCase word of the reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "Valid",
            Self::NotForSale => "NotForSale",
            Self::SaleUnsound => "SaleUnsound",
            Self::SkuTaken => "SkuTaken",
            Self::PolicyNotFound => "PolicyNotFound",
            Self::OutsideEnvelope => "OutsideEnvelope",
        }
    }
}

impl SkuListing {
    /// Whether shops may sell it: the operator has judged what it says now, and has nothing against it.
    pub fn is_published(&self) -> bool {
        let status = self.status.as_ref();
        let judged = status.and_then(|status| conditions::find(&status.conditions, PUBLISHED));
        judged.is_some_and(|it| it.status == "True" && it.observed_generation == self.metadata.generation)
    }
}

/// How a product is previewed: one container that serves HTTP.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreviewTemplate {
    /// The image, pinned by digest.
    #[schemars(
        regex(pattern = "^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?@sha256:[0-9a-f]{64}$"),
        length(max = 512)
    )]
    pub image: String,
    /// The TCP port on which the product serves HTTP. Ports of the probe (20000 to 20200) are not free.
    #[schemars(range(min = 1024, max = 65535))]
    #[x_kube(validation = Rule::new("self < 20000 || self > 20200").message("ports 20000 to 20200 belong to the isolation probe"))]
    pub port: i32,
    /// The command, if not the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub command: Vec<String>,
    /// The arguments, if not the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// Environment variables with literal values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
    /// The folders it may write to: memory, gone with the preview.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.path == a.path))").message("every writable folder has a path of its own"))]
    pub writable: Vec<WritableFolder>,
    /// What it may use.
    pub size: Size,
    /// The RuntimeClass it has to run under, of those that the platform allows; the platform's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = RUNTIME), length(max = 253))]
    pub runtime_class: Option<String>,
    /// Host names it wants to reach; the platform's policy decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(regex(pattern = HOST_NAME), length(max = 253)))]
    pub egress: Vec<String>,
    /// The origins whose pages may show it in a frame, of those that the platform allows; all of those if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(regex(pattern = ORIGIN), length(max = 261)))]
    pub embed_origins: Option<Vec<String>>,
    /// The longest a preview of it may live, where the seller wants it shorter than the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("maxTtl must be longer than 0s"))]
    pub max_ttl: Option<TimeSpan>,
    /// The path that answers 2xx or 3xx once the product can be shown. Without it an open port is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/[A-Za-z0-9._~/-]*$"), length(max = 256))]
    pub health_path: Option<String>,
    /// The path that a visitor is sent to first; `/` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^/([A-Za-z0-9._~-][A-Za-z0-9._~/-]*)?$"), length(max = 256))]
    pub landing_path: Option<String>,
}

/// An environment variable with a literal value: previews see no secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// Its name.
    #[schemars(regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"), length(max = 128))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4096))]
    pub value: String,
}

/// A folder in memory, counted against the preview's memory.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WritableFolder {
    /// Absolute path in the container.
    #[schemars(regex(pattern = "^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$"), length(max = 256))]
    #[x_kube(validation = Rule::new("!['/proc','/sys','/dev','/etc','/run','/var/run'].exists(p, self == p || self.startsWith(p + '/'))").message("path must be an ordinary folder, outside /proc, /sys, /dev, /etc, /run and /var/run"))]
    pub path: String,
    /// Its largest size, as a quantity of bytes.
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub size: String,
}

/// CPU, memory and scratch space, as Kubernetes quantities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    /// Cores.
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub cpu: String,
    /// Bytes of memory, writable folders included.
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub memory: String,
    /// Bytes of scratch space (logs; the root file system is read-only).
    #[schemars(regex(pattern = quantity::PATTERN), length(max = 24))]
    pub ephemeral_storage: String,
}
