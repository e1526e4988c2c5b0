//! The ledger: entries are appended by one writer, many in a transaction, each chained to the one before and signed. Writes Finance's database.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::{PgConnection, PgPool, migrate::Migrator};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;
use vitrine_commerce::{
    finance::{self, EntryRequest, Head, Receipt},
    sha256,
};
use vitrine_service::Seal;

use crate::postings::{BadEntry, Posting, postings};

/// The schema, in steps.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// In one transaction at most: a hundred milliseconds of work.
const AT_ONCE: usize = 256;
/// Waiting for the writer at most; whoever comes then is told so.
const WAITING: usize = 4_096;

/// Why an entry was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// It cannot be read.
    #[error("the entry cannot be read: {0}")]
    Malformed(String),
    /// It is not sound in itself.
    #[error(transparent)]
    Bad(#[from] BadEntry),
    /// There is another one by its key.
    #[error("entry {0} is there with other content")]
    Differs(String),
    /// It reverses one that is not there.
    #[error("there is no entry {0}, which this one follows")]
    NoEntry(String),
    /// Too many wait.
    #[error("too many entries wait to be written")]
    Busy,
    /// Whether it was written is not known: ask for it by its key.
    #[error("the ledger did not answer: {0}")]
    Unknown(String),
}

type Result<T> = std::result::Result<T, LedgerError>;

fn database(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Unknown(error.to_string())
}

/// An entry that somebody asks for, in the bytes in which it was asked for.
struct Asked {
    bytes: Vec<u8>,
    request: EntryRequest,
    answer: oneshot::Sender<Result<Vec<u8>>>,
}

/// A ledger, as those use it who ask for entries.
#[derive(Clone)]
pub struct Ledger {
    pool: PgPool,
    seal: Seal,
    queue: mpsc::Sender<Asked>,
}

impl Ledger {
    /// A ledger in this database, and the writer that has to run for it.
    pub fn new(pool: PgPool, seal: Seal) -> (Self, Writer) {
        let (queue, asked) = mpsc::channel(WAITING);
        let writer = Writer {
            pool: pool.clone(),
            seal: seal.clone(),
            asked,
        };
        (Self { pool, seal, queue }, writer)
    }

    /// Writes an entry; its receipt, also if it is there already.
    ///
    /// # Errors
    /// If it is refused, or nobody knows whether it was written.
    pub async fn post(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let request: EntryRequest =
            serde_json::from_slice(&bytes).map_err(|error| LedgerError::Malformed(error.to_string()))?;
        // By any policy: what is not sound is found out before it waits.
        postings(&request, 0)?;
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            bytes,
            request,
            answer,
        };
        self.queue.try_send(asked).map_err(|_| LedgerError::Busy)?;
        answered
            .await
            .map_err(|_| LedgerError::Unknown("the writer has ended".to_owned()))?
    }

    /// The receipt of an entry, by its key.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn find(&self, key: &str) -> Result<Option<Vec<u8>>> {
        sqlx::query_scalar!("SELECT note FROM ledger.entries WHERE key = $1", key)
            .fetch_optional(&self.pool)
            .await
            .map_err(database)
    }

    /// Receipts after one, so many at most, in their order.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn after(&self, sequence: u64, most: i64) -> Result<Vec<Vec<u8>>> {
        let sequence = i64::try_from(sequence).unwrap_or(i64::MAX);
        sqlx::query_scalar!(
            "SELECT note FROM ledger.entries WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            sequence,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)
    }

    /// Its newest entry, signed: whoever holds a later receipt knows that something was lost.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn head(&self) -> Result<Vec<u8>> {
        let row = sqlx::query!("SELECT epoch, sequence, root FROM ledger.head")
            .fetch_one(&self.pool)
            .await
            .map_err(database)?;
        let head = Head {
            epoch: row.epoch,
            sequence: row.sequence.unsigned_abs(),
            root: row.root,
            at: Timestamp::now(),
        };
        let (_, note) = self.seal.note(Head::KIND, &head).map_err(database)?;
        Ok(note)
    }
}

/// Writes entries. There may be others elsewhere: whoever has the head's lock writes.
pub struct Writer {
    pool: PgPool,
    seal: Seal,
    asked: mpsc::Receiver<Asked>,
}

