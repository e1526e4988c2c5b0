//! What has to be so, by what Stripe's and Finance's own books say: never by what the shop's tables say of them.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use vitrine_api::order::{Order, Refund, Task};
use vitrine_commerce::{
    facts::{self, OrderStatus, UnitId, UnitStatus},
    finance::EntryRequest,
};
use vitrine_stripe::{
    object::{DisputeStatus, IntentStatus, RefundStatus, SessionStatus},
    sim::{Act, Stripe},
};

use super::world::World;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A licence was signed for what nobody has paid.
    UnpaidLicence(Uuid),
    /// A licence was signed while its money was on its way back, and the shop knew.
    LicensedWhileRefunded(Uuid),
    /// A licence has another text, or another signature, than it had.
    ChangedLicence(Uuid),
    /// What is asked for once was done twice.
    RefundedTwice(String),
    /// More went back than came.
    MoreBackThanCame(String),
    /// Something has still to be done, and nobody does it.
    Unsettled(Uuid, String),
    /// Stripe has it that the money is here, and the shop that nothing is owed for it, or the other way round.
    StatusDiffers(Uuid, String),
    /// Finance's books are not what Stripe's are.
    BooksDiffer(String),
    /// It did not come to rest in the time that it has.
    Restless,
}

/// Remembers what may not change.
#[derive(Default)]
pub struct Oracle {
    signed: BTreeMap<Uuid, ([u8; 64], Vec<u8>)>,
}

/// What may still happen to what is on its way: the usual end, and the other one.
pub fn moves(stripe: &Stripe) -> Vec<(Act, Act)> {
    let mut moves = vec![];
    for session in stripe.sessions() {
        let is_waiting = session
            .payment_intent
            .as_ref()
            .and_then(|id| stripe.intent(id))
            .is_some_and(|intent| intent.status == IntentStatus::Processing);
        if session.status == SessionStatus::Complete && is_waiting {
            moves.push((Act::Arrive(session.id.clone()), Act::Bounce(session.id.clone())));
        }
    }
    for refund in stripe
        .refunds()
        .filter(|refund| refund.status == RefundStatus::Pending)
    {
        let to = |status| Act::Refund(refund.id.clone(), status);
        moves.push((to(RefundStatus::Succeeded), to(RefundStatus::Failed)));
    }
    for dispute in stripe.disputes() {
        use DisputeStatus::{Lost, NeedsResponse, UnderReview, WarningClosed, WarningNeedsResponse, Won};
        let (usual, other) = match dispute.status {
            WarningNeedsResponse => (WarningClosed, NeedsResponse),
            NeedsResponse => (Won, UnderReview),
            UnderReview => (Won, Lost),
            _ => continue,
        };
        let to = |status| Act::Settle(dispute.id.clone(), status);
        moves.push((to(usual), to(other)));
    }
    moves
}

/// Payments that have succeeded.
pub fn paid(stripe: &Stripe) -> Vec<String> {
    stripe
        .intents()
        .filter(|intent| intent.status == IntentStatus::Succeeded)
        .map(|intent| intent.id.clone())
        .collect()
}

fn order_of(metadata: &BTreeMap<String, String>) -> Option<Uuid> {
    metadata.get("order")?.parse().ok()
}

/// What of a payment is gone, or on its way: by refunds that live, and disputes that take it.
fn gone(stripe: &Stripe, intent: &str) -> i64 {
    let live = |status| {
        matches!(
            status,
            RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Succeeded
        )
    };
    stripe
        .refunds()
        .filter(|refund| refund.intent == intent && live(refund.status))
        .map(|refund| refund.amount)
        .sum()
}

fn is_lost(stripe: &Stripe, intent: &str) -> bool {
    stripe
        .disputes()
        .any(|dispute| dispute.intent == intent && dispute.status == DisputeStatus::Lost)
}

