//! Reads an order from its rows.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, DisputeState, Funds, Once, PaymentState, RefundState, UnitId},
    finance::EntryKind,
    money::{Currency, Money},
    price::Amounts,
};

use super::{Result, database, unreadable};
use crate::{
    order::{Ack, Attempt, Booking, Buyer, Call, Dispute, Licence, Line, Order, Payment, Refund, Session},
    seams::StoreError,
};

/// States by their numbers, in the order of their enums.
const SESSIONS: [facts::Session; 3] = [
    facts::Session::Open,
    facts::Session::Expired,
    facts::Session::Complete,
];
const FUNDS: [Funds; 3] = [Funds::Unpaid, Funds::Failed, Funds::Paid];
const PAYMENTS: [PaymentState; 4] = [
    PaymentState::Pending,
    PaymentState::Processing,
    PaymentState::Failed,
    PaymentState::Succeeded,
];
const REFUNDS: [RefundState; 5] = [
    RefundState::Pending,
    RefundState::RequiresAction,
    RefundState::Succeeded,
    RefundState::Canceled,
    RefundState::Failed,
];
const DISPUTES: [DisputeState; 8] = [
    DisputeState::WarningNeedsResponse,
    DisputeState::WarningUnderReview,
    DisputeState::WarningClosed,
    DisputeState::Prevented,
    DisputeState::NeedsResponse,
    DisputeState::UnderReview,
    DisputeState::Won,
    DisputeState::Lost,
];

fn state<T: Copy>(all: &[T], number: i16) -> Result<T> {
    let place = usize::try_from(number).ok();
    place
        .and_then(|place| all.get(place))
        .copied()
        .ok_or_else(|| unreadable(format!("state {number}")))
}

fn currency(code: &str) -> Result<Currency> {
    code.parse().map_err(unreadable)
}

fn small(number: i32) -> Result<u32> {
    u32::try_from(number).map_err(unreadable)
}

/// Something that was said once, unless it was contradicted.
fn once<T>(said: Option<T>, contradicted: bool) -> Once<T> {
    match said {
        _ if contradicted => Once::Contradicted,
        Some(said) => Once::Known(said),
        None => Once::Unknown,
    }
}

/// Who an account is.
pub(super) async fn buyer(connection: &mut PgConnection, account: Uuid) -> Result<Buyer> {
    let row = sqlx::query!(
        "SELECT issuer, subject, stripe_customer FROM shop.accounts WHERE id = $1",
        account
    )
    .fetch_optional(connection)
    .await
    .map_err(database)?;
    let row = row.ok_or_else(|| StoreError::Missing(format!("account {account}")))?;
    Ok(Buyer {
        account,
        issuer: row.issuer,
        subject: row.subject,
        customer: row.stripe_customer,
    })
}

