//! The public keys by which receipts are judged. Pure.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, VerifyingKey, pkcs8::DecodePublicKey};
use vitrine_keys::key_id;

/// Public keys by id. The id is made from the key, so nothing that is published under another's is taken for it.
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

impl<T: AsRef<str>> FromIterator<T> for Keys {
    /// Keys in PEM (SPKI), one text with one or several; what is none is left out.
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut keys = BTreeMap::new();
        for text in texts {
            for block in text.as_ref().split_inclusive(END) {
                let begin = block.find(BEGIN).map_or("", |at| &block[at..]);
                if let Ok(key) = VerifyingKey::from_public_key_pem(begin) {
                    keys.insert(key_id(&key), key);
                }
            }
        }
        Self(keys)
    }
}

/// The lines around a key (RFC 7468, section 13).
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

#[cfg(test)]
mod tests {
    use vitrine_keys::{Signer, SoftwareSigner};

    use super::*;

    #[test]
    fn a_text_that_is_no_key_is_left_out() {
        let signer = SoftwareSigner::generate();
        let keys = Keys::from_iter(["no key", signer.public_key()]);
        assert!(keys.knows(signer.key_id()));
        assert!(Keys::from_iter(["", "no key"]).is_empty());
    }

    #[test]
    fn a_text_may_hold_several_keys_among_other_words() {
        let signers = [SoftwareSigner::generate(), SoftwareSigner::generate()];
        let text = format!(
            "the first:\n{}\nand the next:\n{}",
            signers[0].public_key(),
            signers[1].public_key().trim_end()
        );
        let keys = Keys::from_iter([text]);
        assert!(signers.iter().all(|signer| keys.knows(signer.key_id())));
    }
}
