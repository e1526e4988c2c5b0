//! What was acknowledged by Finance, in the order of its ledger; and whether that ledger is whole.

use std::collections::BTreeSet;

use sqlx::PgPool;
use vitrine_commerce::finance::Kept;

use super::{Result, Shop, database, unreadable};

/// What stands in a shop's database of Finance's books.
#[derive(Clone, Debug)]
pub struct Books {
    pool: PgPool,
}

/// A receipt that is held here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which entry of the ledger.
    pub sequence: u64,
    /// The entry's key.
    pub key: String,
    /// What was asked for, in the bytes that were sent.
    pub request: Vec<u8>,
    /// The receipt.
    pub note: Vec<u8>,
}

impl From<Held> for Kept {
    fn from(held: Held) -> Self {
        // JSON, and a note: both are text.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            request: text(&held.request),
            receipt: text(&held.note),
        }
    }
}

impl Shop {
    /// What stands in it of Finance's books.
    pub fn books(&self) -> Books {
        Books::new(self.pool.clone())
    }
}

fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

impl Books {
    /// Those in this database.
    pub const fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Receipts after one, the first of them first, so many at most.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn held_after(&self, sequence: u64, most: i64) -> Result<Vec<Held>> {
        let rows = sqlx::query!(
            "SELECT sequence, a.key, request, note FROM shop.finance_acks a JOIN shop.bookings b ON b.key = a.key
            WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            number(sequence),
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        let held = rows.into_iter().map(|row| {
            Ok(Held {
                sequence: u64::try_from(row.sequence).map_err(unreadable)?,
                key: row.key,
                request: row.request,
                note: row.note,
            })
        });
        held.collect()
    }

    /// The newest receipt: its number, and itself.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn last_held(&self) -> Result<Option<(u64, Vec<u8>)>> {
        let row = sqlx::query!("SELECT sequence, note FROM shop.finance_acks ORDER BY sequence DESC LIMIT 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(database)?;
        row.map(|row| Ok((u64::try_from(row.sequence).map_err(unreadable)?, row.note)))
            .transpose()
    }

    /// Which of these entries were asked for, acknowledged or not.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn asked_for(&self, keys: &[String]) -> Result<BTreeSet<String>> {
        let keys = sqlx::query_scalar!("SELECT key FROM shop.bookings WHERE key = ANY($1)", keys)
            .fetch_all(&self.pool)
            .await
            .map_err(database)?;
        Ok(keys.into_iter().collect())
    }

    /// How many entries wait for Finance.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn waiting_for_finance(&self) -> Result<i64> {
        sqlx::query_scalar!(
            "SELECT count(*) AS \"count!\" FROM shop.bookings b WHERE NOT EXISTS (SELECT FROM shop.finance_acks WHERE key = b.key)"
        )
        .fetch_one(&self.pool)
        .await
        .map_err(database)
    }

    /// Payments that have succeeded and of which Finance was never told, so many at most. None: the edge that sees one asks for its entry.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn never_booked(&self, most: i64) -> Result<Vec<String>> {
        sqlx::query_scalar!(
            "SELECT id FROM shop.payments p WHERE state = 3 AND received IS NOT NULL AND NOT contradicted
                AND NOT EXISTS (SELECT FROM shop.bookings WHERE key = 'deposit:' || p.id)
            ORDER BY id LIMIT $1",
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)
    }

    /// Writes down whether the ledger is whole, or what is wrong with it. While it is not, no entry is asked for and no licence signed.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn ledger_stands(&self, wrong: Option<&str>) -> Result<()> {
        sqlx::query!(
            "UPDATE shop.ledger SET is_whole = $1::text IS NULL, why = $1, since = shop.now() WHERE why IS DISTINCT FROM $1",
            wrong
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database)
    }
}
