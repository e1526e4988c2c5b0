//! Somebody who buys: signs in, orders, pays on the page where people pay, fetches what they have bought. Sends requests to ports of this machine.

use std::{net::SocketAddr, time::Duration};

use reqwest::{Client, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vitrine_parts::People;

use super::{AROUND, Ports};
use crate::error::{Error, Result};

/// Between two looks at an order.
const LOOK: Duration = Duration::from_millis(100);

/// A person, signed in.
pub struct Buyer {
    client: Client,
    shop: String,
    token: String,
}

fn unanswered(what: &str) -> impl FnOnce(reqwest::Error) -> Error {
    let what = what.to_owned();
    move |error| Error::Other(format!("{what}: {error}"))
}

impl Buyer {
    /// Has somebody sign in, by any name.
    ///
    /// # Errors
    /// If the identity provider does not answer as it should.
    pub async fn signs_in(ports: &Ports, name: &str) -> Result<Self> {
        let identity = format!("identity.{AROUND}.svc");
        let here = SocketAddr::from(([127, 0, 0, 1], ports.identity));
        let client = Client::builder().resolve(&identity, here);
        let people = People::of(&ports.issuer(), client).map_err(|error| Error::Other(error.to_string()))?;
        let tokens = people
            .sign_in(name)
            .await
            .map_err(|error| Error::Other(error.to_string()))?;
        let token = tokens["access_token"].as_str();
        Ok(Self {
            client: Client::new(),
            shop: ports.public_url(),
            token: token
                .ok_or_else(|| Error::Other(format!("the identity provider gave no token: {tokens}")))?
                .to_owned(),
        })
    }

    /// The token that they come in by.
    pub fn token(&self) -> &str {
        &self.token
    }

    async fn asks(&self, method: Method, path: &str, body: Option<(&str, Value)>) -> Result<Value> {
        let address = format!("{}{path}", self.shop);
        let what = format!("{method} {address}");
        let mut request = self.client.request(method, &address).bearer_auth(&self.token);
        if let Some((key, body)) = body {
            request = request
                .header("idempotency-key", key)
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.to_string());
        }
        let answer = request.send().await.map_err(unanswered(&what))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unanswered(&what))?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body);
            return Err(Error::Other(format!("{what}: {status}: {said}")));
        }
        serde_json::from_slice(&body).map_err(|error| Error::Other(format!("{what}: {error}")))
    }

    /// What is sold.
    ///
    /// # Errors
    /// If the shop does not answer.
    pub async fn products(&self) -> Result<Value> {
        self.asks(Method::GET, "/api/v1/marketplace/products", None).await
    }

    /// Orders one of a product; the order, and where it is paid.
    ///
    /// # Errors
    /// If the shop refuses.
    pub async fn orders(&self, sku: &str, key: &str) -> Result<(String, String)> {
        let wanted = json!({"items": [{"sku": sku, "quantity": 1}], "currency": "EUR"});
        let made = self
            .asks(Method::POST, "/api/v1/marketplace/checkout", Some((key, wanted)))
            .await?;
        let text = |name: &str| made[name].as_str().map(str::to_owned);
        text("order")
            .zip(text("url"))
            .ok_or_else(|| Error::Other(format!("the checkout gave no address to pay at: {made}")))
    }

    /// Presses the button of the page on which people pay.
    ///
    /// # Errors
    /// If it is not paid.
    pub async fn pays(&self, page: &str) -> Result<()> {
        let form = self
            .client
            .post(page)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        // Where it sends the buyer back to, nobody answers in a demo: the shop has no storefront.
        let answer = form.body("how=pay").send().await.map_err(unanswered(page))?;
        if answer.status() == StatusCode::CONFLICT {
            return Err(Error::Other(format!(
                "{page}: {}",
                answer.text().await.unwrap_or_default()
            )));
        }
        Ok(())
    }

    /// An order as it is.
    ///
    /// # Errors
    /// If the shop does not answer.
    pub async fn order(&self, order: &str) -> Result<Value> {
        self.asks(Method::GET, &format!("/api/v1/marketplace/orders/{order}"), None)
            .await
    }

    /// Waits until an order is so far.
    ///
    /// # Errors
    /// If it is not in time.
    pub async fn until(&self, order: &str, stage: &str, patience: Duration) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let seen = self.order(order).await?;
            if seen["stage"] == stage {
                return Ok(seen);
            }
            if begun.elapsed() > patience {
                return Err(Error::Late {
                    what: format!("order {order}: {stage}"),
                    seconds: patience.as_secs(),
                    last: seen.to_string(),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// The newest licence that they have.
    ///
    /// # Errors
    /// If they have none.
    pub async fn licence(&self) -> Result<String> {
        let licences = self
            .asks(Method::GET, "/api/v1/marketplace/licenses", None)
            .await?;
        let document = licences[0]["document"].as_str();
        document
            .map(str::to_owned)
            .ok_or_else(|| Error::Other(format!("there is no licence: {licences}")))
    }

    /// The newest revocation list; `None` if there is none yet.
    ///
    /// # Errors
    /// If the shop does not answer.
    pub async fn revocations(&self) -> Result<Option<String>> {
        let address = format!("{}/revocations", self.shop);
        let answer = self
            .client
            .get(&address)
            .send()
            .await
            .map_err(unanswered(&address))?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        answer.text().await.map(Some).map_err(unanswered(&address))
    }

    /// Asks for the money back, for all of an order.
    ///
    /// # Errors
    /// If the shop refuses.
    pub async fn gives_back(&self, order: &str, key: &str) -> Result<Value> {
        let refund = json!({"units": [{"line": 0, "unit": 0}], "reason": "changed my mind"});
        let path = format!("/api/v1/marketplace/orders/{order}/refunds");
        self.asks(Method::POST, &path, Some((key, refund))).await
    }
}
