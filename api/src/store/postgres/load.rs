//! Reads orders from their rows: all of it in one statement, which sees one moment, and costs one way to the database and back instead of ten.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use sqlx::{PgExecutor, types::Json};
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, DisputeState, Funds, Once, PaymentState, RefundState, UnitId},
    finance::EntryKind,
    licence::Grant,
    money::{Currency, Money},
    price::Amounts,
};

use super::{Numbered, Result, database, unreadable};
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

/// Bytes as Postgres writes them in JSON (PostgreSQL, section 8.4.1, "bytea Hex Format").
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Bytes(Vec<u8>);

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let digits = text.strip_prefix("\\x").ok_or("bytes begin with \\x")?;
        hex::decode(digits).map(Self).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Deserialize)]
struct ItemRow {
    id: Uuid,
    sku: String,
    title: String,
    seller: String,
    versions: String,
    grants: Grant,
    price: Uuid,
    quantity: i32,
    subtotal: i64,
    discount: i64,
    tax: i64,
    total: i64,
}

#[derive(Debug, Deserialize)]
struct AttemptRow {
    n: i32,
    path: String,
    body: String,
    key: String,
    begun_at: Timestamp,
    session: Option<String>,
    url: Option<String>,
    expires_at: Option<Timestamp>,
    session_state: i16,
    funds: i16,
}

#[derive(Debug, Deserialize)]
struct PaymentRow {
    id: String,
    attempt: Option<i32>,
    state: i16,
    received: Option<i64>,
    currency: Option<String>,
    contradicted: bool,
    method: Option<String>,
    paid_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
struct RefundRow {
    id: Uuid,
    payment: String,
    amount: i64,
    currency: String,
    stripe_id: Option<String>,
    state: i16,
    contradicted: bool,
    named: bool,
    reason: String,
    path: Option<String>,
    body: Option<String>,
    key: Option<String>,
    asked_at: Option<Timestamp>,
    /// Items with the numbers of their units.
    units: Option<Vec<(Uuid, i32)>>,
}

#[derive(Debug, Deserialize)]
struct DisputeRow {
    id: String,
    payment: String,
    state: i16,
    contradicted: bool,
    amount: i64,
    currency: String,
}

#[derive(Debug, Deserialize)]
struct BookingRow {
    key: String,
    kind: EntryKind,
    request: Bytes,
    ack: Option<Uuid>,
    epoch: Option<Uuid>,
    sequence: Option<u64>,
    note: Option<Bytes>,
}

#[derive(Debug, Deserialize)]
struct LicenceRow {
    id: Uuid,
    lookup: String,
    item_id: Uuid,
    unit: i32,
    finance_ack_id: Uuid,
    payload: Bytes,
    key: String,
    signature: Option<Bytes>,
}

/// All of an order.
pub(super) async fn order(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Order> {
    let found = orders(executor, &[id]).await?.pop();
    found
        .map(|numbered| numbered.order)
        .ok_or_else(|| StoreError::Missing(format!("order {id}")))
}

/// All of these orders, as far as they are there, in no order.
pub(super) async fn orders(executor: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<Vec<Numbered>> {
    let rows = sqlx::query!(
        "SELECT o.id, o.number, o.account, o.currency, o.subtotal, o.discount, o.tax, o.total, o.closed, o.accepted,
            a.issuer, a.subject, a.stripe_customer,
            (SELECT json_agg(r ORDER BY r.line) FROM (
                SELECT line, id, sku, title, seller, versions, grants, price, quantity, subtotal, discount, tax, total
                FROM shop.order_items WHERE order_id = o.id) r) AS \"items: Json<Vec<ItemRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT n, path, body, key, begun_at, session, url, expires_at, session_state, funds
                FROM shop.attempts WHERE order_id = o.id) r) AS \"attempts: Json<Vec<AttemptRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT id, attempt, state, received, currency, contradicted, method, paid_at
                FROM shop.payments WHERE order_id = o.id) r) AS \"payments: Json<Vec<PaymentRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT id, payment, amount, currency, stripe_id, state, contradicted, named, reason, path, body, key, asked_at,
                    (SELECT json_agg(json_build_array(item_id, unit)) FROM shop.refund_units WHERE refund_id = f.id) AS units
                FROM shop.refunds f WHERE order_id = o.id) r) AS \"refunds: Json<Vec<RefundRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT id, payment, state, contradicted, amount, currency
                FROM shop.disputes WHERE order_id = o.id) r) AS \"disputes: Json<Vec<DisputeRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT b.key, b.kind, b.request, f.id AS ack, f.epoch, f.sequence, f.note
                FROM shop.bookings b LEFT JOIN shop.finance_acks f ON f.key = b.key WHERE b.order_id = o.id) r) AS \"bookings: Json<Vec<BookingRow>>\",
            (SELECT json_agg(r) FROM (
                SELECT id, lookup, item_id, unit, finance_ack_id, payload, key, signature
                FROM shop.licences WHERE order_id = o.id) r) AS \"licences: Json<Vec<LicenceRow>>\",
            ARRAY(SELECT task FROM shop.tasks WHERE order_id = o.id) AS \"tasks!\"
        FROM shop.orders o JOIN shop.accounts a ON a.id = o.account WHERE o.id = ANY($1)",
        ids
    )
    .fetch_all(executor)
    .await
    .map_err(database)?;
    let orders = rows.into_iter().map(|row| {
        let currency = currency(&row.currency)?;
        let amounts = |[subtotal, discount, tax, total]: [i64; 4]| Amounts {
            subtotal: Money::new(subtotal, currency),
            discount: Money::new(discount, currency),
            tax: Money::new(tax, currency),
            total: Money::new(total, currency),
        };
        let lines: Vec<_> = read(row.items, |item: ItemRow| {
            Ok(Line {
                item: item.id,
                sku: item.sku,
                title: item.title,
                seller: item.seller,
                versions: item.versions,
                price: item.price,
                quantity: small(item.quantity)?,
                amounts: amounts([item.subtotal, item.discount, item.tax, item.total]),
                grant: item.grants,
            })
        })?;
        let units = Units(
            (0..)
                .zip(&lines)
                .map(|(number, line)| (line.item, number))
                .collect(),
        );
        let order = Order {
            id: row.id,
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
            attempts: read(row.attempts, attempt)?,
            payments: read(row.payments, payment)?,
            refunds: read(row.refunds, |row| refund(row, &units))?,
            disputes: read(row.disputes, dispute)?,
            bookings: read(row.bookings, booking)?,
            licences: read(row.licences, |row| licence(row, &units))?,
            tasks: row
                .tasks
                .iter()
                .map(|task| task.parse().map_err(unreadable))
                .collect::<Result<_>>()?,
            news: vec![],
        };
        Ok(Numbered {
            number: row.number,
            order,
        })
    });
    orders.collect()
}

