//! Finance, by its HTTP contract (docs/finance.md).

use reqwest::Client;
use vitrine_commerce::{
    finance::Head,
    note::{self, NamedKey},
};

use super::read;
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

    /// Where its ledger stands.
    ///
    /// # Errors
    /// If it does not answer, or somebody else does.
    pub async fn head(&self, keys: &[NamedKey]) -> Result<Head, Outside> {
        let sent = self
            .client
            .get(format!("{}/ledger/head", self.base))
            .bearer_auth(&self.token)
            .send()
            .await;
        let said = read(WHO, sent).await?;
        note::open(Head::KIND, &said, keys).map_err(|bad| Outside::Refused {
            who: WHO,
            code: "head".to_owned(),
            why: bad.to_string(),
        })
    }
}

impl Finance for FinanceApi {
    async fn post(&self, key: &str, request: &[u8]) -> Result<Vec<u8>, Outside> {
        let sent = self
            .client
            .post(format!("{}/ledger/entries", self.base))
            .bearer_auth(&self.token)
            .header("idempotency-key", key)
            .header("content-type", "application/json")
            .body(request.to_vec())
            .send()
            .await;
        read(WHO, sent).await
    }

    async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Outside> {
        let sent = self
            .client
            .get(self.entry(key))
            .bearer_auth(&self.token)
            .send()
            .await;
        match read(WHO, sent).await {
            Ok(receipt) => Ok(Some(receipt)),
            Err(Outside::Refused { code, .. }) if code == "entry-unknown" => Ok(None),
            Err(error) => Err(error),
        }
    }
}
