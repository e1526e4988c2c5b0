//! The signer, which looks for itself whether it may.

use reqwest::Client;
use serde::Deserialize;
use uuid::Uuid;

use super::ask;
use crate::seams::{Outside, Signer};

const WHO: &str = "the signer";

/// The signer.
#[derive(Clone)]
pub struct SignerApi {
    client: Client,
    base: String,
    token: String,
}

#[derive(Deserialize)]
struct Signed {
    signature: String,
}

impl SignerApi {
    /// The signer at an address, without a slash at the end.
    pub const fn new(client: Client, base: String, token: String) -> Self {
        Self { client, base, token }
    }

    async fn signature(&self, what: String) -> Result<[u8; 64], Outside> {
        let request = self
            .client
            .post(format!("{}/{what}/signature", self.base))
            .bearer_auth(&self.token);
        let answer = ask(WHO, &what, request).await?;
        let unreadable = |why: String| Outside::Unknown { who: WHO, why };
        let signed: Signed =
            serde_json::from_slice(&answer).map_err(|error| unreadable(error.to_string()))?;
        let bytes = hex::decode(signed.signature).map_err(|error| unreadable(error.to_string()))?;
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| unreadable("a signature has 64 bytes".to_owned()))
    }

    /// Signs a revocation list.
    ///
    /// # Errors
    /// If it does not answer, or says no.
    pub async fn sign_list(&self, sequence: i64) -> Result<[u8; 64], Outside> {
        self.signature(format!("revocations/{sequence}")).await
    }
}

impl Signer for SignerApi {
    async fn sign(&self, licence: Uuid) -> Result<[u8; 64], Outside> {
        self.signature(format!("licences/{licence}")).await
    }
}
