//! Gives a ledger back what it has lost, from receipts that others keep: restored from an old copy, it goes on where it was. Writes Finance's database.

use std::io::{self, BufRead};

use jiff_sqlx::ToSqlx;
use sqlx::{PgConnection, PgPool};
use vitrine_commerce::{
    finance::{self, BadReceipt, Kept},
    note::{self, NamedKey},
};

use crate::{
    ledger::{self, New, rate},
    postings::{BadEntry, postings},
};

/// In one transaction.
const AT_ONCE: usize = 1_000;

/// Why a ledger was not given back an entry. Those before it were.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Nothing to read.
    #[error("failed to read line {0}: {1}")]
    Read(u64, io::Error),
    /// A line is no kept receipt.
    #[error("line {0} is no receipt as `vitrine-api receipts` writes it: {1}")]
    Line(u64, serde_json::Error),
    /// It is not ours, or of something else.
    #[error("line {0}: {1}")]
    Receipt(u64, BadReceipt),
    /// It cannot be posted.
    #[error("line {0}: {1}")]
    Entry(u64, BadEntry),
    /// The ledger has gone on without it.
    #[error(
        "line {0}: the ledger has another entry {1}; it has gone on after it had lost something, and a person has to decide"
    )]
    Another(u64, u64),
    /// Entries are missing before it.
    #[error("line {0}: entry {1} does not follow entry {2} of the ledger")]
    Gap(u64, u64, u64),
    /// What it reverses is not there, or the fee policy is not by which it was reckoned.
    #[error("line {0}: there is no {1}")]
    Missing(u64, String),
    /// The database.
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
}

/// Reads kept receipts, one a line, in the ledger's order; how many of them the ledger did not have. What it has is compared.
///
/// # Errors
/// At the first one that does not fit.
pub async fn replay(pool: &PgPool, key: &NamedKey, kept: impl BufRead) -> Result<u64, ReplayError> {
    let (mut given_back, mut lines) = (0, (1_u64..).zip(kept.lines()).peekable());
    while lines.peek().is_some() {
        let mut transaction = pool.begin().await?;
        for (line, text) in lines.by_ref().take(AT_ONCE) {
            let text = text.map_err(|error| ReplayError::Read(line, error))?;
            let kept = serde_json::from_str(&text).map_err(|error| ReplayError::Line(line, error))?;
            given_back += u64::from(one(&mut transaction, key, line, &kept).await?);
        }
        transaction.commit().await?;
    }
    Ok(given_back)
}

async fn one(
    connection: &mut PgConnection,
    key: &NamedKey,
    line: u64,
    kept: &Kept,
) -> Result<bool, ReplayError> {
    let receipt_note = kept.receipt.as_bytes();
    let (receipt, request) =
        finance::of_request(receipt_note, std::slice::from_ref(key), kept.request.as_bytes())
            .map_err(|bad| ReplayError::Receipt(line, bad))?;
    let head = sqlx::query!("SELECT epoch, sequence, root FROM ledger.head FOR UPDATE")
        .fetch_one(&mut *connection)
        .await?;
    let at = head.sequence.unsigned_abs();
    if receipt.sequence <= at {
        let there = sqlx::query_scalar!(
            "SELECT note FROM ledger.entries WHERE sequence = $1",
            signed(receipt.sequence)
        )
        .fetch_optional(connection)
        .await?;
        return if there.as_deref() == Some(receipt_note) {
            Ok(false)
        } else {
            Err(ReplayError::Another(line, receipt.sequence))
        };
    }
    let is_same_ledger = at == 0 || head.epoch == receipt.epoch;
    if receipt.sequence != at + 1 || receipt.previous_root != head.root || !is_same_ledger {
        return Err(ReplayError::Gap(line, receipt.sequence, at));
    }
    // As the writer has reckoned it: by the policy of what it reverses, or the one that was valid then.
    let policy = match &request.reverses {
        Some(reversed) => {
            sqlx::query_scalar!("SELECT fee_policy FROM ledger.entries WHERE key = $1", reversed)
                .fetch_optional(&mut *connection)
                .await?
                .ok_or_else(|| ReplayError::Missing(line, format!("entry {reversed}")))?
        }
        None => None,
    };
    let policy = sqlx::query!(
        "SELECT version, rate_ppm FROM ledger.fee_policies
        WHERE CASE WHEN $1::integer IS NULL THEN valid_from <= $2 ELSE version = $1 END ORDER BY version DESC LIMIT 1",
        policy,
        receipt.at.to_sqlx() as jiff_sqlx::Timestamp
    )
    .fetch_optional(&mut *connection)
    .await?
    .ok_or_else(|| ReplayError::Missing(line, format!("fee policy of {}", receipt.at)))?;
    let postings = postings(&request, rate(policy.rate_ppm)).map_err(|bad| ReplayError::Entry(line, bad))?;
    let text = note::text(finance::KIND, &receipt).map_err(|error| ReplayError::Line(line, error))?;
    let root = finance::next_root(&receipt.previous_root, &text);
    let (epoch, sequence) = (receipt.epoch, signed(receipt.sequence));
    let new = New {
        bytes: kept.request.as_bytes(),
        reverses: request.reverses.as_deref(),
        root: root.clone(),
        note: receipt_note.to_vec(),
        fee_policy: policy.version,
        receipt,
        postings,
    };
    ledger::insert(connection, &[new]).await?;
    sqlx::query!(
        "UPDATE ledger.head SET epoch = $1, sequence = $2, root = $3",
        epoch,
        sequence,
        root
    )
    .execute(connection)
    .await?;
    Ok(true)
}

fn signed(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
