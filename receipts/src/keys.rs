//! The public keys by which receipts are judged. Pure.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, VerifyingKey, pkcs8::DecodePublicKey};
use serde::{Deserialize, Serialize};

use crate::signer::{Signer, key_id};

/// A public key as it is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedKey {
    /// Its id.
    pub id: String,
    /// PEM (SPKI).
    pub pem: String,
}

impl PublishedKey {
    /// The public half of a signer.
    pub fn of(signer: &dyn Signer) -> Self {
        Self {
            id: signer.key_id().to_owned(),
            pem: signer.public_key().to_owned(),
        }
    }
}

/// Public keys by id.
#[derive(Clone, Debug, Default)]
pub struct Keys(BTreeMap<String, VerifyingKey>);

impl Keys {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key is known.
    pub fn knows(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Whether a key has signed these bytes.
    pub fn verify(&self, id: &str, bytes: &[u8], signature: &[u8]) -> bool {
        let (Some(key), Ok(signature)) = (self.0.get(id), Signature::from_slice(signature)) else {
            return false;
        };
        key.verify_strict(bytes, &signature).is_ok()
    }
}

impl FromIterator<PublishedKey> for Keys {
    /// An entry that is no key, or has another key's id, is left out.
    fn from_iter<I: IntoIterator<Item = PublishedKey>>(published: I) -> Self {
        let keys = published.into_iter().filter_map(|entry| {
            let key = VerifyingKey::from_public_key_pem(entry.pem.trim()).ok()?;
            (key_id(&key) == entry.id).then_some((entry.id, key))
        });
        Self(keys.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::SoftwareSigner;

    #[test]
    fn a_key_under_another_keys_id_is_not_taken() {
        let (one, other) = (SoftwareSigner::generate(), SoftwareSigner::generate());
        let passed_off = PublishedKey {
            id: one.key_id().to_owned(),
            pem: other.public_key().to_owned(),
        };
        let broken = PublishedKey {
            id: "no".into(),
            pem: "key".into(),
        };
        assert!(Keys::from_iter([passed_off, broken]).is_empty());
        assert!(Keys::from_iter([PublishedKey::of(&one)]).knows(one.key_id()));
    }
}