/// An entry as it is in the ledger.
#[derive(Clone)]
struct Known {
    request_sha256: String,
    note: Vec<u8>,
    fee_policy: Option<i32>,
}

/// One that is about to be written.
pub(crate) struct New<'a> {
    /// What asked for it.
    pub(crate) bytes: &'a [u8],
    /// The key of what it reverses.
    pub(crate) reverses: Option<&'a str>,
    pub(crate) receipt: Receipt,
    /// The ledger's, with it.
    pub(crate) root: String,
    pub(crate) note: Vec<u8>,
    pub(crate) fee_policy: i32,
    pub(crate) postings: Vec<Posting>,
}

impl Writer {
    /// Writes until nobody can ask any more.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(AT_ONCE);
        while self.asked.recv_many(&mut batch, AT_ONCE).await > 0 {
            let answers = self.write(&batch).await;
            if let Err(error) = &answers {
                tracing::warn!(%error, entries = batch.len(), "entries were not written");
            }
            for (place, asked) in batch.drain(..).enumerate() {
                let answer = match &answers {
                    Ok(answers) => answers[place].clone(),
                    Err(error) => Err(error.clone()),
                };
                // Whoever does not wait any more asks again.
                let _ = asked.answer.send(answer);
            }
        }
    }

    async fn write(&self, batch: &[Asked]) -> Result<Vec<Result<Vec<u8>>>> {
        let mut transaction = self.pool.begin().await.map_err(database)?;
        let head = sqlx::query!("SELECT epoch, sequence, root FROM ledger.head FOR UPDATE")
            .fetch_one(&mut *transaction)
            .await
            .map_err(database)?;
        let policy = sqlx::query!("SELECT version, rate_ppm FROM ledger.fee_policies WHERE valid_from <= now() ORDER BY version DESC LIMIT 1")
            .fetch_one(&mut *transaction)
            .await
            .map_err(database)?;
        let mut rates = BTreeMap::from([(policy.version, rate(policy.rate_ppm))]);
        let mut known = known(&mut transaction, batch).await?;
        for version in known
            .values()
            .filter_map(|known| known.fee_policy)
            .collect::<BTreeSet<_>>()
        {
            if let std::collections::btree_map::Entry::Vacant(entry) = rates.entry(version) {
                let found = sqlx::query_scalar!(
                    "SELECT rate_ppm FROM ledger.fee_policies WHERE version = $1",
                    version
                )
                .fetch_one(&mut *transaction)
                .await
                .map_err(database)?;
                entry.insert(rate(found));
            }
        }
        let mut at = Place {
            epoch: head.epoch,
            sequence: head.sequence.unsigned_abs(),
            root: head.root,
            policy: policy.version,
        };
        let (mut answers, mut new) = (vec![], vec![]);
        for asked in batch {
            let answer = self.append(asked, &mut known, &rates, &mut at);
            answers.push(answer.map(|(note, entry)| {
                new.extend(entry);
                note
            }));
        }
        insert(&mut transaction, &new).await.map_err(database)?;
        if !new.is_empty() {
            let sequence = i64::try_from(at.sequence).map_err(database)?;
            sqlx::query!(
                "UPDATE ledger.head SET sequence = $1, root = $2",
                sequence,
                at.root
            )
            .execute(&mut *transaction)
            .await
            .map_err(database)?;
        }
        transaction.commit().await.map_err(database)?;
        Ok(answers)
    }

    /// The receipt of an entry, and the entry itself unless it is there.
    fn append<'a>(
        &self,
        asked: &'a Asked,
        known: &mut BTreeMap<String, Known>,
        rates: &BTreeMap<i32, u32>,
        at: &mut Place,
    ) -> Result<(Vec<u8>, Option<New<'a>>)> {
        let (request, digest) = (&asked.request, sha256(&asked.bytes));
        if let Some(known) = known.get(&request.key) {
            return if known.request_sha256 == digest {
                Ok((known.note.clone(), None))
            } else {
                Err(LedgerError::Differs(request.key.clone()))
            };
        }
        let fee_policy = match &request.reverses {
            None => at.policy,
            // By the policy by which it was reserved: what a new one says is for what is sold later.
            Some(key) => {
                let reversed = known.get(key).ok_or_else(|| LedgerError::NoEntry(key.clone()))?;
                reversed.fee_policy.unwrap_or(at.policy)
            }
        };
        let rate = rates
            .get(&fee_policy)
            .copied()
            .ok_or_else(|| database(format!("no fee policy {fee_policy}")))?;
        let postings = postings(request, rate)?;
        let receipt = Receipt {
            epoch: at.epoch,
            sequence: at.sequence + 1,
            previous_root: at.root.clone(),
            key: request.key.clone(),
            request_sha256: digest.clone(),
            kind: request.kind,
            order: request.order,
            amount: request.amount,
            at: Timestamp::now(),
        };
        let (text, note) = self.seal.note(finance::KIND, &receipt).map_err(database)?;
        at.sequence += 1;
        at.root = finance::next_root(&at.root, &text);
        let entry = Known {
            request_sha256: digest,
            note: note.clone(),
            fee_policy: Some(fee_policy),
        };
        known.insert(request.key.clone(), entry);
        let new = New {
            bytes: &asked.bytes,
            reverses: request.reverses.as_deref(),
            receipt,
            root: at.root.clone(),
            note: note.clone(),
            fee_policy,
            postings,
        };
        Ok((note, Some(new)))
    }
}

