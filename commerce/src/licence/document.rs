//! What a licence says. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sha256;

/// What a licence's note says that it is.
pub const KIND: &str = "vitrine.dev/licence/v1";
/// Ids of licences are made in it (RFC 9562, section 5.5); this one was made at random, once.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d0f_3c1e_52c4_4bb1_9d57_8a1f_6f0b_27e4);

/// A licence for one unit of an order. Everything in it is text, whole numbers, lists and objects: there is one way to write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Licence {
    /// The same whenever the unit is licensed ([`id`]).
    pub id: Uuid,
    /// Of which order.
    pub order: Uuid,
    /// What is licensed.
    pub sku: Sku,
    /// The signed manifest of what is delivered, where the listing has one (LIC-02).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
    /// Whose it is.
    pub buyer: Buyer,
    /// How far it goes.
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// What it allows, sorted.
    pub entitlements: Vec<String>,
    /// When its bytes were fixed, in whole seconds.
    pub issued_at: Timestamp,
    /// From when it holds.
    pub not_before: Timestamp,
    /// Until when it holds; for ever without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// How old the newest revocation list may be, in seconds; any, or none at all, without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_staleness_seconds: Option<u32>,
    /// For so long after that it still holds, with a warning.
    pub grace_seconds: u32,
    /// SHA-256 of Finance's receipt, in hex digits: the buyer can ask for it and check it.
    pub finance_receipt_sha256: String,
    /// Where the revocation list is.
    pub revocations: String,
    /// Names of extensions without which the licence must not be used, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
    /// What later versions may add.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
}

/// A product and its versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sku {
    /// Its id.
    pub id: String,
    /// Which of its versions, like `>=1.2, <2`.
    pub versions: String,
}

/// A signed manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// `sha256:` and hex digits.
    pub digest: String,
    /// Which signature of it.
    pub signature_id: String,
}

/// Whose a licence is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buyer {
    /// Who, in a form that says it only to who knows already ([`account`]).
    pub account: String,
    /// The fingerprint of the key that deliveries are encrypted to, if there is one yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
}

/// How far a licence goes; without a limit as far as one likes (LIC-09).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Installations at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// People.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<u32>,
    /// Domains, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

impl Limits {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What is granted with each unit of a product, as its listing says: what a licence takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Grant {
    /// The signed manifest of what is delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Manifest>,
    /// How far it goes.
    #[serde(skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
    /// What it allows, sorted.
    pub entitlements: Vec<String>,
    /// For how many days; for ever without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
}

/// The id of the licence for a unit of an order's item: the same whoever reckons it, and whenever (LIC-26).
pub fn id(item: Uuid, unit: u32) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{item}/{unit}").as_bytes())
}

/// Who a licence is for: SHA-256 of the identity provider and its name for the person, in hex digits.
pub fn account(issuer: &str, subject: &str) -> String {
    // A line break is in neither of them (OpenID Connect Core 1.0, section 2).
    sha256(format!("{issuer}\n{subject}"))
}
