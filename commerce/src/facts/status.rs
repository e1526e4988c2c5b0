//! What the facts of an order amount to. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    DeliveryState, DisputeState, Facts, Funds, LicenceState, PaymentState, Refund, RefundState, Session,
    UnitId,
};
use crate::money::Money;

/// Where an order stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Nobody has paid yet.
    Pending,
    /// The buyer has done everything, and the money is on its way.
    AwaitingFunds,
    /// Given up unpaid.
    Failed,
    /// Paid, and Finance has not acknowledged it yet.
    AwaitingFinance,
    /// Acknowledged, and not all of it is licensed yet.
    Licensing,
    /// All of it is licensed.
    Completed,
    /// A refund is on its way, or a dispute is open.
    Suspended,
    /// A person has to decide something ([`holds`]).
    Held,
    /// A part of it was refunded, and the rest is licensed.
    PartlyRefunded,
    /// All its money went back, or was lost in a dispute.
    Refunded,
}

/// The order's status in the four words of S2 (section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Something has still to happen.
    Pending,
    /// Licensed, and not all of it was refunded.
    Completed,
    /// All of it was refunded.
    Refunded,
    /// Given up unpaid.
    Failed,
}

/// Where a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnitStatus {
    /// Not licensed yet.
    Waiting,
    /// Licensed, and there is no delivery of it.
    Licensed,
    /// Licensed, and the buyer has no key to encrypt it to.
    AwaitingRecipient,
    /// It is being made ready to be fetched.
    Delivering,
    /// It can be fetched.
    Delivered,
    /// For as long as a refund is on its way, or a dispute is open.
    Suspended,
    /// It was licensed, and its money is gone.
    Revoked,
    /// Its money is gone, and it was never licensed.
    Refused,
}

/// What a person has to decide. Nothing is given while there is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hold {
    /// This payment is not of what was due.
    AmountDiffers(String),
    /// This refund names no units, and is of a part of the payment only.
    RefundOfWhat(String),
    /// Two answers contradict each other, of what this is named by.
    Contradiction(String),
}

/// Whether what a unit was paid with is still here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Good,
    Suspended,
    Gone,
}

/// What a person has to decide.
pub fn holds(facts: &Facts) -> BTreeSet<Hold> {
    let mut holds = BTreeSet::new();
    for (what, is) in [("accepted", &facts.accepted), ("reserved", &facts.reserved)] {
        if is.is_contradicted() {
            holds.insert(Hold::Contradiction(what.to_owned()));
        }
    }
    for (id, payment) in &facts.payments {
        if payment.attempt.is_contradicted() || payment.received.is_contradicted() {
            holds.insert(Hold::Contradiction(id.clone()));
        }
        // One that came too late goes back whole, whatever it was of.
        let is_surplus = facts.accepted.known().is_some_and(|accepted| accepted != id);
        let differs = payment
            .received
            .known()
            .is_some_and(|received| *received != facts.terms.due);
        if payment.state == PaymentState::Succeeded && differs && !is_surplus {
            holds.insert(Hold::AmountDiffers(id.clone()));
        }
    }
    for (id, refund) in &facts.refunds {
        if refund.of.is_contradicted() || refund.units.is_contradicted() {
            holds.insert(Hold::Contradiction(id.clone()));
        }
        if refund.units.is_unknown() && is_live_of_accepted(facts, refund) && !takes_all(facts) {
            holds.insert(Hold::RefundOfWhat(id.clone()));
        }
    }
    let disputes = facts.disputes.iter();
    holds.extend(
        disputes
            .filter(|(_, dispute)| dispute.of.is_contradicted())
            .map(|(id, _)| Hold::Contradiction(id.clone())),
    );
    holds
}

fn is_live_of_accepted(facts: &Facts, refund: &Refund) -> bool {
    let of = refund.of.known().map(|(payment, _)| payment);
    refund.state.is_live() && of.is_some() && of == facts.accepted.known()
}

/// What of the accepted payment went back, or is on its way, by refunds in these states.
fn went_back(facts: &Facts, counts: fn(RefundState) -> bool) -> i64 {
    let refunds = facts.refunds.values();
    refunds
        .filter(|refund| is_live_of_accepted(facts, refund) && counts(refund.state))
        .filter_map(|refund| refund.of.known())
        .map(|(_, amount): &(String, Money)| amount.minor)
        .fold(0, i64::saturating_add)
}

/// Whether all that was paid went back, or is on its way: then it is of no consequence which refund names which units.
fn takes_all(facts: &Facts) -> bool {
    went_back(facts, |_| true) >= facts.terms.due.minor
}

