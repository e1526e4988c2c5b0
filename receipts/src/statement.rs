//! What a receipt states: an in-toto Statement v1 whose subject is the image that ran. Pure.
//!
//! <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vitrine_crds::{
    PreviewSandbox,
    preview_sandbox::{IsolationEvidence, Receipt},
};

/// The `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The `predicateType` of a receipt.
pub const PREDICATE_TYPE: &str = "https://vitrine.dev/preview-receipt/v1";

/// A statement: this is true of that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub type_: String,
    /// The image that ran.
    pub subject: Vec<ResourceDescriptor>,
    /// [`PREDICATE_TYPE`].
    pub predicate_type: String,
    /// What is true of it.
    pub predicate: Predicate,
}

/// What a statement is about, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceDescriptor {
    /// The image's repository.
    pub name: String,
    /// `sha256` → hex digits.
    pub digest: BTreeMap<String, String>,
}

/// What happened to a preview.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// The preview, `namespace/name`.
    pub name: String,
    /// SHA-256 of the subject it was for, in hex digits: who knows the subject can find its receipts, who does not learns nothing.
    pub subject_sha256: String,
    /// Who sells what ran.
    pub seller: String,
    /// The listing, its uid and generation (`uid/generation`).
    pub listing: String,
    /// What the preview's status says of its end; `signed` and `deliveredAt` are not part of it.
    #[serde(flatten)]
    pub receipt: Receipt,
    /// What the probe saw from inside, target by target, if it came to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationEvidence>,
}

/// The statement of a preview whose end is recorded; `None` if it is not yet.
///
/// The same bytes come of it whenever it is asked: all of it was written with the record of the end or before.
pub fn statement(preview: &PreviewSandbox) -> Option<Statement> {
    let status = preview.status.as_ref()?;
    let mut receipt = status.receipt.clone()?;
    receipt.signed = None;
    receipt.delivered_at = None;
    let (name, digest) = receipt.image.split_once("@sha256:").unwrap_or_default();
    let subject = ResourceDescriptor {
        name: name.to_owned(),
        digest: BTreeMap::from([("sha256".to_owned(), digest.to_owned())]),
    };
    let envelope = status.envelope.as_ref();
    Some(Statement {
        type_: STATEMENT_TYPE.to_owned(),
        // A preview that was never admitted ran no image.
        subject: if digest.is_empty() { vec![] } else { vec![subject] },
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            name: format!(
                "{}/{}",
                preview.namespace().unwrap_or_default(),
                preview.name_any()
            ),
            subject_sha256: hex::encode(Sha256::digest(&preview.spec.subject)),
            seller: envelope.map(|e| e.seller.clone()).unwrap_or_default(),
            listing: envelope.map(|e| e.listing.clone()).unwrap_or_default(),
            receipt,
            isolation: status.isolation.clone(),
        },
    })
}
