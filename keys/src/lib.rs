//! Keys that sign: one trait, wherever the key is. Pure but for the randomness of a development key.

mod signer;

pub use signer::{BadKey, Refused, Signer, SoftwareSigner, key_id};
