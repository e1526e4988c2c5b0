//! Verdicts on licences.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::note::{
    NamedKey,
    tests::{pair, sign},
};

const ISSUED: &str = "2026-11-01T00:00:00Z";
const DAY: u32 = 86_400;

fn at(days: i64) -> Timestamp {
    let issued: Timestamp = ISSUED.parse().unwrap();
    issued + SignedDuration::from_hours(24 * days)
}

fn licence() -> Licence {
    let (item, order) = (Uuid::from_u128(5), Uuid::from_u128(6));
    Licence {
        id: id(item, 0),
        order,
        sku: Sku {
            id: "acme/notes".to_owned(),
            versions: ">=1.2, <2".to_owned(),
        },
        manifest: None,
        buyer: Buyer {
            account: account("https://id.example", "alice"),
            recipient: None,
        },
        limits: Limits {
            users: Some(5),
            ..Limits::default()
        },
        entitlements: vec!["export".to_owned()],
        issued_at: at(0),
        not_before: at(0),
        expires: Some(at(365)),
        max_staleness_seconds: Some(7 * DAY),
        grace_seconds: 3 * DAY,
        finance_receipt_sha256: "ab".repeat(32),
        revocations: "https://shop.example/revocations".to_owned(),
        critical: vec![],
        extensions: BTreeMap::new(),
    }
}

fn keys() -> [(ed25519_dalek::SigningKey, NamedKey); 2] {
    [
        pair("shop.example/licence", 1),
        pair("shop.example/revocations", 2),
    ]
}

fn list(sequence: u64, made: i64, revoked: &[Uuid]) -> Vec<u8> {
    let list = Revocations::new(
        sequence,
        at(made),
        at(made + 30),
        "5a".repeat(16),
        revoked.iter().copied(),
    );
    sign(Revocations::KIND, &list, &keys()[1])
}

fn trust() -> Trust {
    let [licences, revocations] = keys();
    Trust {
        licences: vec![licences.1],
        revocations: vec![revocations.1],
    }
}

fn asked(list: Option<&[u8]>, day: i64) -> Asked<'_> {
    Asked {
        revocations: list,
        now: at(day),
        remembered: Remembered::default(),
        account: None,
        sku: None,
        version: None,
    }
}

fn code(licence: &Licence, asked: &Asked<'_>) -> Code {
    verify(&sign(KIND, licence, &keys()[0]), &trust(), asked).code
}

#[test]
fn a_licence_holds_until_it_expires() {
    let new = list(1, 364, &[]);
    assert_eq!(code(&licence(), &asked(Some(&new), 364)), Code::Valid);
    assert_eq!(code(&licence(), &asked(Some(&new), 365)), Code::Expired);
    let early = list(1, -1, &[]);
    assert_eq!(code(&licence(), &asked(Some(&early), -1)), Code::NotYetValid);
    // Five minutes slow.
    let slow = Asked {
        now: at(0) - SignedDuration::from_mins(5),
        ..asked(Some(&early), 0)
    };
    assert_eq!(code(&licence(), &slow), Code::Valid);
}

#[test]
fn a_revoked_licence_is_refused_wherever_the_list_comes_from() {
    let revoked = list(2, 1, &[licence().id, Uuid::from_u128(9)]);
    let verdict = verify(
        &sign(KIND, &licence(), &keys()[0]),
        &trust(),
        &asked(Some(&revoked), 2),
    );
    assert_eq!((verdict.code, verdict.remember.sequence), (Code::Revoked, 2));
    // The list before, in which it is not.
    let before = list(1, 0, &[]);
    let rolled_back = Asked {
        remembered: verdict.remember,
        ..asked(Some(&before), 2)
    };
    assert_eq!(code(&licence(), &rolled_back), Code::RevocationsRolledBack);
    // A newer one, once the refund failed.
    let again = list(3, 2, &[]);
    let again = Asked {
        remembered: verdict.remember,
        ..asked(Some(&again), 3)
    };
    assert_eq!(code(&licence(), &again), Code::Valid);
}

