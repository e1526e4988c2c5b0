//! `SkuListing`: what a seller offers; here the template of its preview. Types only.

#![allow(
    clippy::duplicated_attributes,
    reason = "the derive takes one printcolumn a column, and some columns share a type and a priority"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    duration::TimeSpan,
    preview_policy::{HOST_NAME, ORIGIN, RUNTIME},
    quantity,
};

/// A product and how it is previewed.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "vitrine.dev",
    version = "v1alpha1",
    kind = "SkuListing",
    plural = "skulistings",
    shortname = "sku",
    category = "vitrine",
    namespaced,
    doc = "A product of a seller and how it is previewed.",
    printcolumn(json_path = ".spec.sku", name = "SKU", type_ = "string"),
    printcolumn(json_path = ".spec.version", name = "Version", type_ = "string"),
    printcolumn(json_path = ".spec.seller", name = "Seller", type_ = "string"),
    printcolumn(
        json_path = ".spec.preview.image",
        name = "Image",
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
