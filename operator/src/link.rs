//! The signed, expiring link to a preview: written by the operator, read by the gateway. Pure but for the key's randomness.
//!
//! The private key lives in the operator's memory only. Its public half goes into a ConfigMap under its key id, so that a
//! new operator signs with a new key while old links stay good until they expire (docs/adr/0003).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The path that exchanges a link for a cookie.
pub const OPEN_PATH: &str = "/__vitrine/open";
/// The query parameter with the token.
pub const TOKEN_PARAMETER: &str = "t";
/// Separates these signatures from every other use of such a key.
const DOMAIN: &[u8] = b"vitrine preview link v1\n";
/// No token is longer; longer ones are not even decoded.
const MAX_TOKEN_BYTES: usize = 1024;

/// What a link says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The host label of the preview.
    #[serde(rename = "l")]
    pub label: String,
    /// When it ends, in seconds since 1970.
    #[serde(rename = "e")]
    pub expires: i64,
    /// The id of the key.
    #[serde(rename = "k")]
    pub key: String,
    /// The path that the visitor is sent to, in the preview's own host.
    #[serde(rename = "p")]
    pub path: String,
}

impl Claims {
    fn is_for(&self, label: &str) -> Result<(), BadLink> {
        if self.label == label {
            Ok(())
        } else {
            Err(BadLink::OtherPreview)
        }
    }
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    /// Not of the form that is signed here.
    #[error("this is no link of a preview")]
    Malformed,
    /// Signed by nobody we know.
    #[error("this link was not made here, or its key is no longer known")]
    UnknownKey,
    /// The signature does not match.
    #[error("this link was changed")]
    BadSignature,
    /// For another preview.
    #[error("this link belongs to another preview")]
    OtherPreview,
    /// Too late.
    #[error("this link has expired")]
    Expired,
}

/// Signs links.
#[derive(Clone)]
pub struct LinkSigner {
    key: SigningKey,
    id: String,
}

impl LinkSigner {
    /// A new key.
    pub fn generate() -> Self {
        let key = SigningKey::from_bytes(&rand::random());
        let id = key_id(&key.verifying_key());
        Self { key, id }
    }

    /// The key's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public half, as it stands in the ConfigMap.
    pub fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes())
    }

    /// A token for one preview until a time.
    pub fn sign(&self, label: &str, path: &str, expires: Timestamp) -> String {
        let claims = Claims {
            label: label.to_owned(),
            expires: expires.as_second(),
            key: self.id.clone(),
            path: path.to_owned(),
        };
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).unwrap_or_default());
        let signature = self.key.sign(&[DOMAIN, body.as_bytes()].concat());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }
}

/// The public keys that links may be signed with.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    keys: BTreeMap<String, VerifyingKey>,
}

impl KeyRing {
    /// Reads the ConfigMap's data; an entry that is no key is left out.
    pub fn read(data: &BTreeMap<String, String>) -> Self {
        let keys = data.iter().filter_map(|(id, entry)| {
            let entry: KeyEntry = serde_json::from_str(entry).ok()?;
            let bytes: [u8; 32] = URL_SAFE_NO_PAD.decode(entry.key).ok()?.try_into().ok()?;
            let key = VerifyingKey::from_bytes(&bytes).ok()?;
            (key_id(&key) == *id).then(|| (id.clone(), key))
        });
        Self { keys: keys.collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks a token for one host label at one time.
    ///
    /// # Errors
    /// Why it opens nothing. The signature is checked before anything that it says is believed.
    pub fn check(&self, token: &str, label: &str, now: Timestamp) -> Result<Claims, BadLink> {
        let claims = self.verify(token)?;
        claims.is_for(label)?;
        if claims.expires <= now.as_second() {
            return Err(BadLink::Expired);
        }
        Ok(claims)
    }

    /// What a token says, once its signature is known to be good.
    fn verify(&self, token: &str) -> Result<Claims, BadLink> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadLink::Malformed);
        }
        let (body, signature) = token.split_once('.').ok_or(BadLink::Malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| BadLink::Malformed);
        let claims: Claims = serde_json::from_slice(&decode(body)?).map_err(|_| BadLink::Malformed)?;
        let signature = Signature::from_slice(&decode(signature)?).map_err(|_| BadLink::Malformed)?;
        let key = self.keys.get(&claims.key).ok_or(BadLink::UnknownKey)?;
        key.verify_strict(&[DOMAIN, body.as_bytes()].concat(), &signature)
            .map_err(|_| BadLink::BadSignature)?;
        Ok(claims)
    }
}

