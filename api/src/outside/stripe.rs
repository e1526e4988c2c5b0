//! Stripe's API (<https://docs.stripe.com/api>), as far as a shop needs it. Every call is bytes that an edge has decided; what is read is read anew.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, header::DATE};
use serde::{Deserialize, de::DeserializeOwned};
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, DisputeState, Funds, PaymentState, RefundState},
    money::Money,
};

use super::read;
use crate::{
    edges::observe::{Observed, SeenPayment, SeenRefund},
    order::{Call, Session},
    seams::{Event, Outside, Read, Stripe},
};

const WHO: &str = "Stripe";
/// The version of its API that this was written for.
const VERSION: &str = "2026-08-26.dahlia";
/// Of a list (<https://docs.stripe.com/api/pagination>).
const PAGE: &str = "100";

/// Stripe.
#[derive(Clone)]
pub struct StripeApi {
    client: Client,
    base: String,
    key: String,
    /// By how many seconds its clock is ahead of ours, as its last answer said.
    ahead: Arc<AtomicI64>,
}

/// Objects' metadata, as ours have it.
#[derive(Default, Deserialize)]
struct Metadata {
    order: Option<Uuid>,
    attempt: Option<String>,
    refund: Option<Uuid>,
}

#[derive(Deserialize)]
struct SessionObject {
    id: String,
    url: Option<String>,
    expires_at: i64,
    status: Option<String>,
    payment_status: String,
    payment_intent: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct IntentObject {
    id: String,
    status: String,
    amount_received: i64,
    currency: String,
    latest_charge: Option<Charge>,
    last_payment_error: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    metadata: Metadata,
}

/// Expanded, or by its id alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Charge {
    Whole(Box<ChargeObject>),
    Id(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct ChargeObject {
    created: i64,
    payment_intent: Option<String>,
    payment_method_details: Option<Method>,
}

#[derive(Deserialize)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RefundObject {
    id: String,
    amount: i64,
    currency: String,
    status: Option<String>,
    reason: Option<String>,
    payment_intent: Option<String>,
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct DisputeObject {
    id: String,
    amount: i64,
    currency: String,
    status: String,
    payment_intent: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct EventObject {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    data: EventData,
}

#[derive(Deserialize)]
struct EventData {
    object: Identified,
}

#[derive(Deserialize)]
struct Identified {
    id: Option<String>,
}

fn drifted(error: impl std::fmt::Display) -> Outside {
    Outside::Unknown {
        who: WHO,
        why: format!("its answer cannot be read: {error}"),
    }
}

fn money(minor: i64, currency: &str) -> Result<Money, Outside> {
    Ok(Money::new(minor, currency.parse().map_err(drifted)?))
}

fn at(seconds: i64) -> Result<Timestamp, Outside> {
    Timestamp::from_second(seconds).map_err(drifted)
}

impl StripeApi {
    /// Stripe at an address, without a slash at the end, by a secret key.
    pub fn new(client: Client, base: String, key: String) -> Self {
        Self {
            client,
            base,
            key,
            ahead: Arc::default(),
        }
    }

    /// By how many seconds its clock is ahead of ours: webhooks say its time.
    pub fn ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Outside> {
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
        serde_json::from_slice(&read(WHO, sent).await?).map_err(drifted)
    }

    async fn post<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Outside> {
        let request = self
            .client
            .post(format!("{}{}", self.base, call.path))
            .header("idempotency-key", &call.key)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(call.body.clone());
        self.send(request).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, parameters: &[(&str, &str)]) -> Result<T, Outside> {
        self.send(self.client.get(format!("{}{path}", self.base)).query(parameters))
            .await
    }

    /// `None` if there is no such object.
    async fn find<T: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> Result<Option<T>, Outside> {
        match self.get(path, parameters).await {
            Ok(found) => Ok(Some(found)),
            Err(Outside::Refused { code, .. }) if code == "resource_missing" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All pages of a list.
    async fn all<T: DeserializeOwned>(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
        id: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, Outside> {
        let mut all: Vec<T> = vec![];
        loop {
            let after = all.last().map(&id);
            let mut asked = parameters.to_vec();
            asked.push(("limit", PAGE));
            asked.extend(after.as_deref().map(|after| ("starting_after", after)));
            let page: List<T> = self.get(path, &asked).await?;
            let is_last = !page.has_more || page.data.is_empty();
            all.extend(page.data);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// The payment that an object belongs to.
    async fn payment_of(&self, object: &str) -> Result<Option<String>, Outside> {
        let kind = object.split('_').next().unwrap_or_default();
        Ok(match kind {
            "pi" => Some(object.to_owned()),
            "ch" | "py" => self
                .find::<ChargeObject>(&format!("/v1/charges/{object}"), &[])
                .await?
                .and_then(|charge| charge.payment_intent),
            "re" | "pyr" => self
                .find::<RefundObject>(&format!("/v1/refunds/{object}"), &[])
                .await?
                .and_then(|refund| refund.payment_intent),
            "dp" | "du" => self
                .find::<DisputeObject>(&format!("/v1/disputes/{object}"), &[])
                .await?
                .and_then(|dispute| dispute.payment_intent),
            _ => None,
        })
    }

    async fn payment(&self, id: &str, seen: &mut Observed) -> Result<Option<Uuid>, Outside> {
        let expand = [("expand[0]", "latest_charge")];
        let Some(intent) = self
            .find::<IntentObject>(&format!("/v1/payment_intents/{id}"), &expand)
            .await?
        else {
            return Ok(None);
        };
        let (state, charge) = (payment_state(&intent), intent.latest_charge.as_ref());
        let charge = charge.and_then(|charge| match charge {
            Charge::Whole(charge) => Some(charge),
            Charge::Id(_) => None,
        });
        let is_paid = state == PaymentState::Succeeded;
        let paid_at = charge
            .filter(|_| is_paid)
            .map(|charge| at(charge.created))
            .transpose()?;
        seen.payments.push(SeenPayment {
            attempt: intent.metadata.attempt.as_deref().and_then(|n| n.parse().ok()),
            state,
            received: is_paid
                .then(|| money(intent.amount_received, &intent.currency))
                .transpose()?,
            paid_at,
            method: charge
                .and_then(|charge| charge.payment_method_details.as_ref())
                .map(|method| method.kind.clone()),
            id: intent.id,
        });
        for refund in self
            .all(
                "/v1/refunds",
                &[("payment_intent", id)],
                |refund: &RefundObject| refund.id.clone(),
            )
            .await?
        {
            seen.refunds.push(SeenRefund {
                ours: refund.metadata.refund,
                payment: id.to_owned(),
                amount: money(refund.amount, &refund.currency)?,
                state: refund_state(refund.status.as_deref()),
                reason: refund.reason,
                id: refund.id,
            });
        }
        for dispute in self
            .all(
                "/v1/disputes",
                &[("payment_intent", id)],
                |dispute: &DisputeObject| dispute.id.clone(),
            )
            .await?
        {
            let said = facts::Dispute {
                of: facts::Once::Known(id.to_owned()),
                state: dispute_state(&dispute.status),
            };
            seen.disputes
                .push((dispute.id, said, money(dispute.amount, &dispute.currency)?));
        }
        Ok(intent.metadata.order)
    }
}

fn session(object: &SessionObject) -> Result<Session, Outside> {
    Ok(Session {
        id: object.id.clone(),
        url: object.url.clone().unwrap_or_default(),
        expires_at: at(object.expires_at)?,
    })
}

fn payment_state(intent: &IntentObject) -> PaymentState {
    match intent.status.as_str() {
        "succeeded" => PaymentState::Succeeded,
        "processing" => PaymentState::Processing,
        "canceled" => PaymentState::Failed,
        // Declined, or bounced: another try may follow.
        "requires_payment_method" if intent.last_payment_error.is_some() => PaymentState::Failed,
        _ => PaymentState::Pending,
    }
}

fn refund_state(status: Option<&str>) -> RefundState {
    match status {
        Some("requires_action") => RefundState::RequiresAction,
        Some("succeeded") => RefundState::Succeeded,
        Some("canceled") => RefundState::Canceled,
        Some("failed") => RefundState::Failed,
        _ => RefundState::Pending,
    }
}

fn dispute_state(status: &str) -> DisputeState {
    match status {
        "warning_needs_response" => DisputeState::WarningNeedsResponse,
        "warning_under_review" => DisputeState::WarningUnderReview,
        "warning_closed" => DisputeState::WarningClosed,
        "prevented" => DisputeState::Prevented,
        "under_review" => DisputeState::UnderReview,
        "won" => DisputeState::Won,
        "lost" => DisputeState::Lost,
        // Also what is not known yet: a dispute that is open takes what it is about.
        _ => DisputeState::NeedsResponse,
    }
}

fn attempt(session: &SessionObject) -> facts::Attempt {
    facts::Attempt {
        session: match session.status.as_deref() {
            Some("complete") => facts::Session::Complete,
            Some("expired") => facts::Session::Expired,
            _ => facts::Session::Open,
        },
        funds: match session.payment_status.as_str() {
            "paid" | "no_payment_required" => Funds::Paid,
            _ => Funds::Unpaid,
        },
    }
}

impl Stripe for StripeApi {
    async fn make_customer(&self, call: &Call) -> Result<String, Outside> {
        let made: Identified = self.post(call).await?;
        made.id.ok_or_else(|| drifted("a customer has an id"))
    }

    async fn make_session(&self, call: &Call) -> Result<Session, Outside> {
        session(&self.post::<SessionObject>(call).await?)
    }

    async fn expire_session(&self, session: &str) -> Result<(), Outside> {
        let call = Call {
            path: format!("/v1/checkout/sessions/{session}/expire"),
            body: String::new(),
            key: format!("expire:{session}"),
        };
        match self.post::<Identified>(&call).await {
            // It is over already, however it ended.
            Ok(_) | Err(Outside::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn make_refund(&self, call: &Call) -> Result<(), Outside> {
        self.post::<Identified>(call).await.map(drop)
    }

    async fn read(&self, object: &str) -> Result<Option<Read>, Outside> {
        let mut seen = Observed::default();
        let mut order = None;
        let payment = if object.starts_with("cs_") {
            let Some(found) = self
                .find::<SessionObject>(&format!("/v1/checkout/sessions/{object}"), &[])
                .await?
            else {
                return Ok(None);
            };
            order = found.metadata.order;
            if let Some(n) = found.metadata.attempt.as_deref().and_then(|n| n.parse().ok()) {
                seen.sessions.push((n, session(&found)?, attempt(&found)));
            }
            found.payment_intent
        } else {
            self.payment_of(object).await?
        };
        if let Some(payment) = &payment {
            order = order.or(self.payment(payment, &mut seen).await?);
        }
        // A session does not say that money which took days has not come; its payment does (<https://docs.stripe.com/payments/checkout/fulfill-orders>).
        if let (Some((_, _, said)), Some(payment)) = (seen.sessions.last_mut(), seen.payments.last()) {
            let is_waiting = said.session == facts::Session::Complete && said.funds == Funds::Unpaid;
            if is_waiting && payment.state == PaymentState::Failed {
                said.funds = Funds::Failed;
            }
        }
        let is_something = !seen.sessions.is_empty() || !seen.payments.is_empty();
        Ok(is_something.then_some((order, seen)))
    }

    async fn events(&self, since: Timestamp) -> Result<Vec<Event>, Outside> {
        let since = since.as_second().to_string();
        let told = self
            .all(
                "/v1/events",
                &[("created[gte]", &since)],
                |event: &EventObject| event.id.clone(),
            )
            .await?;
        // Lists begin with the newest.
        let events = told.into_iter().rev().map(|event| {
            Ok(Event {
                object: event.data.object.id.unwrap_or_else(|| event.id.clone()),
                id: event.id,
                kind: event.kind,
                created: at(event.created)?,
            })
        });
        events.collect()
    }
}
