//! Finance's books beside ours: whether its ledger still has what it has acknowledged, and in what the two differ. Asks Finance, reads and writes
//! the store.

mod comparison;

use vitrine_commerce::note::NamedKey;

pub use comparison::{Difference, Report, Wrong};

use crate::{
    outside::finance::FinanceApi,
    seams::{Outside, StoreError},
    store::postgres::Books,
};

/// Receipts at once: what Finance answers at most.
pub const PAGE: u32 = 1_000;

/// Why nothing could be said of the books.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BooksError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Finance.
    #[error(transparent)]
    Finance(#[from] Outside),
}

/// Whether Finance still has the newest receipt that is held here: by that, all before it too. Otherwise nothing is booked and licensed until it
/// has. What is wrong, if something is.
///
/// # Errors
/// If somebody does not answer: then everything stays as it is.
pub async fn look(books: &Books, finance: &FinanceApi) -> Result<Option<String>, BooksError> {
    let wrong = match books.last_held().await? {
        None => None,
        Some((sequence, held)) => {
            let there = finance.receipts(sequence.saturating_sub(1), 1).await?;
            match there.first() {
                Some(there) if there.as_bytes() == held => None,
                Some(_) => Some(format!(
                    "its entry {sequence} is another one than it has acknowledged: this is not the ledger that it was"
                )),
                None => Some(format!(
                    "it has no entry {sequence}, which it has acknowledged: it has lost what is newest; `vitrine-finance replay` gives it back"
                )),
            }
        }
    };
    books.ledger_stands(wrong.as_deref()).await?;
    Ok(wrong)
}

/// Compares all of Finance's receipts with ours.
///
/// # Errors
/// If somebody does not answer.
pub async fn compare(books: &Books, finance: &FinanceApi, keys: &[NamedKey]) -> Result<Report, BooksError> {
    let mut report = Report::default();
    let last = books.last_held().await?.map_or(0, |(sequence, _)| sequence);
    let mut after = 0;
    loop {
        let until = after + u64::from(PAGE);
        // Numbers have no gaps: these are the same entries on both sides.
        let theirs = finance.receipts(after, PAGE).await?;
        let mut held = books.held_after(after, i64::from(PAGE)).await?;
        held.retain(|held| held.sequence <= until);
        let unknown = report.window(after, &theirs, &held, keys);
        let named: Vec<_> = unknown.iter().map(|(_, key)| key.clone()).collect();
        report.unknown(&unknown, &books.asked_for(&named).await?);
        if theirs.len() < PAGE as usize && until >= last {
            break;
        }
        after = until;
    }
    report.waiting = books.waiting_for_finance().await?;
    report.never_booked(&books.never_booked(i64::from(PAGE)).await?);
    Ok(report)
}
