//! A unit's licence: its bytes are fixed first, then signed. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{UnitId, may_license},
    finance,
    licence::{self, LicenceKey, Sku},
    note::{self, NamedKey},
};

use super::{At, Refusal};
use crate::order::{Licence, Line, News, Order};

/// A licence's id, if it is to be signed now: its bytes are fixed by then. What was fixed for a key that was retired before it signed them is fixed
/// anew, for the one that signs now.
///
/// # Errors
/// If the order has no such unit.
pub fn freeze(order: &mut Order, unit: UnitId, at: &At<'_>) -> Result<Option<Uuid>, Refusal> {
    let no_such = || Refusal::Unknown(format!("unit {}/{}", unit.line, unit.unit));
    let line = order.line(unit).ok_or_else(no_such)?;
    // A refund came in between, or a dispute: whoever takes it back has this done again.
    if may_license(&order.facts(), unit).is_err() {
        return Ok(None);
    }
    let key = at.house.licence_key.to_string();
    let superseded = match order.licences.get(&unit) {
        Some(known) if known.signature.is_some() => return Ok(None),
        Some(known) if known.key == key => return Ok(Some(known.id)),
        known => known.cloned(),
    };
    let Some(ack) = order.reserved() else {
        return Ok(None);
    };
    let document = document(order, line, unit, &finance::digest(&ack.note), at);
    let text = note::text(licence::KIND, &document)
        .map_err(|error| Refusal::Json("a licence", error.to_string()))?;
    let frozen = Licence {
        id: document.id,
        lookup: superseded
            .as_ref()
            .map_or_else(|| LicenceKey::new(at.random), |old| old.lookup),
        ack: ack.id,
        text,
        key,
        signature: None,
    };
    if let Some(old) = superseded {
        order.news.push(News {
            kind: "licence.superseded",
            actor: at.actor.to_owned(),
            body: json!({"licence": old.id, "key": old.key, "sha256": vitrine_commerce::sha256(&old.text)}),
        });
    }
    order.licences.insert(unit, frozen);
    Ok(Some(document.id))
}

fn document(order: &Order, line: &Line, unit: UnitId, receipt: &str, at: &At<'_>) -> licence::Licence {
    // Whole seconds: there is one way to write them.
    let issued_at = Timestamp::from_second(at.now.as_second()).unwrap_or(at.now);
    let expires = line.grant.days.and_then(|days| {
        issued_at
            .checked_add(SignedDuration::from_hours(24 * i64::from(days)))
            .ok()
    });
    licence::Licence {
        id: licence::id(line.item, unit.unit),
        order: order.id,
        sku: Sku {
            id: line.sku.clone(),
            versions: line.versions.clone(),
        },
        manifest: line.grant.manifest.clone(),
        buyer: licence::Buyer {
            account: licence::account(&order.buyer.issuer, &order.buyer.subject),
            recipient: None,
        },
        limits: line.grant.limits.clone(),
        entitlements: line.grant.entitlements.clone(),
        issued_at,
        not_before: issued_at,
        expires,
        max_staleness_seconds: Some(at.house.staleness_seconds),
        grace_seconds: at.house.grace_seconds,
        finance_receipt_sha256: receipt.to_owned(),
        revocations: at.house.revocations.clone(),
        critical: vec![],
        extensions: BTreeMap::new(),
    }
}

/// A licence was signed. A refund may have come in between: then nothing is given.
///
/// # Errors
/// If the signature does not hold.
pub fn signed(order: &mut Order, unit: UnitId, signature: &[u8; 64]) -> Result<(), Refusal> {
    let may = may_license(&order.facts(), unit);
    let no_such = || Refusal::Unknown(format!("licence of unit {}/{}", unit.line, unit.unit));
    let frozen = order.licences.get_mut(&unit).ok_or_else(no_such)?;
    if frozen.signature.is_some() {
        return Ok(());
    }
    may.map_err(|refusal| Refusal::Overtaken(refusal.to_string()))?;
    holds(&frozen.text, &frozen.key, signature)?;
    frozen.signature = Some(*signature);
    Ok(())
}

fn holds(text: &[u8], key: &str, signature: &[u8; 64]) -> Result<(), Refusal> {
    let key = NamedKey::read(key).map_err(|error| Refusal::Json("a key", error.to_string()))?;
    let note = note::signed(text, &key, signature);
    note::open::<licence::Licence>(licence::KIND, &note, &[key])
        .map(drop)
        .map_err(Refusal::Signature)
}
