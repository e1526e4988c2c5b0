//! What Finance has acknowledged. Pure.

use uuid::Uuid;
use vitrine_commerce::{
    finance::{self, BadReceipt, EntryRequest, Receipt},
    sha256,
};

use super::{At, Refusal, named};
use crate::order::{Ack, Order};

/// What asks Finance for an entry; `None` once it is acknowledged.
///
/// # Errors
/// If the order has no such entry.
pub fn asked(order: &Order, key: &str) -> Result<Option<Vec<u8>>, Refusal> {
    let booking = order
        .bookings
        .get(key)
        .ok_or_else(|| Refusal::Unknown(format!("entry {key}")))?;
    Ok(booking.ack.is_none().then(|| booking.request.clone()))
}

/// Finance has acknowledged an entry.
///
/// # Errors
/// If this is not its receipt, or is one of something else than it was asked for.
pub fn acknowledge(order: &mut Order, key: &str, note: &[u8], at: &At<'_>) -> Result<(), Refusal> {
    let id = order.id;
    let booking = order
        .bookings
        .get_mut(key)
        .ok_or_else(|| Refusal::Unknown(format!("entry {key}")))?;
    let receipt = finance::open(note, &at.house.finance_keys).map_err(BadReceipt::from)?;
    same(&receipt, id, key, &booking.request)?;
    match &booking.ack {
        Some(known) if (known.epoch, known.sequence) == (receipt.epoch, receipt.sequence) => Ok(()),
        Some(known) => Err(Refusal::Overtaken(format!(
            "entry {key} was acknowledged as number {} of ledger {} already",
            known.sequence, known.epoch
        ))),
        None => {
            booking.ack = Some(Ack {
                id: ack_id(&receipt),
                epoch: receipt.epoch,
                sequence: receipt.sequence,
                note: note.to_vec(),
            });
            Ok(())
        }
    }
}

fn ack_id(receipt: &Receipt) -> Uuid {
    named(&format!("ack {} {}", receipt.epoch, receipt.sequence))
}

/// Whether a receipt is of what was asked for.
fn same(receipt: &Receipt, order: Uuid, key: &str, request: &[u8]) -> Result<(), Refusal> {
    let asked: EntryRequest =
        serde_json::from_slice(request).map_err(|error| Refusal::Json("an entry", error.to_string()))?;
    let fields = [
        ("key", receipt.key.clone(), key.to_owned()),
        ("order", receipt.order.to_string(), order.to_string()),
        ("kind", receipt.kind.to_string(), asked.kind.to_string()),
        ("amount", receipt.amount.to_string(), asked.amount.to_string()),
        ("request", receipt.request_sha256.clone(), sha256(request)),
    ];
    match fields.into_iter().find(|(_, said, expected)| said != expected) {
        Some((field, said, expected)) => Err(Refusal::Receipt(BadReceipt::OfSomethingElse {
            field,
            said,
            expected,
        })),
        None => Ok(()),
    }
}
