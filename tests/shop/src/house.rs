//! A shop with its keys: what Finance and the signer would say.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use uuid::Uuid;
use vitrine_api::edges::House;
use vitrine_commerce::{
    finance::{self, EntryRequest, Receipt},
    sha256,
};
use vitrine_keys::SoftwareSigner;
use vitrine_service::Seal;

/// A key under a name, one of so many.
pub fn seal(name: &str, seed: u8) -> Seal {
    let signer = SoftwareSigner::new(SigningKey::from_bytes(&[seed; 32])).unwrap();
    Seal::new(Arc::new(signer), name).unwrap()
}

/// The keys of a shop.
pub struct Keys {
    /// Finance's.
    pub finance: Seal,
    /// For licences.
    pub licences: Seal,
    /// For revocation lists.
    pub revocations: Seal,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            finance: seal("shop.example/finance", 1),
            licences: seal("shop.example/licence", 2),
            revocations: seal("shop.example/revocations", 3),
        }
    }
}

impl Keys {
    /// Those of somebody who says that he is this shop.
    pub fn strangers() -> Self {
        Self {
            finance: seal("shop.example/finance", 11),
            ..Self::default()
        }
    }

    /// Those that were before: licences are signed by another one now.
    pub fn before() -> Self {
        Self {
            licences: seal("shop.example/licence", 12),
            ..Self::default()
        }
    }

    /// The shop that they are of.
    pub fn house(&self) -> House {
        House {
            storefront: "https://shop.example".to_owned(),
            licence_key: self.licences.key().clone(),
            finance_keys: vec![self.finance.key().clone()],
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
            previous_root: finance::FIRST_ROOT.to_owned(),
            key: asked.key,
            request_sha256: sha256(request),
            kind: asked.kind,
            order: asked.order,
            amount: asked.amount,
            at: Timestamp::UNIX_EPOCH,
        };
        let (_, note) = self.finance.note(finance::KIND, &receipt).unwrap();
        note
    }
}
