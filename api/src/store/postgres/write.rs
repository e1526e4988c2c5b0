//! Writes what is different in an order.

use std::collections::{BTreeMap, BTreeSet};

use jiff_sqlx::ToSqlx;
use sqlx::PgConnection;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{Once, UnitId, UnitStatus, unit_status},
    money::Money,
};

use super::{Result, database, news, seconds, unreadable};
use crate::order::{Attempt, Booking, Dispute, Licence, Line, Order, Payment, Refund, Task};

fn int(number: u32) -> Result<i32> {
    i32::try_from(number).map_err(unreadable)
}

/// A new order; `false` if it is there already.
pub(super) async fn new(connection: &mut PgConnection, order: &Order, request_sha256: &str) -> Result<bool> {
    let sum = order.sum;
    let inserted = sqlx::query!(
        "INSERT INTO shop.orders (id, account, request_sha256, currency, subtotal, discount, tax, total)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING",
        order.id,
        order.buyer.account,
        request_sha256,
        sum.total.currency.code(),
        sum.subtotal.minor,
        sum.discount.minor,
        sum.tax.minor,
        sum.total.minor
    )
    .execute(&mut *connection)
    .await
    .map_err(database)?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    for (number, line) in (0..).zip(&order.lines) {
        item(connection, order.id, number, line).await?;
    }
    let empty = Order::new(order.id, order.buyer.clone(), order.sum, vec![]);
    changes(connection, &empty, order).await?;
    Ok(true)
}

async fn item(connection: &mut PgConnection, order: Uuid, number: i32, line: &Line) -> Result<()> {
    let grants = serde_json::to_value(&line.grant).map_err(unreadable)?;
    let amounts = line.amounts;
    sqlx::query!(
        "INSERT INTO shop.order_items (id, order_id, line, sku, title, seller, versions, grants, price, quantity, subtotal, discount, tax, total)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        line.item,
        order,
        number,
        line.sku,
        line.title,
        line.seller,
        line.versions,
        grants,
        line.price,
        int(line.quantity)?,
        amounts.subtotal.minor,
        amounts.discount.minor,
        amounts.tax.minor,
        amounts.total.minor
    )
    .execute(&mut *connection)
    .await
    .map_err(database)?;
    sqlx::query!(
        "INSERT INTO shop.units (item_id, unit, order_id) SELECT $1, unit, $2 FROM generate_series(0, $3::integer - 1) AS unit",
        line.item,
        order,
        int(line.quantity)?
    )
    .execute(&mut *connection)
    .await
    .map_err(database)?;
    Ok(())
}

/// What is in `after` and not, or otherwise, in `before`.
fn changed<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, &'a V)> {
    after.iter().filter_map(|(key, is)| {
        let was = before.get(key);
        (was != Some(is)).then_some((key, was, is))
    })
}