#[test]
fn an_old_list_is_put_up_with_for_the_grace_and_no_longer() {
    let old = list(1, 0, &[]);
    let verdict = |day| {
        verify(
            &sign(KIND, &licence(), &keys()[0]),
            &trust(),
            &asked(Some(&old), day),
        )
    };
    assert_eq!((verdict(7).code, verdict(7).warnings), (Code::Valid, vec![]));
    assert_eq!(
        (verdict(8).code, verdict(8).warnings),
        (Code::Valid, vec![Warning::Grace(at(10))])
    );
    assert_eq!(
        (verdict(10).code, verdict(11).code),
        (Code::Valid, Code::RevocationsStale)
    );
    assert_eq!(code(&licence(), &asked(None, 1)), Code::RevocationsMissing);
    // One that outlives the shop needs no list.
    let perpetual = Licence {
        max_staleness_seconds: None,
        expires: None,
        ..licence()
    };
    assert_eq!(code(&perpetual, &asked(None, 40_000)), Code::Valid);
    assert_eq!(code(&perpetual, &asked(Some(&old), 40_000)), Code::Valid);
}

#[test]
fn a_clock_that_was_turned_back_is_noticed() {
    let new = list(1, 10, &[]);
    assert_eq!(code(&licence(), &asked(Some(&new), 8)), Code::ClockTurnedBack);
    let old = list(1, 0, &[]);
    let remembered = Remembered {
        sequence: 1,
        latest: Some(at(5)),
    };
    let back = Asked {
        remembered,
        ..asked(Some(&old), 3)
    };
    assert_eq!(code(&licence(), &back), Code::ClockTurnedBack);
    let a_little = Asked {
        remembered,
        ..asked(Some(&old), 4)
    };
    assert_eq!(code(&licence(), &a_little), Code::Valid);
}

#[test]
fn it_is_for_one_account_product_and_range_of_versions() {
    let list = list(1, 0, &[]);
    let asked = asked(Some(&list), 1);
    let mine = account("https://id.example", "alice");
    let (in_range, beyond) = ("1.9.0".parse().unwrap(), "2.0.0".parse().unwrap());
    let all = Asked {
        account: Some(&mine),
        sku: Some("acme/notes"),
        version: Some(&in_range),
        ..asked
    };
    assert_eq!(code(&licence(), &all), Code::Valid);
    let other = account("https://id.example", "bob");
    assert_eq!(
        code(
            &licence(),
            &Asked {
                account: Some(&other),
                ..all
            }
        ),
        Code::WrongAccount
    );
    assert_eq!(
        code(
            &licence(),
            &Asked {
                sku: Some("acme/other"),
                ..all
            }
        ),
        Code::WrongSku
    );
    assert_eq!(
        code(
            &licence(),
            &Asked {
                version: Some(&beyond),
                ..all
            }
        ),
        Code::WrongVersion
    );
    assert_ne!(account("a", "b\nc"), account("a\nb", "d"));
}

#[test]
fn what_it_must_not_be_used_without_must_be_known() {
    let list = list(1, 0, &[]);
    let critical = Licence {
        critical: vec!["seats".to_owned()],
        ..licence()
    };
    assert_eq!(code(&critical, &asked(Some(&list), 1)), Code::UnknownCritical);
    let extensions = BTreeMap::from([("seats".to_owned(), "5".to_owned())]);
    assert_eq!(
        code(
            &Licence {
                extensions,
                ..licence()
            },
            &asked(Some(&list), 1)
        ),
        Code::Valid
    );
}

