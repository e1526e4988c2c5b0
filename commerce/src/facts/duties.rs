//! What has still to be done for an order, and what must not be. Pure.

use super::{
    DeliveryState, Facts, LicenceState, PaymentState, UnitId,
    status::{Standing, holds, standing},
};

/// Something that the worker does next. When there is none, the order rests: nothing happens to it until somebody else does something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duty {
    /// This payment pays the order.
    Accept(String),
    /// This payment came too late and goes back.
    ReturnSurplus(String),
    /// Finance is asked to reserve what was paid.
    Reserve,
    /// The unit's licence is issued, and signed.
    License(UnitId),
    /// The unit's first delivery is made.
    Deliver(UnitId),
}

/// Why nothing is given for a unit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// It is not one of this order.
    #[error("this order has no such unit")]
    NotOfThisOrder,
    /// Nobody has paid.
    #[error("the order is not paid")]
    Unpaid,
    /// Finance has not said anything yet.
    #[error("Finance has not acknowledged the order")]
    NotAcknowledged,
    /// A person has to decide something.
    #[error("the order is held until somebody decides")]
    Held,
    /// A refund is on its way, or a dispute is open.
    #[error("the unit is suspended")]
    Suspended,
    /// Its money went back.
    #[error("the unit was refunded")]
    Gone,
}

/// Whether anything may be given for a unit: a licence, a delivery, a link. Asked again under the order's lock by whoever gives.
///
/// # Errors
/// Why not.
pub fn may_license(facts: &Facts, unit: UnitId) -> Result<(), Refusal> {
    if !facts.terms.units.contains(&unit) {
        return Err(Refusal::NotOfThisOrder);
    }
    if !facts.is_paid() {
        return Err(Refusal::Unpaid);
    }
    match standing(facts, unit) {
        Standing::Gone => return Err(Refusal::Gone),
        Standing::Suspended => return Err(Refusal::Suspended),
        Standing::Good => {}
    }
    if !holds(facts).is_empty() {
        return Err(Refusal::Held);
    }
    match facts.reserved.known() {
        Some(_) => Ok(()),
        None => Err(Refusal::NotAcknowledged),
    }
}

/// What has still to be done.
pub fn duties(facts: &Facts) -> Vec<Duty> {
    let mut duties = vec![];
    let succeeded = || {
        facts
            .payments
            .iter()
            .filter(|(_, payment)| payment.state == PaymentState::Succeeded)
    };
    match facts.accepted.known() {
        Some(accepted) => {
            let surplus = succeeded().filter(|(id, _)| *id != accepted && !goes_back(facts, id));
            duties.extend(surplus.map(|(id, _)| Duty::ReturnSurplus(id.clone())));
        }
        None if facts.accepted.is_unknown() => {
            let fits = succeeded().filter(|(_, payment)| payment.received.known() == Some(&facts.terms.due));
            // Of two at once the earlier attempt's: it does not matter which, but it must be one.
            let first = fits.min_by_key(|(id, payment)| (payment.attempt.known().copied(), (*id).clone()));
            duties.extend(first.map(|(id, _)| Duty::Accept(id.clone())));
        }
        None => {}
    }
    if !facts.is_paid() || !holds(facts).is_empty() {
        return duties;
    }
    let units = || facts.terms.units.iter().copied();
    if facts.reserved.is_unknown() && units().any(|unit| standing(facts, unit) == Standing::Good) {
        duties.push(Duty::Reserve);
    }
    for unit in units().filter(|unit| may_license(facts, *unit).is_ok()) {
        let fulfilment = facts.fulfilment(unit);
        if fulfilment.licence != LicenceState::Signed {
            duties.push(Duty::License(unit));
        } else if fulfilment.delivery == DeliveryState::None
            || fulfilment.delivery == DeliveryState::Delivering
        {
            duties.push(Duty::Deliver(unit));
        }
    }
    duties
}

/// Whether a surplus payment's money is on its way back. A refund of it that failed waits for a person, who makes another.
fn goes_back(facts: &Facts, payment: &str) -> bool {
    let refunds = facts.refunds.values();
    refunds
        .filter_map(|refund| refund.of.known())
        .any(|(of, _)| of == payment)
}
