//! Who signs. Pure but for the randomness of a development key.

use ed25519_dalek::{
    Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding},
};
use sha2::{Digest, Sha256};

/// Signs, wherever the key is. The signature is Ed25519's (RFC 8032).
pub trait Signer: Send + Sync {
    /// The id of the key: the first 16 hex digits of the SHA-256 of its public half.
    fn key_id(&self) -> &str;

    /// The public half in PEM (SPKI, RFC 8410).
    fn public_key(&self) -> &str;

    /// Signs bytes.
    ///
    /// # Errors
    /// If the key cannot be used now; asked again later.
    fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], Refused>;
}

/// A signer could not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it was not signed: {0}")]
pub struct Refused(pub String);

/// A key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an Ed25519 private key in PKCS #8 PEM ({0}); make one with `openssl genpkey -algorithm ed25519`"
)]
pub struct BadKey(String);

/// A key in this process's memory.
pub struct SoftwareSigner {
    key: SigningKey,
    id: String,
    public: String,
}

impl std::fmt::Debug for SoftwareSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoftwareSigner")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl SoftwareSigner {
    /// A new key that is gone with this process: for development.
    pub fn generate() -> Self {
        // Only a public half that cannot be written could fail, and 32 bytes can.
        Self::new(SigningKey::from_bytes(&rand::random())).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// A key as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// If the text is something else.
    pub fn from_pem(text: &str) -> Result<Self, BadKey> {
        let key = SigningKey::from_pkcs8_pem(text.trim()).map_err(|error| BadKey(error.to_string()))?;
        Self::new(key)
    }

    /// This key.
    ///
    /// # Errors
    /// If its public half cannot be written.
    pub fn new(key: SigningKey) -> Result<Self, BadKey> {
        let public = key.verifying_key();
        Ok(Self {
            id: key_id(&public),
            public: public
                .to_public_key_pem(LineEnding::LF)
                .map_err(|error| BadKey(error.to_string()))?,
            key,
        })
    }
}

impl Signer for SoftwareSigner {
    fn key_id(&self) -> &str {
        &self.id
    }

    fn public_key(&self) -> &str {
        &self.public
    }

    fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], Refused> {
        Ok(self.key.sign(bytes).to_bytes())
    }
}

/// The id of a public key: the first 16 hex digits of its SHA-256.
pub fn key_id(key: &VerifyingKey) -> String {
    hex::encode(&Sha256::digest(key.as_bytes())[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
                       MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                       -----END PRIVATE KEY-----\n";
    /// Its public half, RFC 8410, section 10.1.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
                          MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
                          -----END PUBLIC KEY-----\n";

    #[test]
    fn a_key_file_of_the_standard_is_read() {
        let signer = SoftwareSigner::from_pem(PEM).unwrap();
        assert_eq!(signer.public_key(), PUBLIC);
        assert_eq!(signer.key_id().len(), 16);
    }

    #[test]
    fn what_is_no_key_says_how_to_make_one() {
        for text in ["", "secret", PUBLIC] {
            let error = SoftwareSigner::from_pem(text).unwrap_err().to_string();
            assert!(error.contains("openssl genpkey -algorithm ed25519"), "{error}");
        }
    }
}
