//! Which licences are revoked: a signed list that grows old. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    note::{self, BadNote, NamedKey},
    sha256,
};

/// A revocation list. It does not say whose licences it lists, nor how many there are: entries are hashes with a salt of the list's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocations {
    /// Grows by one from list to list: who has seen one takes no earlier one.
    pub sequence: u64,
    /// When it was made, in whole seconds.
    pub issued_at: Timestamp,
    /// By when there is another one.
    pub expires: Timestamp,
    /// At least 16 random bytes, in hex digits.
    pub salt: String,
    /// Entries ([`entry`]), sorted, each once.
    pub revoked: Vec<String>,
}

/// How a list with this salt names a licence: SHA-256, in hex digits.
pub fn entry(salt: &str, licence: Uuid) -> String {
    sha256(format!("{salt}\n{licence}"))
}

impl Revocations {
    /// What the note of one says that it is.
    pub const KIND: &str = "vitrine.dev/revocations/v1";

    /// A list of these licences.
    pub fn new(
        sequence: u64,
        issued_at: Timestamp,
        expires: Timestamp,
        salt: String,
        revoked: impl IntoIterator<Item = Uuid>,
    ) -> Self {
        let mut revoked: Vec<_> = revoked.into_iter().map(|id| entry(&salt, id)).collect();
        revoked.sort_unstable();
        revoked.dedup();
        Self {
            sequence,
            issued_at,
            expires,
            salt,
            revoked,
        }
    }

    /// Opens a list.
    ///
    /// # Errors
    /// If it is not signed by one of these keys, or its entries are not in order.
    pub fn open(note: &[u8], keys: &[NamedKey]) -> Result<Self, BadNote> {
        let list: Self = note::open(Self::KIND, note, keys)?;
        if list.revoked.is_sorted_by(|a, b| a < b) {
            Ok(list)
        } else {
            Err(BadNote::Malformed("its entries are not sorted".to_owned()))
        }
    }

    /// Whether a licence is in it.
    pub fn has(&self, licence: Uuid) -> bool {
        self.revoked.binary_search(&entry(&self.salt, licence)).is_ok()
    }
}