impl Oracle {
    /// What holds at every moment.
    pub fn always(&mut self, orders: &[Order], world: &World) -> Option<Violation> {
        let outer = world.outer();
        let stripe = &outer.stripe;
        for order in orders {
            let paid: i64 = stripe
                .intents()
                .filter(|intent| {
                    intent.status == IntentStatus::Succeeded && order_of(&intent.metadata) == Some(order.id)
                })
                .map(|intent| intent.received)
                .max()
                .unwrap_or_default();
            for (unit, licence) in &order.licences {
                let Some(signature) = licence.signature else {
                    continue;
                };
                let takes = |refund: &Refund| {
                    refund.said.state.is_live()
                        && refund
                            .said
                            .units
                            .known()
                            .is_some_and(|units| units.contains(unit))
                };
                if !self.signed.contains_key(&licence.id) && order.refunds.values().any(takes) {
                    return Some(Violation::LicensedWhileRefunded(licence.id));
                }
                if order.sum.total.minor > paid {
                    return Some(Violation::UnpaidLicence(order.id));
                }
                let is = (signature, licence.text.clone());
                if self.signed.entry(licence.id).or_insert_with(|| is.clone()) != &is {
                    return Some(Violation::ChangedLicence(licence.id));
                }
            }
        }
        let mut ours = BTreeSet::new();
        for refund in stripe.refunds() {
            if let Some(id) = refund.metadata.get("refund")
                && !ours.insert(id.clone())
            {
                return Some(Violation::RefundedTwice(id.clone()));
            }
        }
        let over = stripe
            .intents()
            .find(|intent| gone(stripe, &intent.id) > intent.received);
        over.map(|intent| Violation::MoreBackThanCame(intent.id.clone()))
    }

    /// What holds when nothing has gone wrong for long enough.
    pub fn at_rest(&self, orders: &[Order], world: &World, rested: bool) -> Option<Violation> {
        if !rested {
            return Some(Violation::Restless);
        }
        let outer = world.outer();
        for order in orders {
            let violation =
                settled(order, &outer.stripe).or_else(|| books(order, &outer.stripe, &outer.entries));
            if violation.is_some() {
                return violation;
            }
        }
        None
    }
}

fn settled(order: &Order, stripe: &Stripe) -> Option<Violation> {
    let known = order.facts();
    let (id, status, holds) = (order.id, facts::status(&known), facts::holds(&known));
    if let Some(task) = order.tasks.iter().find(|task| !matches!(task, Task::Look(_))) {
        return Some(Violation::Unsettled(id, task.to_string()));
    }
    let differs = |why: String| Some(Violation::StatusDiffers(id, format!("{status:?}: {why}")));
    let paid: Vec<_> = stripe
        .intents()
        .filter(|intent| intent.status == IntentStatus::Succeeded && order_of(&intent.metadata) == Some(id))
        .collect();
    let terminal = [
        OrderStatus::Completed,
        OrderStatus::PartlyRefunded,
        OrderStatus::Refunded,
        OrderStatus::Failed,
        OrderStatus::Held,
    ];
    if !terminal.contains(&status) {
        return differs(format!("it is not at an end; {} payments", paid.len()));
    }
    if (status == OrderStatus::Held) == holds.is_empty() && status != OrderStatus::Refunded {
        return differs(format!("{holds:?}"));
    }
    let free = order.sum.total.is_zero();
    if paid.is_empty() != (status == OrderStatus::Failed) && !free {
        return differs(format!("{} payments", paid.len()));
    }
    // All but one payment goes back, whichever pays.
    let kept: Vec<_> = paid
        .iter()
        .filter(|intent| gone(stripe, &intent.id) < intent.received && !is_lost(stripe, &intent.id))
        .collect();
    if kept.len() > 1 && holds.is_empty() {
        return differs(format!("{} payments are kept", kept.len()));
    }
    // Held exactly where somebody at the dashboard has taken a part and said not of what.
    let is_unnamed = stripe.refunds().any(|refund| {
        let live = matches!(
            refund.status,
            RefundStatus::Pending | RefundStatus::RequiresAction | RefundStatus::Succeeded
        );
        live && !refund.metadata.contains_key("refund")
            && order.accepted.as_ref() == Some(&refund.intent)
            && gone(stripe, &refund.intent) < order.sum.total.minor
    });
    if is_unnamed == holds.is_empty() {
        return differs(format!(
            "held by {holds:?}, and a refund that says nothing is there: {is_unnamed}"
        ));
    }
    if !holds.is_empty() {
        return None;
    }
    for (unit, _) in order.units() {
        if let Some(violation) = unit_is_right(order, stripe, unit, &known) {
            return Some(violation);
        }
    }
    None
}

