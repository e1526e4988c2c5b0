//! What a seller is told of a period: the same bytes whenever it is asked for. Reads Finance's database.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

/// What a seller has earned, by currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// Whose.
    pub seller: String,
    /// From this moment …
    pub from: Timestamp,
    /// … until before this one.
    pub until: Timestamp,
    /// Sums, by currency.
    pub totals: Vec<Total>,
    /// What they are made of, in the ledger's order.
    pub lines: Vec<Line>,
}

/// What has come and gone in one currency, minor units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Total {
    /// ISO 4217.
    pub currency: String,
    /// What became theirs.
    pub earned: i64,
    /// What went back to buyers.
    pub returned: i64,
    /// What is left.
    pub due: i64,
}

/// One movement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// The ledger's entry.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// Of which order.
    pub order: Uuid,
    /// ISO 4217.
    pub currency: String,
    /// Theirs if positive, gone back if negative. Minor units.
    pub minor: i64,
}

/// A seller's statement of a period that is over.
///
/// # Errors
/// What the database says.
pub async fn statement(
    pool: &PgPool,
    seller: &str,
    from: Timestamp,
    until: Timestamp,
) -> Result<Statement, sqlx::Error> {
    let (earned, returned) = (format!("payable:{seller}"), format!("returned:payable:{seller}"));
    let rows = sqlx::query!(
        "SELECT e.sequence, e.at AS \"at: jiff_sqlx::Timestamp\", e.order_id, p.currency, p.account, -p.minor AS \"minor!\"
        FROM ledger.postings p JOIN ledger.entries e USING (sequence)
        WHERE p.account IN ($1, $2) AND e.at >= $3 AND e.at < $4 ORDER BY e.sequence, p.line",
        earned,
        returned,
        from.to_sqlx() as jiff_sqlx::Timestamp,
        until.to_sqlx() as jiff_sqlx::Timestamp
    )
    .fetch_all(pool)
    .await?;
    let mut totals: std::collections::BTreeMap<String, (i64, i64)> = std::collections::BTreeMap::new();
    let mut lines = vec![];
    for row in rows {
        let total = totals.entry(row.currency.clone()).or_default();
        if row.account == earned {
            total.0 += row.minor;
        } else {
            total.1 -= row.minor;
        }
        lines.push(Line {
            sequence: row.sequence.unsigned_abs(),
            at: row.at.to_jiff(),
            order: row.order_id,
            currency: row.currency,
            minor: row.minor,
        });
    }
    let totals = totals.into_iter().map(|(currency, (earned, returned))| Total {
        currency,
        earned,
        returned,
        due: earned - returned,
    });
    Ok(Statement {
        seller: seller.to_owned(),
        from,
        until,
        totals: totals.collect(),
        lines,
    })
}
