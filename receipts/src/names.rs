//! Names of what receipts are kept in, on a cluster.

/// The ConfigMap of Vitrine's own namespace with the public keys, PEM. Whose id each is, the key itself says.
pub const KEYS: &str = "vitrine-receipt-keys";
/// Before the preview's uid in the name of the ConfigMap that holds a receipt.
pub const PREFIX: &str = "receipt-";
/// The key in its data under which the envelope is.
pub const DATA: &str = "receipt.json";
/// Its label: whether the sink has still to get it, [`PENDING`] or [`KEPT`].
pub const STATE_LABEL: &str = "vitrine.dev/receipt";
/// The sink has to get it.
pub const PENDING: &str = "pending";
/// There is no sink; it is kept for its retention.
pub const KEPT: &str = "kept";
/// Its annotation: until when a [`KEPT`] one is kept.
pub const UNTIL_ANNOTATION: &str = "vitrine.dev/keep-until";
