//! What Finance has acknowledged. Pure.

use uuid::Uuid;
use vitrine_commerce::finance::{self, Receipt};

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
    let booking = order
        .bookings
        .get_mut(key)
        .ok_or_else(|| Refusal::Unknown(format!("entry {key}")))?;
    let (receipt, _) = finance::of_request(note, &at.house.finance_keys, &booking.request)?;
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
