//! What the database has of a licence or a revocation list. Reads the shop's database, by a role that writes nothing.

use sqlx::PgPool;
use uuid::Uuid;
use vitrine_commerce::money::Money;

use crate::judge::Row;

/// Why something cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The database does not answer.
    #[error("the database did not answer: {0}")]
    Database(#[from] sqlx::Error),
    /// It holds what this version cannot read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(&'static str, String),
}

/// A licence that is to be signed.
///
/// # Errors
/// If it cannot be read.
pub async fn licence(pool: &PgPool, id: Uuid) -> Result<Option<Row>, RowError> {
    let row = sqlx::query!(
        "SELECT l.item_id, l.unit, l.order_id, l.payload, l.key, o.total, o.currency, a.issuer, a.subject, i.sku, i.versions, i.grants, f.note, b.request
        FROM shop.licences l
        JOIN shop.orders o ON o.id = l.order_id
        JOIN shop.accounts a ON a.id = o.account
        JOIN shop.order_items i ON i.id = l.item_id
        JOIN shop.finance_acks f ON f.id = l.finance_ack_id
        JOIN shop.bookings b ON b.key = f.key
        WHERE l.id = $1",
        id
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let unreadable = |what| move |error: String| RowError::Unreadable(what, error);
    let currency = row
        .currency
        .parse()
        .map_err(|error: vitrine_commerce::money::MoneyError| error.to_string());
    Ok(Some(Row {
        id,
        item: row.item_id,
        unit: row.unit.unsigned_abs(),
        order: row.order_id,
        total: Money::new(row.total, currency.map_err(unreadable("a currency"))?),
        buyer: (row.issuer, row.subject),
        sku: (row.sku, row.versions),
        grant: serde_json::from_value(row.grants)
            .map_err(|error| unreadable("what a licence says")(error.to_string()))?,
        request: row.request,
        receipt: row.note,
        text: row.payload,
        key: row.key,
    }))
}

/// A revocation list that is to be signed: its text, and by which key.
///
/// # Errors
/// If the database does not answer.
pub async fn revocations(pool: &PgPool, sequence: i64) -> Result<Option<(Vec<u8>, String)>, RowError> {
    let row = sqlx::query!(
        "SELECT payload, key FROM shop.revocation_lists WHERE sequence = $1",
        sequence
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| (row.payload, row.key)))
}
