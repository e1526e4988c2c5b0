//! A key of a service, under the name by which signed notes know it. Reads the key's file.

use std::{path::Path, sync::Arc};

use ed25519_dalek::{VerifyingKey, pkcs8::DecodePublicKey};
use serde::Serialize;
use vitrine_commerce::note::{self, NamedKey};
use vitrine_keys::{Signer, SoftwareSigner};

/// Signs, under a name.
#[derive(Clone)]
pub struct Seal {
    signer: Arc<dyn Signer>,
    key: NamedKey,
}

/// A key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key {file}: {why}")]
pub struct BadSeal {
    file: String,
    why: String,
}

/// Something was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not signed: {0}")]
pub struct NotSigned(String);

impl Seal {
    /// The key in a file (Ed25519, PKCS #8 PEM), under a name.
    ///
    /// # Errors
    /// If it cannot be read, or names may not be so.
    pub fn open(file: &Path, name: &str) -> Result<Self, BadSeal> {
        let because = |why: String| BadSeal {
            file: file.display().to_string(),
            why,
        };
        let text = std::fs::read_to_string(file).map_err(|error| because(error.to_string()))?;
        let signer = SoftwareSigner::from_pem(&text).map_err(|error| because(error.to_string()))?;
        Self::new(Arc::new(signer), name).map_err(because)
    }

    /// A signer under a name.
    ///
    /// # Errors
    /// Why it cannot be, as names may not be so.
    pub fn new(signer: Arc<dyn Signer>, name: &str) -> Result<Self, String> {
        let public =
            VerifyingKey::from_public_key_pem(signer.public_key()).map_err(|error| error.to_string())?;
        let key = NamedKey::new(name, public).map_err(|error| error.to_string())?;
        Ok(Self { signer, key })
    }

    /// Its public half.
    pub const fn key(&self) -> &NamedKey {
        &self.key
    }

    /// Signs a text as it is.
    ///
    /// # Errors
    /// If the key cannot be used now.
    pub fn sign(&self, text: &[u8]) -> Result<[u8; 64], NotSigned> {
        self.signer
            .sign(text)
            .map_err(|refused| NotSigned(refused.to_string()))
    }

    /// A document's text, and its note.
    ///
    /// # Errors
    /// If the key cannot be used now, or the document cannot be JSON.
    pub fn note<T: Serialize>(&self, kind: &str, document: &T) -> Result<(Vec<u8>, Vec<u8>), NotSigned> {
        let text = note::text(kind, document).map_err(|error| NotSigned(error.to_string()))?;
        let note = note::signed(&text, &self.key, &self.sign(&text)?);
        Ok((text, note))
    }
}
