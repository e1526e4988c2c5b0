//! Receipts of previews: what they state, how they are signed, who can check them. Pure.
//!
//! A receipt is an in-toto Statement (about the image that ran) in a DSSE envelope, so that whoever gets one needs nothing of
//! Vitrine's to read it or to check it (docs/adr/0007).

mod envelope;
mod keys;
pub mod names;
mod statement;

pub use envelope::{BadReceipt, Envelope, MEDIA_TYPE, PAYLOAD_TYPE, Signature};
pub use keys::Keys;
pub use statement::{PREDICATE_TYPE, Predicate, ResourceDescriptor, STATEMENT_TYPE, Statement, statement};
pub use vitrine_keys::{BadKey, Refused, Signer, SoftwareSigner};