/// All that is different. Facts first: what was decided by them refers to them.
pub(super) async fn changes(connection: &mut PgConnection, before: &Order, after: &Order) -> Result<()> {
    let id = after.id;
    if before.buyer.customer != after.buyer.customer {
        sqlx::query!(
            "UPDATE shop.accounts SET stripe_customer = $2 WHERE id = $1",
            after.buyer.account,
            after.buyer.customer
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    // One that is over before the next one is open.
    for (n, was, is) in changed(&before.attempts, &after.attempts) {
        attempt(connection, id, *n, was.is_none(), is).await?;
    }
    for (key, was, is) in changed(&before.payments, &after.payments) {
        payment(connection, id, key, was.is_none(), is).await?;
    }
    for (key, was, is) in changed(&before.refunds, &after.refunds) {
        refund(connection, after, *key, was, is).await?;
    }
    for (key, was, is) in changed(&before.disputes, &after.disputes) {
        dispute(connection, id, key, was.is_none(), is).await?;
    }
    if (&before.accepted, before.closed) != (&after.accepted, after.closed) {
        sqlx::query!(
            "UPDATE shop.orders SET accepted = $2, closed = $3 WHERE id = $1",
            id,
            after.accepted,
            after.closed
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    for (key, was, is) in changed(&before.bookings, &after.bookings) {
        booking(connection, id, key, was.is_none(), is).await?;
    }
    for (unit, was, is) in changed(&before.licences, &after.licences) {
        licence(connection, after, *unit, was, is).await?;
    }
    done(connection, id, before.tasks.difference(&after.tasks)).await?;
    open(connection, id, after.tasks.difference(&before.tasks)).await?;
    revoked(connection, before, after).await?;
    news(connection, id, &after.news).await
}

/// Which licences are revoked, for the list of them.
async fn revoked(connection: &mut PgConnection, before: &Order, after: &Order) -> Result<()> {
    if after.licences.is_empty() {
        return Ok(());
    }
    let of = |order: &Order| {
        let facts = order.facts();
        let licences = order
            .licences
            .iter()
            .filter(|(unit, _)| unit_status(&facts, **unit) == UnitStatus::Revoked);
        licences.map(|(_, licence)| licence.id).collect::<BTreeSet<_>>()
    };
    let (was, is) = (of(before), of(after));
    for licence in was.symmetric_difference(&is) {
        sqlx::query!(
            "INSERT INTO shop.revoked (licence, is_revoked, changed_at) VALUES ($1, $2, clock_timestamp())
            ON CONFLICT (licence) DO UPDATE SET is_revoked = $2, changed_at = clock_timestamp()",
            licence,
            is.contains(licence)
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    Ok(())
}

async fn done(connection: &mut PgConnection, order: Uuid, tasks: impl Iterator<Item = &Task>) -> Result<()> {
    let tasks: Vec<_> = tasks.map(Task::to_string).collect();
    if tasks.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "DELETE FROM shop.tasks WHERE order_id = $1 AND task = ANY($2)",
        order,
        &tasks
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(database)
}

async fn open(connection: &mut PgConnection, order: Uuid, tasks: impl Iterator<Item = &Task>) -> Result<()> {
    let (tasks, waits): (Vec<_>, Vec<_>) = tasks
        .map(|task| (task.to_string(), seconds(task.waits())))
        .unzip();
    if tasks.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "INSERT INTO shop.tasks (order_id, task, next_try_at)
        SELECT $1, task, shop.now() + waits * interval '1 second' FROM unnest($2::text[], $3::float8[]) AS t (task, waits)",
        order,
        &tasks,
        &waits
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(database)
}

async fn attempt(
    connection: &mut PgConnection,
    order: Uuid,
    n: u32,
    is_new: bool,
    attempt: &Attempt,
) -> Result<()> {
    let n = int(n)?;
    let session = attempt.session.as_ref();
    let (id, url) = (
        session.map(|session| session.id.clone()),
        session.map(|session| session.url.clone()),
    );
    let expires_at = session.map(|session| session.expires_at.to_sqlx());
    let (state, funds) = (attempt.said.session as i16, attempt.said.funds as i16);
    let written = if is_new {
        sqlx::query!(
            "INSERT INTO shop.attempts (order_id, n, path, body, key, begun_at, session, url, expires_at, session_state, funds)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            order,
            n,
            attempt.call.path,
            attempt.call.body,
            attempt.call.key,
            attempt.begun_at.to_sqlx() as jiff_sqlx::Timestamp,
            id,
            url,
            expires_at as Option<jiff_sqlx::Timestamp>,
            state,
            funds
        )
        .execute(connection)
        .await
    } else {
        sqlx::query!(
            "UPDATE shop.attempts SET session = $3, url = $4, expires_at = $5, session_state = $6, funds = $7 WHERE order_id = $1 AND n = $2",
            order,
            n,
            id,
            url,
            expires_at as Option<jiff_sqlx::Timestamp>,
            state,
            funds
        )
        .execute(connection)
        .await
    };
    written.map(drop).map_err(database)
}

async fn payment(
    connection: &mut PgConnection,
    order: Uuid,
    id: &str,
    is_new: bool,
    payment: &Payment,
) -> Result<()> {
    let said = &payment.said;
    let contradicted = said.attempt.is_contradicted() || said.received.is_contradicted();
    let of = said.attempt.known().copied().map(int).transpose()?;
    let received = said.received.known();
    let (minor, currency) = (
        received.map(|money| money.minor),
        received.map(|money| money.currency.code()),
    );
    let paid_at = payment.paid_at.map(|at| at.to_sqlx());
    let written = if is_new {
        sqlx::query!(
            "INSERT INTO shop.payments (id, order_id, attempt, state, received, currency, contradicted, method, paid_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            id,
            order,
            of,
            said.state as i16,
            minor,
            currency,
            contradicted,
            payment.method,
            paid_at as Option<jiff_sqlx::Timestamp>
        )
        .execute(connection)
        .await
    } else {
        // What was said first stays, where something else was said later.
        sqlx::query!(
        "UPDATE shop.payments SET attempt = coalesce($3, attempt), state = $4, received = coalesce($5, received),
            currency = coalesce($6, currency), contradicted = $7, method = $8, paid_at = $9
        WHERE id = $1 AND order_id = $2",
            id,
            order,
            of,
            said.state as i16,
            minor,
            currency,
            contradicted,
            payment.method,
            paid_at as Option<jiff_sqlx::Timestamp>
        )
        .execute(connection)
        .await
    };
    written.map(drop).map_err(database)
}

async fn refund(
    connection: &mut PgConnection,
    order: &Order,
    id: Uuid,
    was: Option<&Refund>,
    refund: &Refund,
) -> Result<()> {
    let said = &refund.said;
    let contradicted = said.of.is_contradicted() || said.units.is_contradicted();
    if was.is_none() {
        // What is seen for the first time says what it is of.
        let (payment, Money { minor, currency }) = said
            .of
            .known()
            .ok_or_else(|| unreadable(format!("refund {id} of nothing")))?;
        let call = refund.call.as_ref();
        sqlx::query!(
            "INSERT INTO shop.refunds (id, order_id, payment, amount, currency, stripe_id, named, reason, path, body, key, asked_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            id,
            order.id,
            payment,
            minor,
            currency.code(),
            refund.stripe,
            said.units.known().is_some(),
            refund.reason,
            call.map(|call| call.path.clone()),
            call.map(|call| call.body.clone()),
            call.map(|call| call.key.clone()),
            refund.asked_at.map(|at| at.to_sqlx()) as Option<jiff_sqlx::Timestamp>
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    sqlx::query!(
        "UPDATE shop.refunds SET stripe_id = $3, state = $4, contradicted = $5, named = named OR $6 WHERE id = $1 AND order_id = $2",
        id,
        order.id,
        refund.stripe,
        said.state as i16,
        contradicted,
        said.units.known().is_some()
    )
    .execute(&mut *connection)
    .await
    .map_err(database)?;
    let named = |refund: &Refund| refund.said.units.known().cloned().unwrap_or_default();
    let before = was.map(named).unwrap_or_default();
    for unit in named(refund).difference(&before) {
        let (item, number) = item_of(order, *unit)?;
        sqlx::query!(
            "INSERT INTO shop.refund_units (refund_id, order_id, item_id, unit) VALUES ($1, $2, $3, $4)",
            id,
            order.id,
            item,
            number
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    Ok(())
}

fn item_of(order: &Order, unit: UnitId) -> Result<(Uuid, i32)> {
    let line = order
        .line(unit)
        .ok_or_else(|| unreadable(format!("unit {}/{}", unit.line, unit.unit)))?;
    Ok((line.item, int(unit.unit)?))
}

async fn dispute(
    connection: &mut PgConnection,
    order: Uuid,
    id: &str,
    is_new: bool,
    dispute: &Dispute,
) -> Result<()> {
    let state = dispute.said.state as i16;
    if is_new {
        let Once::Known(payment) = &dispute.said.of else {
            return Err(unreadable(format!("dispute {id} of nothing")));
        };
        sqlx::query!(
            "INSERT INTO shop.disputes (id, order_id, payment, state, amount, currency) VALUES ($1, $2, $3, $4, $5, $6)",
            id,
            order,
            payment,
            state,
            dispute.amount.minor,
            dispute.amount.currency.code()
        )
        .execute(connection)
        .await
        .map(drop)
        .map_err(database)
    } else {
        sqlx::query!(
            "UPDATE shop.disputes SET state = $3, contradicted = $4 WHERE id = $1 AND order_id = $2",
            id,
            order,
            state,
            dispute.said.of.is_contradicted()
        )
        .execute(connection)
        .await
        .map(drop)
        .map_err(database)
    }
}

async fn booking(
    connection: &mut PgConnection,
    order: Uuid,
    key: &str,
    is_new: bool,
    booking: &Booking,
) -> Result<()> {
    let kind = booking.kind.to_string();
    if is_new {
        sqlx::query!(
            "INSERT INTO shop.bookings (key, order_id, kind, request) VALUES ($1, $2, $3, $4)",
            key,
            order,
            kind,
            booking.request
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    if let Some(ack) = &booking.ack {
        sqlx::query!(
            "INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            ack.id,
            key,
            order,
            kind,
            ack.epoch,
            i64::try_from(ack.sequence).map_err(unreadable)?,
            ack.note
        )
        .execute(connection)
        .await
        .map_err(database)?;
    }
    Ok(())
}

async fn licence(
    connection: &mut PgConnection,
    order: &Order,
    unit: UnitId,
    was: Option<&Licence>,
    licence: &Licence,
) -> Result<()> {
    if was.is_none() {
        let (item, number) = item_of(order, unit)?;
        let by = order
            .bookings
            .values()
            .find(|booking| booking.ack.as_ref().is_some_and(|ack| ack.id == licence.ack));
        let kind = by.map(|booking| booking.kind.to_string());
        sqlx::query!(
            "INSERT INTO shop.licences (id, item_id, unit, order_id, finance_ack_id, ack_kind, payload, key, lookup)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            licence.id,
            item,
            number,
            order.id,
            licence.ack,
            kind,
            licence.text,
            licence.key,
            licence.lookup.to_string()
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    if was.is_some_and(|was| (&was.text, &was.key) != (&licence.text, &licence.key)) {
        sqlx::query!(
            "UPDATE shop.licences SET payload = $2, key = $3 WHERE id = $1 AND signature IS NULL",
            licence.id,
            licence.text,
            licence.key
        )
        .execute(&mut *connection)
        .await
        .map_err(database)?;
    }
    if let Some(signature) = &licence.signature {
        sqlx::query!(
            "UPDATE shop.licences SET signature = $2, signed_at = clock_timestamp() WHERE id = $1 AND signature IS NULL",
            licence.id,
            signature.as_slice()
        )
        .execute(connection)
        .await
        .map_err(database)?;
    }
    Ok(())
}
