//! Licences: what one says, the key that a person types, and whether it holds. Pure.

mod document;
mod key;
mod revocations;
#[cfg(test)]
mod tests;
mod verify;

pub use document::{Buyer, Grant, KIND, Licence, Limits, Manifest, Sku, account, id};
pub use key::{BadLicenceKey, LicenceKey};
pub use revocations::{Revocations, entry};
pub use verify::{Asked, BadTrust, Code, Remembered, Trust, Verdict, Warning, verify};
