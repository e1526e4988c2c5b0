//! Stripe's API (<https://docs.stripe.com/api>) over HTTP, as far as a shop needs it. Every call is bytes that an edge has decided; what is read is
//! read anew ([`reading`]).

pub mod budget;
pub mod reading;

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, header::DATE};
use serde_json::Value;
use tracing::Instrument;

use self::{
    budget::{Budget, Class},
    reading::{Ask, drifted},
};
use super::{asking, read};
use crate::{
    order::{Call, Session},
    seams::{EventPage, Outside, Read, Stripe},
};

const WHO: &str = "Stripe";
/// The version of its API that this was written for.
const VERSION: &str = "2026-08-26.dahlia";

/// Stripe.
#[derive(Clone)]
pub struct StripeApi {
    client: Client,
    base: String,
    key: String,
    /// What everybody's requests are taken from.
    budget: Arc<Budget>,
    /// What this one's are for, where they say nothing else.
    class: Class,
    /// By how many seconds its clock is ahead of ours, as its last answer said.
    ahead: Arc<AtomicI64>,
}

impl StripeApi {
    /// Stripe at an address, without a slash at the end, by a secret key; for buyers, with so many requests a second for all.
    pub fn new(client: Client, base: String, key: String, rate: u32) -> Self {
        Self {
            client,
            base,
            key,
            budget: Arc::new(Budget::new(rate)),
            class: Class::Checkout,
            ahead: Arc::default(),
        }
    }

    /// The same for what others do, from the same budget.
    #[must_use]
    pub fn of(&self, class: Class) -> Self {
        Self {
            class,
            ..self.clone()
        }
    }

    /// By how many seconds its clock is ahead of ours: webhooks say its time.
    pub fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    async fn send(&self, class: Class, path: &str, request: RequestBuilder) -> Result<Value, Outside> {
        let sent = async {
            let sent = request
                .bearer_auth(&self.key)
                .header("stripe-version", VERSION)
                .send()
                .await;
            if let Ok(response) = &sent {
                let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
                let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
                if let Some(date) = date {
                    let ahead = date.timestamp().as_second() - Timestamp::now().as_second();
                    self.ahead.store(ahead, Ordering::Relaxed);
                }
            }
            read(WHO, sent).await
        };
        // Made when it is Stripe's turn: what waits for its turn here, or gets none, is nothing that was asked.
        let sent = async { sent.instrument(asking(WHO, path)).await };
        let said = self.budget.through(class, sent).await?;
        serde_json::from_slice(&said).map_err(drifted)
    }

    async fn post(&self, class: Class, call: &Call) -> Result<Value, Outside> {
        let request = self
            .client
            .post(format!("{}{}", self.base, call.path))
            .header("idempotency-key", &call.key)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(call.body.clone());
        self.send(class, &call.path, request).await
    }
}

impl Ask for StripeApi {
    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, Outside> {
        let request = self.client.get(format!("{}{path}", self.base));
        self.send(self.class, path, request.query(parameters)).await
    }
}

impl Stripe for StripeApi {
    async fn make_customer(&self, call: &Call) -> Result<String, Outside> {
        let made = self.post(Class::Checkout, call).await?;
        let id = made["id"]
            .as_str()
            .ok_or_else(|| drifted("a customer has an id"))?;
        Ok(id.to_owned())
    }

    async fn make_session(&self, call: &Call) -> Result<Session, Outside> {
        reading::session(self.post(Class::Checkout, call).await?)
    }

    async fn expire_session(&self, session: &str) -> Result<(), Outside> {
        let call = Call {
            path: format!("/v1/checkout/sessions/{session}/expire"),
            body: String::new(),
            key: format!("expire:{session}"),
        };
        match self.post(Class::Janitor, &call).await {
            // It is over already, however it ended.
            Ok(_) | Err(Outside::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn make_refund(&self, call: &Call) -> Result<(), Outside> {
        self.post(Class::Refund, call).await.map(drop)
    }

    async fn read(&self, object: &str) -> Result<Option<Read>, Outside> {
        reading::read(self, object).await
    }

    async fn events(&self, since: Timestamp, after: Option<&str>) -> Result<EventPage, Outside> {
        reading::events(&self.of(Class::Sweep), since, after).await
    }
}