/// All of an order.
pub(super) async fn order(connection: &mut PgConnection, id: Uuid) -> Result<Order> {
    let row = sqlx::query!(
        "SELECT o.account, o.currency, o.subtotal, o.discount, o.tax, o.total, o.closed, o.accepted, a.issuer, a.subject, a.stripe_customer
        FROM shop.orders o JOIN shop.accounts a ON a.id = o.account WHERE o.id = $1",
        id
    )
    .fetch_optional(&mut *connection)
    .await
    .map_err(database)?
    .ok_or_else(|| StoreError::Missing(format!("order {id}")))?;
    let currency = currency(&row.currency)?;
    let amounts = |[subtotal, discount, tax, total]: [i64; 4]| Amounts {
        subtotal: Money::new(subtotal, currency),
        discount: Money::new(discount, currency),
        tax: Money::new(tax, currency),
        total: Money::new(total, currency),
    };
    let items = sqlx::query!(
        "SELECT id, sku, title, seller, versions, grants, price, quantity, subtotal, discount, tax, total
        FROM shop.order_items WHERE order_id = $1 ORDER BY line",
        id
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(database)?;
    let mut lines = vec![];
    for item in items {
        lines.push(Line {
            item: item.id,
            sku: item.sku,
            title: item.title,
            seller: item.seller,
            versions: item.versions,
            price: item.price,
            quantity: small(item.quantity)?,
            amounts: amounts([item.subtotal, item.discount, item.tax, item.total]),
            grant: serde_json::from_value(item.grants).map_err(unreadable)?,
        });
    }
    let numbers: BTreeMap<_, _> = lines.iter().map(|line| line.item).zip(0_u32..).collect();
    let units = Units(numbers);
    Ok(Order {
        id,
        buyer: Buyer {
            account: row.account,
            issuer: row.issuer,
            subject: row.subject,
            customer: row.stripe_customer,
        },
        sum: amounts([row.subtotal, row.discount, row.tax, row.total]),
        lines,
        closed: row.closed,
        accepted: row.accepted,
        attempts: attempts(connection, id).await?,
        payments: payments(connection, id).await?,
        refunds: refunds(connection, id, &units).await?,
        disputes: disputes(connection, id).await?,
        bookings: bookings(connection, id).await?,
        licences: licences(connection, id, &units).await?,
        tasks: tasks(connection, id).await?,
        news: vec![],
    })
}

/// Lines by their items.
struct Units(BTreeMap<Uuid, u32>);

impl Units {
    fn id(&self, item: Uuid, unit: i32) -> Result<UnitId> {
        let line = self
            .0
            .get(&item)
            .copied()
            .ok_or_else(|| unreadable(format!("item {item}")))?;
        Ok(UnitId {
            line,
            unit: small(unit)?,
        })
    }
}

async fn attempts(connection: &mut PgConnection, id: Uuid) -> Result<BTreeMap<u32, Attempt>> {
    let rows = sqlx::query!(
        "SELECT n, path, body, key, begun_at AS \"begun_at: jiff_sqlx::Timestamp\", session, url,
            expires_at AS \"expires_at: jiff_sqlx::Timestamp\", session_state, funds
        FROM shop.attempts WHERE order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let attempts = rows.into_iter().map(|row| {
        let session = match (row.session, row.url, row.expires_at) {
            (Some(id), Some(url), Some(expires_at)) => Some(Session {
                id,
                url,
                expires_at: expires_at.to_jiff(),
            }),
            _ => None,
        };
        let attempt = Attempt {
            call: Call {
                path: row.path,
                body: row.body,
                key: row.key,
            },
            begun_at: row.begun_at.to_jiff(),
            session,
            said: facts::Attempt {
                session: state(&SESSIONS, row.session_state)?,
                funds: state(&FUNDS, row.funds)?,
            },
        };
        Ok((small(row.n)?, attempt))
    });
    attempts.collect()
}

async fn payments(connection: &mut PgConnection, id: Uuid) -> Result<BTreeMap<String, Payment>> {
    let rows = sqlx::query!(
        "SELECT id, attempt, state, received, currency, contradicted, method, paid_at AS \"paid_at: jiff_sqlx::Timestamp\"
        FROM shop.payments WHERE order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let payments = rows.into_iter().map(|row| {
        let received = match (row.received, row.currency) {
            (Some(minor), Some(code)) => Some(Money::new(minor, currency(&code)?)),
            _ => None,
        };
        let payment = Payment {
            said: facts::Payment {
                attempt: once(row.attempt.map(small).transpose()?, row.contradicted),
                state: state(&PAYMENTS, row.state)?,
                received: once(received, row.contradicted),
            },
            paid_at: row.paid_at.map(|at| at.to_jiff()),
            method: row.method,
        };
        Ok((row.id, payment))
    });
    payments.collect()
}

async fn refunds(connection: &mut PgConnection, id: Uuid, units: &Units) -> Result<BTreeMap<Uuid, Refund>> {
    let named = sqlx::query!(
        "SELECT refund_id, item_id, unit FROM shop.refund_units WHERE order_id = $1",
        id
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(database)?;
    let mut of_refund: BTreeMap<Uuid, BTreeSet<UnitId>> = BTreeMap::new();
    for row in named {
        of_refund
            .entry(row.refund_id)
            .or_default()
            .insert(units.id(row.item_id, row.unit)?);
    }
    let rows = sqlx::query!(
        "SELECT id, payment, amount, currency, stripe_id, state, contradicted, named, reason, path, body, key,
            asked_at AS \"asked_at: jiff_sqlx::Timestamp\"
        FROM shop.refunds WHERE order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let refunds = rows.into_iter().map(|row| {
        let call = match (row.path, row.body, row.key) {
            (Some(path), Some(body), Some(key)) => Some(Call { path, body, key }),
            _ => None,
        };
        let amount = Money::new(row.amount, currency(&row.currency)?);
        let units = row.named.then(|| of_refund.remove(&row.id).unwrap_or_default());
        let refund = Refund {
            stripe: row.stripe_id,
            call,
            asked_at: row.asked_at.map(|at| at.to_jiff()),
            reason: row.reason,
            said: facts::Refund {
                of: once(Some((row.payment, amount)), row.contradicted),
                state: state(&REFUNDS, row.state)?,
                units: once(units, row.contradicted),
            },
        };
        Ok((row.id, refund))
    });
    refunds.collect()
}

async fn disputes(connection: &mut PgConnection, id: Uuid) -> Result<BTreeMap<String, Dispute>> {
    let rows = sqlx::query!(
        "SELECT id, payment, state, contradicted, amount, currency FROM shop.disputes WHERE order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let disputes = rows.into_iter().map(|row| {
        let dispute = Dispute {
            said: facts::Dispute {
                of: once(Some(row.payment), row.contradicted),
                state: state(&DISPUTES, row.state)?,
            },
            amount: Money::new(row.amount, currency(&row.currency)?),
        };
        Ok((row.id, dispute))
    });
    disputes.collect()
}

async fn bookings(connection: &mut PgConnection, id: Uuid) -> Result<BTreeMap<String, Booking>> {
    let rows = sqlx::query!(
        "SELECT b.key AS \"key!\", b.kind AS \"kind!\", b.request AS \"request!\", a.id AS \"ack?\", a.epoch AS \"epoch?\", a.sequence AS \"sequence?\", a.note AS \"note?\"
        FROM shop.bookings b LEFT JOIN shop.finance_acks a ON a.key = b.key WHERE b.order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let bookings = rows.into_iter().map(|row| {
        let ack = match (row.ack, row.epoch, row.sequence, row.note) {
            (Some(id), Some(epoch), Some(sequence), Some(note)) => Some(Ack {
                id,
                epoch,
                sequence: u64::try_from(sequence).map_err(unreadable)?,
                note,
            }),
            _ => None,
        };
        let booking = Booking {
            kind: kind(&row.kind)?,
            request: row.request,
            ack,
        };
        Ok((row.key, booking))
    });
    bookings.collect()
}

fn kind(text: &str) -> Result<EntryKind> {
    serde_json::from_value(text.into()).map_err(unreadable)
}

async fn licences(
    connection: &mut PgConnection,
    id: Uuid,
    units: &Units,
) -> Result<BTreeMap<UnitId, Licence>> {
    let rows = sqlx::query!(
        "SELECT id, lookup, item_id, unit, finance_ack_id, payload, key, signature FROM shop.licences WHERE order_id = $1",
        id
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let licences = rows.into_iter().map(|row| {
        let signature = row.signature.map(|bytes| <[u8; 64]>::try_from(bytes.as_slice()));
        let licence = Licence {
            id: row.id,
            lookup: row.lookup.parse().map_err(unreadable)?,
            ack: row.finance_ack_id,
            text: row.payload,
            key: row.key,
            signature: signature.transpose().map_err(unreadable)?,
        };
        Ok((units.id(row.item_id, row.unit)?, licence))
    });
    licences.collect()
}

async fn tasks(connection: &mut PgConnection, id: Uuid) -> Result<BTreeSet<crate::order::Task>> {
    let rows = sqlx::query_scalar!("SELECT task FROM shop.tasks WHERE order_id = $1", id)
        .fetch_all(connection)
        .await
        .map_err(database)?;
    rows.iter().map(|task| task.parse().map_err(unreadable)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers in the database are these enums' order: a variant in between would change what is written there.
    #[test]
    fn states_are_numbered_as_they_are_ordered() {
        assert!(
            SESSIONS.is_sorted()
                && FUNDS.is_sorted()
                && PAYMENTS.is_sorted()
                && REFUNDS.is_sorted()
                && DISPUTES.is_sorted()
        );
        for (number, dispute) in DISPUTES.iter().enumerate() {
            assert_eq!(number, *dispute as usize);
        }
        assert_eq!(
            (
                RefundState::Failed as usize,
                PaymentState::Succeeded as usize,
                Funds::Paid as usize
            ),
            (4, 3, 2)
        );
    }
}