/// Where the ledger stands.
struct Place {
    epoch: Uuid,
    sequence: u64,
    root: String,
    policy: i32,
}

pub(crate) fn rate(rate_ppm: i32) -> u32 {
    // The schema has it between nothing and a million.
    rate_ppm.unsigned_abs()
}

/// Of what is asked for and of what that reverses, what is there.
async fn known(connection: &mut PgConnection, batch: &[Asked]) -> Result<BTreeMap<String, Known>> {
    let named = batch
        .iter()
        .flat_map(|asked| [Some(&asked.request.key), asked.request.reverses.as_ref()]);
    let keys: Vec<_> = named
        .flatten()
        .cloned()
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let rows = sqlx::query!(
        "SELECT key, request_sha256, note, fee_policy FROM ledger.entries WHERE key = ANY($1)",
        &keys
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let known = rows.into_iter().map(|row| {
        let known = Known {
            request_sha256: row.request_sha256,
            note: row.note,
            fee_policy: row.fee_policy,
        };
        (row.key, known)
    });
    Ok(known.collect())
}

pub(crate) async fn insert(
    connection: &mut PgConnection,
    new: &[New<'_>],
) -> std::result::Result<(), sqlx::Error> {
    for entry in new {
        let receipt = &entry.receipt;
        let sequence = i64::try_from(receipt.sequence).unwrap_or(i64::MAX);
        sqlx::query!(
            "INSERT INTO ledger.entries (sequence, key, kind, order_id, amount, currency, reverses, fee_policy, request, request_sha256, note, root, at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            sequence,
            receipt.key,
            receipt.kind.to_string(),
            receipt.order,
            receipt.amount.minor,
            receipt.amount.currency.code(),
            entry.reverses,
            entry.fee_policy,
            entry.bytes,
            receipt.request_sha256,
            entry.note,
            entry.root,
            receipt.at.to_sqlx() as jiff_sqlx::Timestamp
        )
        .execute(&mut *connection)
        .await?;
        let lines: Vec<_> = (0_i32..).take(entry.postings.len()).collect();
        let accounts: Vec<_> = entry
            .postings
            .iter()
            .map(|posting| posting.account.clone())
            .collect();
        let currencies: Vec<_> = entry
            .postings
            .iter()
            .map(|posting| posting.amount.currency.code().to_owned())
            .collect();
        let minors: Vec<_> = entry
            .postings
            .iter()
            .map(|posting| posting.amount.minor)
            .collect();
        sqlx::query!(
            "INSERT INTO ledger.postings (sequence, line, account, currency, minor)
            SELECT $1, * FROM UNNEST($2::integer[], $3::text[], $4::text[], $5::bigint[])",
            sequence,
            &lines,
            &accounts,
            &currencies,
            &minors
        )
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
