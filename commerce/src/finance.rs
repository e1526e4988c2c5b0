//! What Finance signs: a receipt of one entry in its ledger. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    money::Money,
    note::{self, BadNote, NamedKey},
    sha256,
};

/// What a receipt's note says that it is.
pub const KIND: &str = "vitrine.dev/finance-receipt/v1";
/// A ledger's root before its first entry (docs/finance.md).
pub const FIRST_ROOT: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// Money of a payment is the customer's deposit.
    Deposit,
    /// A deposit is reserved for seller, fee and tax: what a licence waits for.
    Reserve,
    /// What was reserved is theirs.
    Post,
    /// Money goes back to the buyer: of what was shared out, or of a deposit that paid nothing.
    Refund,
    /// A refund has failed: the money is where it was before.
    Reinstate,
    /// An order that costs nothing; no money moves.
    Memo,
}

impl EntryKind {
    /// Whether a licence may be signed by it.
    pub const fn licenses(self) -> bool {
        matches!(self, Self::Reserve | Self::Memo)
    }
}

impl std::fmt::Display for EntryKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deposit => "deposit",
            Self::Reserve => "reserve",
            Self::Post => "post",
            Self::Refund => "refund",
            Self::Reinstate => "reinstate",
            Self::Memo => "memo",
        })
    }
}

/// Whose part of an entry is how large: of one unit, so that what is reserved for it is to the minor unit what is theirs later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// Which item of the order.
    pub item: Uuid,
    /// Which unit of it.
    pub unit: u32,
    /// Whose goods these are.
    pub seller: String,
    /// What is paid for it, tax included.
    pub total: Money,
    /// The tax in that.
    pub tax: Money,
}

/// What Finance is asked for: one entry. The bytes are stored by whoever asks, and sent again as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EntryRequest {
    /// By which the entry is found again: at most one is ever written by it.
    pub key: String,
    /// What it does.
    pub kind: EntryKind,
    /// Of which order.
    pub order: Uuid,
    /// How much, in all.
    pub amount: Money,
    /// The payment of a deposit or refund, by its provider's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment: Option<String>,
    /// What is shared out, or taken back of what was. They add up to the amount. None of a deposit, nor of a refund of a payment that paid nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// The key of the entry that this one reverses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverses: Option<String>,
}

/// One entry in Finance's ledger, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Receipt {
    /// Which ledger: another one after Finance was restored from anything but its own database.
    pub epoch: Uuid,
    /// Which entry of the ledger, from 1.
    pub sequence: u64,
    /// The ledger's root before this entry ([`FIRST_ROOT`], [`next_root`]).
    pub previous_root: String,
    /// By which the entry was asked for, and is found again.
    pub key: String,
    /// SHA-256 of the bytes that asked for it, in hex digits.
    pub request_sha256: String,
    /// What it does.
    pub kind: EntryKind,
    /// Of which order.
    pub order: Uuid,
    /// How much.
    pub amount: Money,
    /// When it was written.
    pub at: Timestamp,
}

/// An entry as somebody keeps it who has asked for it: by such, a ledger that has lost its newest entries gets them back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The [`EntryRequest`], in the bytes that were sent.
    pub request: String,
    /// The [`Receipt`], a note.
    pub receipt: String,
}

/// Where a ledger stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Head {
    /// Which ledger.
    pub epoch: Uuid,
    /// Its newest entry; 0 before the first.
    pub sequence: u64,
    /// Its root after that.
    pub root: String,
    /// When it was so.
    pub at: Timestamp,
}

impl Head {
    /// What the note of one says that it is.
    pub const KIND: &str = "vitrine.dev/finance-head/v1";
}

/// A ledger's root after an entry: SHA-256 over the root before it and the text of its receipt, in hex digits.
pub fn next_root(root: &str, text: &[u8]) -> String {
    sha256([root.as_bytes(), b"\n", text].concat())
}

/// Why a receipt does not allow what it is shown for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReceipt {
    /// It is not Finance's.
    #[error("the receipt proves nothing: {0}")]
    Note(#[from] BadNote),
    /// It is of something else.
    #[error("the receipt is of {field} {said}, and this is of {expected}")]
    OfSomethingElse {
        /// In what it differs.
        field: &'static str,
        /// What it says.
        said: String,
        /// What it should say.
        expected: String,
    },
    /// What it is said to be of cannot be read.
    #[error("this is no entry that could have been asked for: {0}")]
    Request(String),
    /// It is of an entry that acknowledges no order.
    #[error("an entry of kind {0:?} licenses nothing")]
    Kind(EntryKind),
}

/// Opens a receipt.
///
/// # Errors
/// If it is not signed by Finance.
pub fn open(note: &[u8], keys: &[NamedKey]) -> Result<Receipt, BadNote> {
    note::open(KIND, note, keys)
}

