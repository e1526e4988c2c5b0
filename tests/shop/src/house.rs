//! A shop with its keys: what Finance and the signer would say.

use ed25519_dalek::{Signer, SigningKey};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;
use vitrine_api::edges::House;
use vitrine_commerce::{
    finance::{self, EntryRequest, Receipt},
    note::{self, NamedKey},
    sha256,
};

/// A key under its name.
pub struct Pair {
    secret: SigningKey,
    /// Its public half.
    pub key: NamedKey,
}

impl Pair {
    /// One of so many.
    pub fn new(name: &str, seed: u8) -> Self {
        let secret = SigningKey::from_bytes(&[seed; 32]);
        let key = NamedKey::new(name, secret.verifying_key()).unwrap();
        Self { secret, key }
    }

    /// Signs a text.
    pub fn sign(&self, text: &[u8]) -> [u8; 64] {
        self.secret.sign(text).to_bytes()
    }

    /// A document's note.
    pub fn note<T: Serialize>(&self, kind: &str, document: &T) -> Vec<u8> {
        let text = note::text(kind, document).unwrap();
        note::signed(&text, &self.key, &self.sign(&text))
    }
}

/// The keys of a shop.
pub struct Keys {
    /// Finance's.
    pub finance: Pair,
    /// For licences.
    pub licences: Pair,
    /// For revocation lists.
    pub revocations: Pair,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            finance: Pair::new("shop.example/finance", 1),
            licences: Pair::new("shop.example/licence", 2),
            revocations: Pair::new("shop.example/revocations", 3),
        }
    }
}

impl Keys {
    /// Those of somebody who says that he is this shop.
    pub fn strangers() -> Self {
        Self {
            finance: Pair::new("shop.example/finance", 11),
            ..Self::default()
        }
    }

    /// The shop that they are of.
    pub fn house(&self) -> House {
        House {
            storefront: "https://shop.example".to_owned(),
            licence_key: self.licences.key.clone(),
            finance_keys: vec![self.finance.key.clone()],
            revocations: "https://shop.example/revocations".to_owned(),
            staleness_seconds: 604_800,
            grace_seconds: 259_200,
        }
    }

    /// What Finance says of an entry that it has written as so manieth.
    pub fn receipt(&self, request: &[u8], sequence: u64) -> Vec<u8> {
        let asked: EntryRequest = serde_json::from_slice(request).unwrap();
        let receipt = Receipt {
            epoch: Uuid::from_u128(3),
            sequence,
            previous_root: "0".repeat(64),
            key: asked.key,
            request_sha256: sha256(request),
            kind: asked.kind,
            order: asked.order,
            amount: asked.amount,
            at: Timestamp::UNIX_EPOCH,
        };
        self.finance.note(finance::KIND, &receipt)
    }
}
