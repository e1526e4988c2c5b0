//! What is signed, and what is not.

use std::{collections::BTreeMap, sync::Arc};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use vitrine_commerce::{
    finance::{EntryKind, EntryRequest, FIRST_ROOT, KIND, Part, Receipt},
    licence::{Buyer, Limits, Sku},
    sha256,
};
use vitrine_keys::SoftwareSigner;
use vitrine_service::Seal;

use super::*;

const ORDER: Uuid = Uuid::from_u128(1);
const ITEM: Uuid = Uuid::from_u128(2);

/// A key under a name, one of so many.
fn seal(name: &str, seed: u8) -> Seal {
    let signer = SoftwareSigner::new(SigningKey::from_bytes(&[seed; 32])).unwrap();
    Seal::new(Arc::new(signer), name).unwrap()
}

fn eur(minor: i64) -> Money {
    Money::new(minor, "EUR".parse().unwrap())
}

/// What Finance was asked for: an order of one unit.
fn request() -> Vec<u8> {
    let part = Part {
        item: ITEM,
        unit: 0,
        seller: "acme".to_owned(),
        total: eur(1000),
        tax: eur(0),
    };
    let request = EntryRequest {
        key: format!("reserve:{ORDER}"),
        kind: EntryKind::Reserve,
        order: ORDER,
        amount: eur(1000),
        payment: Some("pi_1".to_owned()),
        parts: vec![part],
        reverses: None,
    };
    serde_json::to_vec(&request).unwrap()
}

fn receipt(change: impl FnOnce(&mut Receipt), seed: u8) -> Vec<u8> {
    let mut receipt = Receipt {
        epoch: Uuid::from_u128(3),
        sequence: 1,
        previous_root: FIRST_ROOT.to_owned(),
        key: format!("reserve:{ORDER}"),
        request_sha256: sha256(request()),
        kind: EntryKind::Reserve,
        order: ORDER,
        amount: eur(1000),
        at: Timestamp::UNIX_EPOCH,
    };
    change(&mut receipt);
    let (_, note) = seal("shop.example/finance", seed).note(KIND, &receipt).unwrap();
    note
}

fn licence_of(receipt: &[u8]) -> Licence {
    Licence {
        id: licence::id(ITEM, 0),
        order: ORDER,
        sku: Sku {
            id: "notes".to_owned(),
            versions: ">=1".to_owned(),
        },
        manifest: None,
        buyer: Buyer {
            account: licence::account("https://id.example", "alice"),
            recipient: None,
        },
        limits: Limits::default(),
        entitlements: vec![],
        issued_at: Timestamp::UNIX_EPOCH,
        not_before: Timestamp::UNIX_EPOCH,
        expires: None,
        max_staleness_seconds: None,
        grace_seconds: 0,
        finance_receipt_sha256: finance::digest(receipt),
        revocations: "https://shop.example/revocations".to_owned(),
        critical: vec![],
        extensions: BTreeMap::new(),
    }
}

fn row(receipt: Vec<u8>, change: impl FnOnce(&mut Licence)) -> Row {
    let mut said = licence_of(&receipt);
    change(&mut said);
    Row {
        id: licence::id(ITEM, 0),
        item: ITEM,
        unit: 0,
        order: ORDER,
        total: eur(1000),
        buyer: ("https://id.example".to_owned(), "alice".to_owned()),
        sku: ("notes".to_owned(), ">=1".to_owned()),
        grant: Grant::default(),
        request: request(),
        text: note::text(licence::KIND, &said).unwrap(),
        key: seal("shop.example/licence", 2).key().to_string(),
        receipt,
    }
}

fn judged(row: &Row) -> Result<(), Refused> {
    judge(
        row,
        std::slice::from_ref(seal("shop.example/finance", 1).key()),
        seal("shop.example/licence", 2).key(),
    )
}

#[test]
fn what_finance_has_acknowledged_is_signed() {
    assert_eq!(judged(&row(receipt(|_| {}, 1), |_| {})), Ok(()));
}

#[test]
fn another_orders_receipt_a_wrong_amount_and_a_forged_one_sign_nothing() {
    for receipt in [
        receipt(|receipt| receipt.order = ITEM, 1),
        receipt(|receipt| receipt.amount.minor = 999, 1),
        receipt(|receipt| receipt.kind = EntryKind::Deposit, 1),
        receipt(|_| {}, 9),
        b"by hand".to_vec(),
    ] {
        let refused = judged(&row(receipt, |_| {}));
        assert!(matches!(refused, Err(Refused::Receipt(..))), "{refused:?}");
    }
}

#[test]
fn what_was_added_to_an_acknowledged_order_is_not_signed() {
    for (item, unit) in [(ITEM, 1), (Uuid::from_u128(9), 0)] {
        let mut added = row(receipt(|_| {}, 1), |licence| licence.id = licence::id(item, unit));
        (added.id, added.item, added.unit) = (licence::id(item, unit), item, unit);
        let refused = judged(&added);
        assert!(matches!(refused, Err(Refused::NotBought { .. })), "{refused:?}");
        // Nor by another request than was acknowledged, which has it.
        added.request = String::from_utf8(request())
            .unwrap()
            .replace(&ITEM.to_string(), &item.to_string())
            .replace("\"unit\":0", &format!("\"unit\":{unit}"))
            .into();
        let refused = judged(&added);
        assert!(matches!(refused, Err(Refused::Receipt(..))), "{refused:?}");
    }
}

#[test]
fn a_licence_that_says_something_else_than_the_order_is_not_signed() {
    let differs = |field, change: fn(&mut Licence)| {
        let refused = judged(&row(receipt(|_| {}, 1), change));
        let id = licence::id(ITEM, 0);
        assert_eq!(refused, Err(Refused::Differs { id, field }));
    };
    differs("id", |licence| licence.id = ITEM);
    differs("order", |licence| licence.order = ITEM);
    differs("product", |licence| licence.sku.id.push('x'));
    differs("product", |licence| licence.sku.versions.push('0'));
    differs("buyer", |licence| {
        licence.buyer.account = licence::account("https://id.example", "mallory")
    });
    differs("limits", |licence| licence.limits.users = Some(1_000));
    differs("entitlements", |licence| {
        licence.entitlements.push("all".to_owned())
    });
    differs("expiry", |licence| licence.expires = Some(Timestamp::MAX));
    differs("receipt", |licence| {
        licence.finance_receipt_sha256 = "0".repeat(64)
    });
}

#[test]
fn what_is_no_licence_or_of_another_key_is_not_signed() {
    let mut by_hand = row(receipt(|_| {}, 1), |_| {});
    by_hand.text = b"vitrine.dev/licence/v1\n{}\n".to_vec();
    assert!(matches!(judged(&by_hand), Err(Refused::Text(..))));
    let mut retired = row(receipt(|_| {}, 1), |_| {});
    retired.key = seal("shop.example/licence", 7).key().to_string();
    assert!(matches!(judged(&retired), Err(Refused::Key { .. })));
}
