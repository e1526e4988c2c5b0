//! Money that the shop gives back. What it takes from the buyer is suspended before Stripe is asked. Pure.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, Join, Once, RefundState, UnitId, UnitStatus},
    money::Money,
};

use super::{At, Refusal};
use crate::order::{Call, Order, Refund};

/// Stripe keeps answers by their keys for a day (<https://docs.stripe.com/api/idempotent_requests>); an hour less, so that it is not over on the way.
const KEPT: SignedDuration = SignedDuration::from_hours(23);

/// Asks for the money of these units; `id` is the refund's.
///
/// # Errors
/// If they are not paid, or their money is gone already.
pub fn ask(
    order: &mut Order,
    id: Uuid,
    units: &BTreeSet<UnitId>,
    reason: &str,
    at: &At<'_>,
) -> Result<Money, Refusal> {
    if let Some(known) = order.refunds.get(&id) {
        // Asked again.
        return known
            .said
            .of
            .known()
            .map(|(_, amount)| *amount)
            .ok_or(Refusal::NothingToRefund);
    }
    let payment = order.accepted.clone().ok_or(Refusal::Unpaid)?;
    let live = |refund: &&Refund| {
        refund.said.state.is_live() && refund.said.of.known().is_some_and(|(of, _)| *of == payment)
    };
    let taken: BTreeSet<_> = order
        .refunds
        .values()
        .filter(live)
        .filter_map(|refund| refund.said.units.known())
        .flatten()
        .copied()
        .collect();
    let (currency, parts) = (order.sum.total.currency, order.parts());
    let mut amount = Money::zero(currency);
    for unit in units {
        let no_such = || Refusal::Unknown(format!("unit {}/{}", unit.line, unit.unit));
        let part = parts.get(unit).ok_or_else(no_such)?;
        if taken.contains(unit) {
            return Err(Refusal::Refunded(*unit));
        }
        amount = amount.plus(part.total)?;
    }
    let gone = order
        .refunds
        .values()
        .filter(live)
        .filter_map(|refund| refund.said.of.known())
        .map(|(_, amount)| *amount);
    let left = order.sum.total.minus(Money::sum(currency, gone)?)?;
    if amount.is_zero() || amount.minor > left.minor {
        return Err(Refusal::NothingToRefund);
    }
    let said = facts::Refund {
        of: Once::Known((payment.clone(), amount)),
        state: RefundState::Pending,
        units: Once::Known(units.clone()),
    };
    order.refunds.insert(
        id,
        Refund {
            stripe: None,
            call: Some(call(order.id, id, &payment, amount)),
            asked_at: Some(at.now),
            reason: reason.to_owned(),
            said,
        },
    );
    Ok(amount)
}

/// What makes a refund that Stripe has not made yet, and of which payment it is; `None` if there is nothing to be made any more.
///
/// # Errors
/// If it was asked for so long ago that Stripe may have forgotten that it has made it.
pub fn to_send(order: &Order, id: Uuid, at: &At<'_>) -> Result<Option<(String, Call)>, Refusal> {
    let refund = order
        .refunds
        .get(&id)
        .ok_or_else(|| Refusal::Unknown(format!("refund {id}")))?;
    let (Some(call), Some(asked_at), None, true) = (
        &refund.call,
        refund.asked_at,
        &refund.stripe,
        refund.said.state.is_live(),
    ) else {
        return Ok(None);
    };
    if at.now.duration_since(asked_at) > KEPT {
        return Err(Refusal::TooOld(id));
    }
    let payment = refund.said.of.known().map(|(payment, _)| payment.clone());
    Ok(payment.map(|payment| (payment, call.clone())))
}

/// Stripe makes no such refund, as of a payment that somebody has refunded elsewhere: what it took is given back. It cannot have made it before,
/// for then it would have said so again ([`to_send`]).
///
/// # Errors
/// If the order has no such refund.
pub fn refused(order: &mut Order, id: Uuid) -> Result<(), Refusal> {
    let refund = order
        .refunds
        .get_mut(&id)
        .ok_or_else(|| Refusal::Unknown(format!("refund {id}")))?;
    if refund.stripe.is_none() {
        refund.said.state.join(RefundState::Canceled);
    }
    Ok(())
}

/// The units whose money is still here, of those that cost something.
pub fn left(order: &Order) -> BTreeSet<UnitId> {
    let facts = order.facts();
    let is_left = |unit: &UnitId| {
        let status = facts::unit_status(&facts, *unit);
        !matches!(
            status,
            UnitStatus::Suspended | UnitStatus::Revoked | UnitStatus::Refused
        )
    };
    let parts = order.parts().into_iter();
    parts
        .filter(|(_, part)| !part.total.is_zero())
        .map(|(unit, _)| unit)
        .filter(is_left)
        .collect()
}

/// Says which units a refund is for that somebody made elsewhere.
///
/// # Errors
/// If there is no such refund, or it says so already.
pub fn name(order: &mut Order, id: Uuid, units: &BTreeSet<UnitId>) -> Result<(), Refusal> {
    if let Some(unit) = units.iter().find(|unit| order.line(**unit).is_none()) {
        return Err(Refusal::Unknown(format!("unit {}/{}", unit.line, unit.unit)));
    }
    let refund = order
        .refunds
        .get_mut(&id)
        .ok_or_else(|| Refusal::Unknown(format!("refund {id}")))?;
    match &refund.said.units {
        Once::Unknown => {
            refund.said.units = Once::Known(units.clone());
            Ok(())
        }
        Once::Known(known) if known == units => Ok(()),
        _ => Err(Refusal::Overtaken(format!("refund {id} names its units already"))),
    }
}

/// What makes it.
pub(super) fn call(order: Uuid, id: Uuid, payment: &str, amount: Money) -> Call {
    let (minor, order, refund) = (amount.minor.to_string(), order.to_string(), id.to_string());
    let parameters = [
        ("payment_intent", payment),
        ("amount", &minor),
        ("metadata[order]", &order),
        ("metadata[refund]", &refund),
    ];
    Call {
        path: "/v1/refunds".to_owned(),
        body: form_urlencoded::Serializer::new(String::new())
            .extend_pairs(parameters)
            .finish(),
        key: format!("refund:{id}"),
    }
}
