//! What follows by itself once something has changed: which payment pays, which goes back, what Finance is asked for, what workers have to do. Pure.

use std::collections::{BTreeMap, BTreeSet};

use vitrine_commerce::{
    facts::{self, Duty, Facts, Funds, LicenceState, Once, PaymentState, RefundState, UnitId},
    finance::{EntryKind, EntryRequest, Part},
    money::Money,
    split::split,
};

use super::{At, Refusal, named, refund};
use crate::order::{Attempt, Booking, Order, Refund, Session, Task};

/// Settles an order; what is known of it then. What it finds out is the same whenever it is asked again.
pub(super) fn settle(order: &mut Order, at: &At<'_>) -> Result<Facts, Refusal> {
    // Each step may show the next one: what pays first, and then what of the others goes back.
    while let Some(duty) = facts::duties(&order.facts()).into_iter().find(is_decided_here) {
        match duty {
            Duty::Accept(payment) => order.accepted = Some(payment),
            Duty::ReturnSurplus(payment) => return_surplus(order, &payment, at)?,
            Duty::Reserve | Duty::License(_) | Duty::Deliver(_) => {}
        }
    }
    let facts = order.facts();
    for request in wanted(order, &facts) {
        if order.bookings.contains_key(&request.key) {
            continue;
        }
        let bytes = serde_json_canonicalizer::to_vec(&request)
            .map_err(|error| Refusal::Json("an entry", error.to_string()))?;
        let booking = Booking {
            kind: request.kind,
            request: bytes,
            ack: None,
        };
        order.bookings.insert(request.key, booking);
    }
    order.tasks = todo(order, &facts);
    Ok(facts)
}

const fn is_decided_here(duty: &Duty) -> bool {
    matches!(duty, Duty::Accept(_) | Duty::ReturnSurplus(_))
}

fn return_surplus(order: &mut Order, payment: &str, at: &At<'_>) -> Result<(), Refusal> {
    let received = order
        .payments
        .get(payment)
        .and_then(|payment| payment.said.received.known().copied());
    // A payment of which nobody knows how much it was is held, and no duty.
    let amount = received.ok_or(Refusal::NothingToRefund)?;
    let id = named(&format!("surplus {payment}"));
    let said = facts::Refund {
        of: Once::Known((payment.to_owned(), amount)),
        state: RefundState::Pending,
        units: Once::Known(BTreeSet::new()),
    };
    order.refunds.insert(
        id,
        Refund {
            stripe: None,
            call: Some(refund::call(order.id, id, payment, amount)),
            asked_at: Some(at.now),
            reason: "surplus".to_owned(),
            said,
        },
    );
    Ok(())
}

/// The entries that Finance has to have.
fn wanted(order: &Order, facts: &Facts) -> Vec<EntryRequest> {
    let mut wanted = vec![];
    let parts = order.parts();
    let entry = |kind: EntryKind, of: &str, amount: Money| EntryRequest {
        key: format!("{kind}:{of}"),
        kind,
        order: order.id,
        amount,
        payment: None,
        parts: vec![],
        reverses: None,
    };
    for (id, payment) in &order.payments {
        if let (PaymentState::Succeeded, Some(received)) = (payment.said.state, payment.said.received.known())
        {
            wanted.push(EntryRequest {
                payment: Some(id.clone()),
                ..entry(EntryKind::Deposit, id, *received)
            });
        }
    }
    let id = order.id.to_string();
    if facts::duties(facts).contains(&Duty::Reserve) {
        let kind = if facts.terms.due.is_zero() {
            EntryKind::Memo
        } else {
            EntryKind::Reserve
        };
        wanted.push(EntryRequest {
            payment: order.accepted.clone(),
            parts: parts.values().cloned().collect(),
            ..entry(kind, &id, facts.terms.due)
        });
    }
    let reserve = format!("{}:{id}", EntryKind::Reserve);
    for (unit, part) in &parts {
        if facts.fulfilment(*unit).licence == LicenceState::Signed && !part.total.is_zero() {
            wanted.push(EntryRequest {
                parts: vec![part.clone()],
                reverses: Some(reserve.clone()),
                ..entry(
                    EntryKind::Post,
                    &format!("{id}:{}.{}", unit.line, unit.unit),
                    part.total,
                )
            });
        }
    }
    for (refund_id, refund) in &order.refunds {
        let Some((payment, amount)) = refund.said.of.known() else {
            continue;
        };
        let (is_of_accepted, id) = (order.accepted.as_ref() == Some(payment), refund_id.to_string());
        let refunded = EntryRequest {
            payment: Some(payment.clone()),
            // What was never shared out goes back as it came.
            parts: if is_of_accepted {
                taken_back(&parts, refund, *amount)
            } else {
                vec![]
            },
            reverses: is_of_accepted.then(|| reserve.clone()),
            ..entry(EntryKind::Refund, &id, *amount)
        };
        let was_booked = order.bookings.contains_key(&refunded.key);
        match refund.said.state {
            RefundState::Succeeded => wanted.push(refunded),
            RefundState::Failed | RefundState::Canceled if was_booked => wanted.push(EntryRequest {
                payment: Some(payment.clone()),
                parts: refunded.parts,
                reverses: Some(refunded.key),
                ..entry(EntryKind::Reinstate, &id, *amount)
            }),
            _ => {}
        }
    }
    wanted
}