/// Opens the receipt of what was asked for in these bytes.
///
/// # Errors
/// If it is not Finance's, or of something else.
pub fn of_request(
    note: &[u8],
    keys: &[NamedKey],
    request: &[u8],
) -> Result<(Receipt, EntryRequest), BadReceipt> {
    let receipt = open(note, keys)?;
    let asked: EntryRequest =
        serde_json::from_slice(request).map_err(|error| BadReceipt::Request(error.to_string()))?;
    let fields = [
        ("key", receipt.key.clone(), asked.key.clone()),
        ("order", receipt.order.to_string(), asked.order.to_string()),
        ("kind", receipt.kind.to_string(), asked.kind.to_string()),
        ("amount", receipt.amount.to_string(), asked.amount.to_string()),
        ("request", receipt.request_sha256.clone(), sha256(request)),
    ];
    match fields.into_iter().find(|(_, said, expected)| said != expected) {
        Some((field, said, expected)) => Err(BadReceipt::OfSomethingElse {
            field,
            said,
            expected,
        }),
        None => Ok((receipt, asked)),
    }
}

/// Compares the receipt by which a licence is to be signed with the order: what a person has put beside an order that it does not belong to
/// signs nothing.
///
/// # Errors
/// Why it must not be signed.
pub fn acknowledges(receipt: &Receipt, order: Uuid, amount: Money) -> Result<(), BadReceipt> {
    let differs = |field, said: String, expected: String| BadReceipt::OfSomethingElse {
        field,
        said,
        expected,
    };
    if !receipt.kind.licenses() {
        return Err(BadReceipt::Kind(receipt.kind));
    }
    if receipt.order != order {
        return Err(differs("order", receipt.order.to_string(), order.to_string()));
    }
    if receipt.amount != amount {
        return Err(differs("amount", receipt.amount.to_string(), amount.to_string()));
    }
    if (receipt.kind == EntryKind::Memo) != amount.is_zero() {
        return Err(BadReceipt::Kind(receipt.kind));
    }
    Ok(())
}

/// SHA-256 of a receipt's note, in hex digits: what licences and orders know it by.
pub fn digest(note: &[u8]) -> String {
    sha256(note)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        money::tests::eur,
        note::tests::{pair, sign},
    };

    const ORDER: Uuid = Uuid::from_u128(7);

    fn receipt(kind: EntryKind, minor: i64) -> Receipt {
        Receipt {
            epoch: Uuid::from_u128(1),
            sequence: 3,
            previous_root: FIRST_ROOT.to_owned(),
            key: "order:7:reserve".to_owned(),
            request_sha256: "1".repeat(64),
            kind,
            order: ORDER,
            amount: eur(minor),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// A receipt as it is shown for the order, if the order comes to so much.
    fn shown(note: &[u8], keys: &[NamedKey], minor: i64) -> Result<Receipt, BadReceipt> {
        let receipt = open(note, keys)?;
        acknowledges(&receipt, ORDER, eur(minor)).map(|()| receipt)
    }

    #[test]
    fn only_the_receipt_of_this_order_and_amount_acknowledges_it() {
        let finance = pair("shop.example/finance", 3);
        let keys = [finance.1.clone()];
        let of = |receipt: Receipt| shown(&sign(KIND, &receipt, &finance), &keys, 1000);
        let good = receipt(EntryKind::Reserve, 1000);
        assert_eq!(of(good.clone()), Ok(good.clone()));
        let another = Receipt {
            order: Uuid::from_u128(8),
            ..good.clone()
        };
        assert!(matches!(
            of(another),
            Err(BadReceipt::OfSomethingElse { field: "order", .. })
        ));
        assert!(matches!(
            of(receipt(EntryKind::Reserve, 999)),
            Err(BadReceipt::OfSomethingElse { field: "amount", .. })
        ));
        let yen = Receipt {
            amount: Money::new(1000, "JPY".parse().unwrap()),
            ..good.clone()
        };
        assert!(matches!(
            of(yen),
            Err(BadReceipt::OfSomethingElse { field: "amount", .. })
        ));
        for kind in [
            EntryKind::Deposit,
            EntryKind::Post,
            EntryKind::Refund,
            EntryKind::Reinstate,
            EntryKind::Memo,
        ] {
            assert_eq!(of(receipt(kind, 1000)), Err(BadReceipt::Kind(kind)));
        }
        let stranger = pair("shop.example/finance", 4);
        let forged = shown(&sign(KIND, &good, &stranger), &keys, 1000);
        assert!(matches!(forged, Err(BadReceipt::Note(BadNote::UnknownKey(_)))));
    }

    #[test]
    fn what_costs_nothing_is_acknowledged_by_a_memo_only() {
        let finance = pair("shop.example/finance", 3);
        let keys = [finance.1.clone()];
        let of = |kind| shown(&sign(KIND, &receipt(kind, 0), &finance), &keys, 0).map(|r| r.kind);
        assert_eq!(of(EntryKind::Memo), Ok(EntryKind::Memo));
        assert_eq!(of(EntryKind::Reserve), Err(BadReceipt::Kind(EntryKind::Reserve)));
    }
}