#[test]
fn a_list_by_the_wrong_key_or_out_of_order_is_bad() {
    let [licences, _] = keys();
    let forged = Revocations::new(9, at(0), at(30), "00".repeat(16), []);
    // The licences' key may not sign lists.
    let forged = sign(Revocations::KIND, &forged, &licences);
    assert_eq!(code(&licence(), &asked(Some(&forged), 1)), Code::RevocationsBad);
    let mut unsorted = Revocations::new(9, at(0), at(30), "00".repeat(16), [1, 2].map(Uuid::from_u128));
    unsorted.revoked.reverse();
    let unsorted = sign(Revocations::KIND, &unsorted, &keys()[1]);
    assert_eq!(code(&licence(), &asked(Some(&unsorted), 1)), Code::RevocationsBad);
    // Nor the lists' key a licence.
    let [_, revocations] = keys();
    let passed_off = sign(KIND, &licence(), &revocations);
    assert_eq!(
        verify(&passed_off, &trust(), &asked(None, 1)).code,
        Code::UnknownKey
    );
}

/// Requirement LIC-01: every field, changed by one, and the signature as it was.
#[test]
fn a_licence_that_was_changed_in_any_field_is_refused() {
    fn leaves(value: &Value, path: String, all: &mut Vec<String>) {
        match value {
            Value::Object(object) => object
                .iter()
                .for_each(|(key, value)| leaves(value, format!("{path}/{key}"), all)),
            Value::Array(array) => array
                .iter()
                .enumerate()
                .for_each(|(n, value)| leaves(value, format!("{path}/{n}"), all)),
            _ => all.push(path),
        }
    }
    let mut whole = licence();
    whole.manifest = Some(Manifest {
        digest: "sha256:00".to_owned(),
        signature_id: "s1".to_owned(),
    });
    whole.buyer.recipient = Some("age1".to_owned());
    whole.limits = Limits {
        instances: Some(1),
        users: Some(2),
        domains: vec!["a.example".to_owned()],
    };
    whole.extensions.insert("note".to_owned(), "x".to_owned());
    let note = String::from_utf8(sign(KIND, &whole, &keys()[0])).unwrap();
    let json = note.lines().nth(1).unwrap();
    let value: Value = serde_json::from_str(json).unwrap();
    let mut paths = vec![];
    leaves(&value, String::new(), &mut paths);
    assert!(paths.len() >= 20, "{paths:?}");
    let list = list(1, 0, &[]);
    for path in paths {
        let mut changed = value.clone();
        let leaf = changed.pointer_mut(&path).unwrap();
        *leaf = match leaf {
            Value::Number(number) => json!(number.as_u64().unwrap() + 1),
            Value::String(text) => json!(format!("{text}0")),
            other => panic!("{other} in {path}"),
        };
        let changed = note.replace(json, &serde_json::to_string(&changed).unwrap());
        let verdict = verify(changed.as_bytes(), &trust(), &asked(Some(&list), 1));
        assert_eq!(
            (verdict.code, verdict.licence),
            (Code::BadSignature, None),
            "{path}"
        );
    }
}

#[test]
fn the_id_of_a_licence_is_its_units() {
    let item = Uuid::from_u128(5);
    assert_eq!(id(item, 0), id(item, 0));
    assert_ne!(id(item, 0), id(item, 1));
    assert_ne!(id(item, 0), id(Uuid::from_u128(6), 0));
    assert_eq!(id(item, 0).get_version_num(), 5);
}

#[test]
fn every_code_has_a_word_of_its_own() {
    let words: std::collections::BTreeSet<_> = Code::ALL.into_iter().map(Code::as_str).collect();
    assert_eq!(words.len(), Code::ALL.len());
}

#[test]
fn pinned_keys_are_read_by_what_they_may_sign() {
    let [licences, revocations] = keys();
    let text = format!(
        "# the shop's\nlicence {}\n\nrevocations {}\n",
        licences.1, revocations.1
    );
    let read = Trust::read(&text).unwrap();
    assert_eq!(
        (read.licences, read.revocations),
        (vec![licences.1], vec![revocations.1])
    );
    assert_eq!(Trust::read("checkpoint a+b+c").unwrap_err(), BadTrust::Line(1));
    assert_eq!(Trust::read("# a\nlicence").unwrap_err(), BadTrust::Line(2));
    assert!(matches!(Trust::read("\nlicence x"), Err(BadTrust::Key(2, _))));
}