/// Rows of a table as Postgres gathers them: nothing instead of none.
fn read<R, T, C: FromIterator<T>>(rows: Option<Json<Vec<R>>>, each: impl FnMut(R) -> Result<T>) -> Result<C> {
    rows.map(|Json(rows)| rows)
        .unwrap_or_default()
        .into_iter()
        .map(each)
        .collect()
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

fn attempt(row: AttemptRow) -> Result<(u32, Attempt)> {
    let session = match (row.session, row.url, row.expires_at) {
        (Some(id), Some(url), Some(expires_at)) => Some(Session { id, url, expires_at }),
        _ => None,
    };
    let attempt = Attempt {
        call: Call {
            path: row.path,
            body: row.body,
            key: row.key,
        },
        begun_at: row.begun_at,
        session,
        said: facts::Attempt {
            session: state(&SESSIONS, row.session_state)?,
            funds: state(&FUNDS, row.funds)?,
        },
    };
    Ok((small(row.n)?, attempt))
}

fn payment(row: PaymentRow) -> Result<(String, Payment)> {
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
        paid_at: row.paid_at,
        method: row.method,
    };
    Ok((row.id, payment))
}

fn refund(row: RefundRow, units: &Units) -> Result<(Uuid, Refund)> {
    let call = match (row.path, row.body, row.key) {
        (Some(path), Some(body), Some(key)) => Some(Call { path, body, key }),
        _ => None,
    };
    let amount = Money::new(row.amount, currency(&row.currency)?);
    let of = row.units.unwrap_or_default();
    let of = of.into_iter().map(|(item, unit)| units.id(item, unit));
    let of: BTreeSet<_> = of.collect::<Result<_>>()?;
    let refund = Refund {
        stripe: row.stripe_id,
        call,
        asked_at: row.asked_at,
        reason: row.reason,
        said: facts::Refund {
            of: once(Some((row.payment, amount)), row.contradicted),
            state: state(&REFUNDS, row.state)?,
            units: once(row.named.then_some(of), row.contradicted),
        },
    };
    Ok((row.id, refund))
}

fn dispute(row: DisputeRow) -> Result<(String, Dispute)> {
    let dispute = Dispute {
        said: facts::Dispute {
            of: once(Some(row.payment), row.contradicted),
            state: state(&DISPUTES, row.state)?,
        },
        amount: Money::new(row.amount, currency(&row.currency)?),
    };
    Ok((row.id, dispute))
}

fn booking(row: BookingRow) -> Result<(String, Booking)> {
    let ack = match (row.ack, row.epoch, row.sequence, row.note) {
        (Some(id), Some(epoch), Some(sequence), Some(Bytes(note))) => Some(Ack {
            id,
            epoch,
            sequence,
            note,
        }),
        _ => None,
    };
    let booking = Booking {
        kind: row.kind,
        request: row.request.0,
        ack,
    };
    Ok((row.key, booking))
}

fn licence(row: LicenceRow, units: &Units) -> Result<(UnitId, Licence)> {
    let signature = row
        .signature
        .map(|Bytes(bytes)| <[u8; 64]>::try_from(bytes.as_slice()));
    let licence = Licence {
        id: row.id,
        lookup: row.lookup.parse().map_err(unreadable)?,
        ack: row.finance_ack_id,
        text: row.payload.0,
        key: row.key,
        signature: signature.transpose().map_err(unreadable)?,
    };
    Ok((units.id(row.item_id, row.unit)?, licence))
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