/// Of whose goods a refund takes back how much: of those it names, else of all, by what they cost.
fn taken_back(parts: &BTreeMap<UnitId, Part>, refund: &Refund, amount: Money) -> Vec<Part> {
    let named = refund.said.units.known().filter(|units| !units.is_empty());
    let meant: Vec<_> = parts
        .iter()
        .filter(|(unit, _)| named.is_none_or(|units| units.contains(unit)))
        .collect();
    let weights: Vec<_> = meant
        .iter()
        .map(|(unit, part)| (**unit, part.total.minor.unsigned_abs()))
        .collect();
    let shares: BTreeMap<_, _> = split(amount.minor, &weights)
        .unwrap_or_default()
        .into_iter()
        .collect();
    let taken = meant.into_iter().filter_map(|(unit, part)| {
        let minor = shares.get(unit).copied().filter(|minor| *minor > 0)?;
        // As much of it is tax as of the whole, to the minor unit below.
        let tax = i128::from(minor) * i128::from(part.tax.minor) / i128::from(part.total.minor.max(1));
        Some(Part {
            total: Money::new(minor, amount.currency),
            tax: Money::new(i64::try_from(tax).unwrap_or(minor), amount.currency),
            ..part.clone()
        })
    });
    taken.collect()
}

/// What workers have to do now, and nothing else.
fn todo(order: &Order, facts: &Facts) -> BTreeSet<Task> {
    let mut todo = BTreeSet::new();
    let tried = order.attempts.values().filter_map(paid_at);
    todo.extend(tried.map(|session| Task::Look(session.id.clone())));
    // A call of which nobody has heard is no attempt that anybody could pay at.
    let is_paid = facts.is_paid()
        || order
            .payments
            .values()
            .any(|payment| payment.said.state == PaymentState::Succeeded);
    if todo.is_empty() && !order.closed && !is_paid {
        todo.insert(Task::GiveUp);
    }
    for (id, refund) in &order.refunds {
        let is_on_its_way = matches!(
            refund.said.state,
            RefundState::Pending | RefundState::RequiresAction
        );
        match (&refund.stripe, &refund.call) {
            (Some(stripe), _) if is_on_its_way => {
                todo.insert(Task::Look(stripe.clone()));
            }
            (None, Some(_)) if is_on_its_way => {
                todo.insert(Task::Send(*id));
            }
            _ => {}
        }
    }
    let unacknowledged = order.bookings.iter().filter(|(_, booking)| booking.ack.is_none());
    todo.extend(unacknowledged.map(|(key, _)| Task::Book(key.clone())));
    todo.extend(facts::duties(facts).into_iter().filter_map(|duty| match duty {
        Duty::License(unit) => Some(Task::License(unit)),
        _ => None,
    }));
    todo
}

/// The session of an attempt by which money may still come.
fn paid_at(attempt: &Attempt) -> Option<&Session> {
    let is_on_its_way = match attempt.said.session {
        facts::Session::Open => true,
        facts::Session::Complete => attempt.said.funds == Funds::Unpaid,
        facts::Session::Expired => false,
    };
    attempt.session.as_ref().filter(|_| is_on_its_way)
}
