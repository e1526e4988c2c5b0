//! The shop's rules: what things cost, what is known of an order and what that amounts to, what Finance signs, and what a licence says and
//! whether it holds. Pure: no clock, no network, no randomness of its own; knows nobody.

pub mod facts;
pub mod finance;
pub mod licence;
pub mod money;
pub mod note;
pub mod pan;
pub mod price;
pub mod split;

use sha2::{Digest, Sha256};

/// SHA-256 in hex digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}
