//! Whether a licence may be signed: by Finance's receipt for this very order, and because it says what the order says. Pure.

use uuid::Uuid;
use vitrine_commerce::{
    finance::{self, BadReceipt},
    licence::{self, Grant, Licence},
    money::Money,
    note::{self, BadNote, NamedKey},
};

/// What the database has of a licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: Uuid,
    /// Of which item.
    pub item: Uuid,
    /// Of which unit of it.
    pub unit: u32,
    /// Of which order.
    pub order: Uuid,
    /// What the order comes to.
    pub total: Money,
    /// Who buys: identity provider and its name for them.
    pub buyer: (String, String),
    /// What is bought, and which versions of it.
    pub sku: (String, String),
    /// What a licence for it says.
    pub grant: Grant,
    /// What Finance was asked for.
    pub request: Vec<u8>,
    /// Its receipt.
    pub receipt: Vec<u8>,
    /// What is to be signed.
    pub text: Vec<u8>,
    /// By which key.
    pub key: String,
}

/// Why a licence is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Finance has not acknowledged this order.
    #[error("licence {0}: {1}")]
    Receipt(Uuid, BadReceipt),
    /// Finance has acknowledged the order, and this is nothing of what was bought then.
    #[error("licence {id}: unit {unit} of item {item} is not among what Finance has acknowledged")]
    NotBought {
        /// Which.
        id: Uuid,
        /// Of which item.
        item: Uuid,
        /// Of which unit.
        unit: u32,
    },
    /// It is no licence.
    #[error("licence {0}: {1}")]
    Text(Uuid, BadNote),
    /// It says something else than the order.
    #[error("licence {id}: its {field} is not the order's")]
    Differs {
        /// Which.
        id: Uuid,
        /// In what.
        field: &'static str,
    },
    /// It is to be signed by a key that is not here.
    #[error("licence {id} is to be signed by {key}, which is not this signer's; a retired key signs nothing")]
    Key {
        /// Which.
        id: Uuid,
        /// By which.
        key: String,
    },
}

/// Whether a licence may be signed.
///
/// # Errors
/// Why it must not.
pub fn judge(row: &Row, finance_keys: &[NamedKey], own: &NamedKey) -> Result<(), Refused> {
    let id = row.id;
    if row.key != own.to_string() {
        let key = row.key.clone();
        return Err(Refused::Key { id, key });
    }
    let bad = |bad| Refused::Receipt(id, bad);
    let (receipt, asked) = finance::of_request(&row.receipt, finance_keys, &row.request).map_err(bad)?;
    finance::acknowledges(&receipt, row.order, row.total).map_err(bad)?;
    // Whoever can write rows can add a unit to an order; what it was acknowledged for is under Finance's signature.
    let (item, unit) = (row.item, row.unit);
    if !asked
        .parts
        .iter()
        .any(|part| (part.item, part.unit) == (item, unit))
    {
        return Err(Refused::NotBought { id, item, unit });
    }
    let said: Licence = note::unsigned(licence::KIND, &row.text).map_err(|bad| Refused::Text(id, bad))?;
    let (issuer, subject) = &row.buyer;
    let seconds = |days: u32| i64::from(days) * 86_400;
    let expires = row
        .grant
        .days
        .map(|days| said.issued_at.as_second().saturating_add(seconds(days)));
    let same = [
        ("id", said.id == id && id == licence::id(row.item, row.unit)),
        ("order", said.order == row.order),
        (
            "product",
            (&said.sku.id, &said.sku.versions) == (&row.sku.0, &row.sku.1),
        ),
        ("buyer", said.buyer.account == licence::account(issuer, subject)),
        ("manifest", said.manifest == row.grant.manifest),
        ("limits", said.limits == row.grant.limits),
        ("entitlements", said.entitlements == row.grant.entitlements),
        ("expiry", said.expires.map(|at| at.as_second()) == expires),
        (
            "receipt",
            said.finance_receipt_sha256 == finance::digest(&row.receipt),
        ),
    ];
    match same.into_iter().find(|(_, is_same)| !is_same) {
        Some((field, _)) => Err(Refused::Differs { id, field }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