fn unit_is_right(order: &Order, stripe: &Stripe, unit: UnitId, known: &facts::Facts) -> Option<Violation> {
    let status = facts::unit_status(known, unit);
    let Some(accepted) = &order.accepted else {
        let is_free = order.sum.total.is_zero();
        let right = if is_free {
            UnitStatus::Licensed
        } else {
            UnitStatus::Waiting
        };
        return (status != right)
            .then(|| Violation::StatusDiffers(order.id, format!("unit {unit:?} is {status:?}, and unpaid")));
    };
    let of_unit = stripe.refunds().any(|refund| {
        let named = refund
            .metadata
            .get("refund")
            .and_then(|id| id.parse::<Uuid>().ok())
            .and_then(|id| order.refunds.get(&id));
        let names = named
            .and_then(|refund| refund.said.units.known())
            .is_some_and(|units| units.contains(&unit));
        refund.intent == *accepted && names && refund.status == RefundStatus::Succeeded
    });
    let is_gone = of_unit || gone(stripe, accepted) >= order.sum.total.minor || is_lost(stripe, accepted);
    let is_right = if is_gone {
        matches!(status, UnitStatus::Revoked | UnitStatus::Refused)
    } else {
        status == UnitStatus::Licensed
    };
    (!is_right).then(|| {
        Violation::StatusDiffers(
            order.id,
            format!("unit {unit:?} is {status:?}, and gone: {is_gone}"),
        )
    })
}

fn books(
    order: &Order,
    stripe: &Stripe,
    entries: &BTreeMap<String, (Vec<u8>, Vec<u8>)>,
) -> Option<Violation> {
    let of_order: Vec<EntryRequest> = entries
        .values()
        .filter_map(|(request, _)| serde_json::from_slice(request).ok())
        .filter(|entry: &EntryRequest| entry.order == order.id)
        .collect();
    let sum = |kind: &str| -> i64 {
        of_order
            .iter()
            .filter(|entry| entry.kind.to_string() == kind)
            .map(|entry| entry.amount.minor)
            .sum()
    };
    let succeeded: i64 = stripe
        .intents()
        .filter(|intent| {
            intent.status == IntentStatus::Succeeded && order_of(&intent.metadata) == Some(order.id)
        })
        .map(|intent| intent.received)
        .sum();
    let returned: i64 = stripe
        .refunds()
        .filter(|refund| refund.status == RefundStatus::Succeeded)
        .filter(|refund| {
            stripe
                .intent(&refund.intent)
                .is_some_and(|intent| order_of(&intent.metadata) == Some(order.id))
        })
        .map(|refund| refund.amount)
        .sum();
    let differs = |what: &str, books: i64, is: i64| {
        (books != is).then(|| {
            Violation::BooksDiffer(format!(
                "{what} of {}: {books} in the books, {is} at Stripe",
                order.id
            ))
        })
    };
    let unacknowledged = order
        .bookings
        .iter()
        .find(|(_, booking)| booking.ack.is_none())
        .map(|(key, _)| key);
    differs("what was paid", sum("deposit"), succeeded)
        .or_else(|| differs("what went back", sum("refund") - sum("reinstate"), returned))
        .or_else(|| unacknowledged.map(|key| Violation::BooksDiffer(format!("{key} is not acknowledged"))))
        .or_else(|| {
            (of_order.len() != order.bookings.len()).then(|| {
                Violation::BooksDiffer(format!("{} entries for {}", of_order.len(), order.bookings.len()))
            })
        })
}
