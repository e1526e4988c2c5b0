//! What Stripe says is joined to what is known: an older answer that comes late, or one that comes twice, changes nothing. Pure.

use jiff::Timestamp;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, Join, Once, RefundState},
    money::Money,
};

use super::{At, Refusal, named};
use crate::order::{Dispute, Order, Payment, Refund, Session};

/// What Stripe says of an order's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Sessions, by the attempts that they say they are of.
    pub sessions: Vec<(u32, Session, facts::Attempt)>,
    /// Payments.
    pub payments: Vec<SeenPayment>,
    /// Refunds.
    pub refunds: Vec<SeenRefund>,
    /// Disputes, by Stripe's id, of which payment, and over how much.
    pub disputes: Vec<(String, facts::Dispute, Money)>,
}

/// A payment, as Stripe tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPayment {
    /// Its id.
    pub id: String,
    /// Of which attempt it says it is.
    pub attempt: Option<u32>,
    /// How far it is.
    pub state: facts::PaymentState,
    /// What has arrived, once it has succeeded.
    pub received: Option<Money>,
    /// When it succeeded.
    pub paid_at: Option<Timestamp>,
    /// By what.
    pub method: Option<String>,
}

/// A refund, as Stripe tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenRefund {
    /// Its id.
    pub id: String,
    /// Ours, if it says so.
    pub ours: Option<Uuid>,
    /// Of which payment.
    pub payment: String,
    /// How much.
    pub amount: Money,
    /// How far it is.
    pub state: RefundState,
    /// Why, in Stripe's word.
    pub reason: Option<String>,
}

/// Joins what was seen.
///
/// # Errors
/// Never: what cannot be believed is held for a person.
pub fn apply(order: &mut Order, seen: &Observed, _: &At<'_>) -> Result<(), Refusal> {
    for (n, session, said) in &seen.sessions {
        // An attempt that is not known, or has another session: whatever was paid there is a payment of its own below.
        let Some(attempt) = order.attempts.get_mut(n) else {
            continue;
        };
        if attempt.session.get_or_insert_with(|| session.clone()).id == session.id {
            attempt.said.join(*said);
        }
    }
    for payment in &seen.payments {
        let known = order.payments.entry(payment.id.clone()).or_default();
        join_payment(known, payment);
    }
    for refund in &seen.refunds {
        join_refund(order, refund);
    }
    for (id, said, amount) in &seen.disputes {
        let known = order.disputes.entry(id.clone()).or_insert_with(|| Dispute {
            said: facts::Dispute::default(),
            amount: *amount,
        });
        known.said.join(said.clone());
    }
    Ok(())
}

fn once<T>(said: Option<T>) -> Once<T> {
    said.map_or(Once::Unknown, Once::Known)
}

fn join_payment(known: &mut Payment, seen: &SeenPayment) {
    known.said.join(facts::Payment {
        attempt: once(seen.attempt),
        state: seen.state,
        received: once(seen.received),
    });
    // Who contradicts himself in one thing is not believed in another either.
    if known.said.attempt.is_contradicted() || known.said.received.is_contradicted() {
        known.said.attempt = Once::Contradicted;
        known.said.received = Once::Contradicted;
    }
    known.paid_at = known.paid_at.or(seen.paid_at);
    known.method = known.method.take().or_else(|| seen.method.clone());
}

fn join_refund(order: &mut Order, seen: &SeenRefund) {
    let by_stripe = order
        .refunds
        .iter()
        .find(|(_, refund)| refund.stripe.as_deref() == Some(&seen.id));
    let ours = seen.ours.filter(|id| {
        order
            .refunds
            .get(id)
            .is_some_and(|refund| refund.stripe.is_none())
    });
    let id = by_stripe
        .map(|(id, _)| *id)
        .or(ours)
        .unwrap_or_else(|| named(&seen.id));
    let known = order.refunds.entry(id).or_insert_with(|| Refund {
        stripe: None,
        call: None,
        asked_at: None,
        reason: seen.reason.clone().unwrap_or_else(|| "dashboard".to_owned()),
        said: facts::Refund::default(),
    });
    known.stripe.get_or_insert_with(|| seen.id.clone());
    known.said.join(facts::Refund {
        of: Once::Known((seen.payment.clone(), seen.amount)),
        state: seen.state,
        units: Once::Unknown,
    });
    if known.said.of.is_contradicted() || known.said.units.is_contradicted() {
        known.said.of = Once::Contradicted;
        known.said.units = Once::Contradicted;
    }
}
