//! Finance, by its HTTP contract (docs/finance.md).

use reqwest::Client;
use serde::Deserialize;

use super::ask;
use crate::seams::{Finance, Outside};

const WHO: &str = "Finance";

/// Finance.
#[derive(Clone)]
pub struct FinanceApi {
    client: Client,
    base: String,
    token: String,
}

impl FinanceApi {
    /// Finance at an address, without a slash at the end.
    pub const fn new(client: Client, base: String, token: String) -> Self {
        Self { client, base, token }
    }

    fn entry(&self, key: &str) -> String {
        let key: String = form_urlencoded::byte_serialize(key.as_bytes()).collect();
        format!("{}/ledger/entries/{key}", self.base)
    }

    /// Receipts after one, in the ledger's order, so many at most.
    ///
    /// # Errors
    /// If it does not answer, or not by the contract.
    pub async fn receipts(&self, after: u64, most: u32) -> Result<Vec<String>, Outside> {
        #[derive(Deserialize)]
        struct Receipts {
            receipts: Vec<String>,
        }
        let request = self
            .client
            .get(format!("{}/ledger/entries?after={after}&limit={most}", self.base))
            .bearer_auth(&self.token);
        let said = ask(WHO, "receipts", request).await?;
        let said: Receipts = serde_json::from_slice(&said).map_err(|error| Outside::Refused {
            who: WHO,
            code: "receipts".to_owned(),
            why: error.to_string(),
        })?;
        Ok(said.receipts)
    }
}

impl Finance for FinanceApi {
    async fn post(&self, key: &str, request: &[u8]) -> Result<Vec<u8>, Outside> {
        let request = self
            .client
            .post(format!("{}/ledger/entries", self.base))
            .bearer_auth(&self.token)
            .header("idempotency-key", key)
            .header("content-type", "application/json")
            .body(request.to_vec());
        ask(WHO, "post", request).await
    }

    async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Outside> {
        let request = self.client.get(self.entry(key)).bearer_auth(&self.token);
        match ask(WHO, "find", request).await {
            Ok(receipt) => Ok(Some(receipt)),
            Err(Outside::Refused { code, .. }) if code == "entry-unknown" => Ok(None),
            Err(error) => Err(error),
        }
    }
}