/// The last link of one preview that a visitor came back with, as a cookie. A page of many parts comes with the same one each
/// time, and to verify a signature takes longer than all else that a request needs.
#[derive(Debug, Default)]
pub struct LastGood(Mutex<Option<Good>>);

#[derive(Debug)]
struct Good {
    /// Of the token: how far a guess agrees with it may show in the time that it takes, and helps nobody.
    digest: [u8; 32],
    claims: Claims,
    /// The keys that it was good by: it is verified again when they change.
    keys: Arc<KeyRing>,
}

impl LastGood {
    /// Whether a token was signed for a host label. When it expires says nothing here: it was good when it became a cookie, and who
    /// is in stays in for as long as the preview lives, also when that is longer than it was to be (docs/adr/0003).
    ///
    /// # Errors
    /// Why it opens nothing.
    pub fn check(&self, keys: &Arc<KeyRing>, token: &str, label: &str) -> Result<(), BadLink> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadLink::Malformed);
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(good) = &*self.last()
            && good.digest == digest
            && Arc::ptr_eq(&good.keys, keys)
        {
            return good.claims.is_for(label);
        }
        // Nobody waits for the lock while a signature is verified.
        let claims = keys.verify(token)?;
        claims.is_for(label)?;
        *self.last() = Some(Good {
            digest,
            claims,
            keys: keys.clone(),
        });
        Ok(())
    }

    fn last(&self) -> MutexGuard<'_, Option<Good>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A public key in the ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    /// The key, base64url.
    pub key: String,
    /// When no link of it can be good any more, in seconds since 1970.
    pub until: i64,
}

fn key_id(key: &VerifyingKey) -> String {
    hex::encode(&Sha256::digest(key.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(signer: &LinkSigner) -> KeyRing {
        let entry = KeyEntry {
            key: signer.public(),
            until: 0,
        };
        KeyRing::read(&BTreeMap::from([(
            signer.id().to_owned(),
            serde_json::to_string(&entry).unwrap(),
        )]))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_link_opens_its_own_preview_until_it_expires() {
        let signer = LinkSigner::generate();
        let token = signer.sign("p-1", "/", at(100));
        let ring = ring(&signer);
        assert_eq!(ring.check(&token, "p-1", at(99)).unwrap().expires, 100);
        assert_eq!(ring.check(&token, "p-1", at(100)), Err(BadLink::Expired));
        assert_eq!(ring.check(&token, "p-2", at(99)), Err(BadLink::OtherPreview));
    }

    #[test]
    fn a_cookie_is_judged_again_by_label_and_keys_and_lives_as_long_as_its_preview() {
        let signer = LinkSigner::generate();
        let token = signer.sign("p-1", "/", at(0));
        let (keys, last) = (Arc::new(ring(&signer)), LastGood::default());
        for _ in 0..2 {
            assert_eq!(last.check(&keys, &token, "p-1"), Ok(()));
        }
        assert_eq!(last.check(&keys, &token, "p-2"), Err(BadLink::OtherPreview));
        let without = Arc::new(KeyRing::default());
        assert_eq!(last.check(&without, &token, "p-1"), Err(BadLink::UnknownKey));
        let cut = &token[..token.len() - 1];
        assert!(last.check(&keys, cut, "p-1").is_err());
        assert_eq!(last.check(&keys, &token, "p-1"), Ok(()));
        assert_eq!(keys.check(&token, "p-1", at(0)), Err(BadLink::Expired));
    }

    #[test]
    fn a_changed_or_foreign_link_opens_nothing() {
        let (signer, other) = (LinkSigner::generate(), LinkSigner::generate());
        let token = signer.sign("p-1", "/", at(100));
        assert_eq!(ring(&other).check(&token, "p-1", at(1)), Err(BadLink::UnknownKey));
        let (_, signature) = token.split_once('.').unwrap();
        let forged = Claims {
            label: "p-1".into(),
            expires: 1_000_000,
            key: signer.id().into(),
            path: "/".into(),
        };
        let forged = format!(
            "{}.{signature}",
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&forged).unwrap())
        );
        assert_eq!(
            ring(&signer).check(&forged, "p-1", at(1)),
            Err(BadLink::BadSignature)
        );
        for bad in ["", ".", "a.b", "e30.e30", &"a".repeat(5000)] {
            assert_eq!(
                ring(&signer).check(bad, "p-1", at(1)),
                Err(BadLink::Malformed),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_key_under_another_keys_id_is_not_taken() {
        let (signer, other) = (LinkSigner::generate(), LinkSigner::generate());
        let entry = serde_json::to_string(&KeyEntry {
            key: other.public(),
            until: 0,
        })
        .unwrap();
        assert!(KeyRing::read(&BTreeMap::from([(signer.id().to_owned(), entry)])).is_empty());
    }
}
