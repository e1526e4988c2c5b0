//! The custom resources of Vitrine, `vitrine.dev/v1alpha1`: types, CEL rules, printer columns. No client, no I/O.
//!
//! What the API server can judge alone is CEL here; what needs the platform's envelope is judged by the
//! operator (`vitrine-policies::envelope`).

pub mod conditions;
pub mod duration;
pub mod generate;
pub mod preview_policy;
pub mod preview_pool;
pub mod preview_sandbox;
pub mod quantity;
pub mod sku_listing;

pub use conditions::{Phase, StatusReason};
pub use duration::TimeSpan;
pub use preview_policy::{PreviewPolicy, PreviewPolicySpec, PreviewPolicyStatus};
pub use preview_pool::{PreviewPool, PreviewPoolSpec, PreviewPoolStatus};
pub use preview_sandbox::{PreviewSandbox, PreviewSandboxSpec, PreviewSandboxStatus};
pub use quantity::Amount;
pub use sku_listing::{SkuListing, SkuListingSpec, SkuListingStatus};

/// The API group of every custom resource here.
pub const GROUP: &str = "vitrine.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";
/// The one PreviewPolicy a cluster has.
pub const POLICY_NAME: &str = "default";
