//! Money that the shop gives back. What it takes from the buyer is suspended before Stripe is asked. Pure.

use std::collections::BTreeSet;

use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, Once, RefundState, UnitId, UnitStatus},
    money::Money,
};

use super::{At, Refusal};
use crate::order::{Call, Order, Refund};

/// Asks for the money of these units; `id` is the refund's.
///
/// # Errors
/// If they are not paid, or their money is gone already.
pub fn ask(
    order: &mut Order,
    id: Uuid,
    units: &BTreeSet<UnitId>,
    reason: &str,
    _: &At<'_>,
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
            reason: reason.to_owned(),
            said,
        },
    );
    Ok(amount)
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
