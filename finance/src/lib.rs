//! Finance: the shop's books, a process of its own with its own database and key. Whoever wants another Finance implements the same HTTP
//! contract (docs/finance.md).
//!
//! [`postings`] says what an entry does to the accounts (pure); [`ledger`] appends entries and signs their receipts, [`replay`] gives back those
//! that were lost; [`http`] is the contract.

pub mod http;
pub mod ledger;
pub mod postings;
pub mod replay;
pub mod statement;