/// Whether what a unit was paid with is still here.
pub(super) fn standing(facts: &Facts, unit: UnitId) -> Standing {
    let all_is_gone = takes_all(facts) && !facts.refunds.is_empty();
    let gone_for_good =
        all_is_gone && went_back(facts, |state| state == RefundState::Succeeded) >= facts.terms.due.minor;
    let by_refunds = facts
        .refunds
        .values()
        .filter(|refund| is_live_of_accepted(facts, refund))
        .map(|refund| {
            let named = refund.units.known().is_some_and(|units| units.contains(&unit));
            match refund.state {
                _ if gone_for_good => Standing::Gone,
                RefundState::Succeeded if named => Standing::Gone,
                _ if named || all_is_gone => Standing::Suspended,
                _ => Standing::Good,
            }
        });
    let disputes = facts.disputes.values();
    let by_disputes = disputes
        .filter(|dispute| dispute.of.known().is_some() && dispute.of.known() == facts.accepted.known())
        .map(|dispute| match dispute.state {
            DisputeState::NeedsResponse | DisputeState::UnderReview => Standing::Suspended,
            DisputeState::Lost => Standing::Gone,
            DisputeState::WarningNeedsResponse
            | DisputeState::WarningUnderReview
            | DisputeState::WarningClosed
            | DisputeState::Prevented
            | DisputeState::Won => Standing::Good,
        });
    by_refunds.chain(by_disputes).max().unwrap_or(Standing::Good)
}

/// Where a unit stands.
pub fn unit_status(facts: &Facts, unit: UnitId) -> UnitStatus {
    let fulfilment = facts.fulfilment(unit);
    let is_signed = fulfilment.licence == LicenceState::Signed;
    match standing(facts, unit) {
        Standing::Gone if is_signed => UnitStatus::Revoked,
        Standing::Gone => UnitStatus::Refused,
        Standing::Suspended => UnitStatus::Suspended,
        Standing::Good if !is_signed => UnitStatus::Waiting,
        Standing::Good => match fulfilment.delivery {
            DeliveryState::None => UnitStatus::Licensed,
            DeliveryState::AwaitingRecipient => UnitStatus::AwaitingRecipient,
            DeliveryState::Delivering => UnitStatus::Delivering,
            DeliveryState::Delivered => UnitStatus::Delivered,
        },
    }
}

fn is_gone(status: UnitStatus) -> bool {
    matches!(status, UnitStatus::Revoked | UnitStatus::Refused)
}

/// Where an order stands.
pub fn status(facts: &Facts) -> OrderStatus {
    let units: Vec<_> = facts
        .terms
        .units
        .iter()
        .map(|unit| unit_status(facts, *unit))
        .collect();
    let any = |of: fn(UnitStatus) -> bool| units.iter().copied().any(of);
    let is_held = !holds(facts).is_empty();
    if !facts.is_paid() {
        let is_on_its_way = facts
            .attempts
            .values()
            .any(|a| a.session == Session::Complete && a.funds == Funds::Unpaid)
            || facts
                .payments
                .values()
                .any(|payment| payment.state == PaymentState::Processing);
        return match () {
            () if is_held => OrderStatus::Held,
            () if is_on_its_way => OrderStatus::AwaitingFunds,
            () if facts.closed => OrderStatus::Failed,
            () => OrderStatus::Pending,
        };
    }
    match () {
        () if units.iter().copied().all(is_gone) => OrderStatus::Refunded,
        () if is_held => OrderStatus::Held,
        () if any(|unit| unit == UnitStatus::Suspended) => OrderStatus::Suspended,
        () if facts.reserved.known().is_none() => OrderStatus::AwaitingFinance,
        () if any(|unit| unit == UnitStatus::Waiting) => OrderStatus::Licensing,
        () if any(is_gone) => OrderStatus::PartlyRefunded,
        () => OrderStatus::Completed,
    }
}

/// The same in the four words of S2.
pub fn projection(facts: &Facts) -> Projection {
    let is_settled = |unit: &UnitId| {
        facts.fulfilment(*unit).licence == LicenceState::Signed || is_gone(unit_status(facts, *unit))
    };
    match status(facts) {
        OrderStatus::Refunded => Projection::Refunded,
        OrderStatus::Failed => Projection::Failed,
        _ if facts.is_paid() && facts.terms.units.iter().all(is_settled) => Projection::Completed,
        _ => Projection::Pending,
    }
}
