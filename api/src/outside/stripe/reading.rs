//! What Stripe's objects say of an order: a session with its payment, a payment with its refunds and disputes, whatever was asked for. Reads by
//! [`Ask`], which is HTTP in production and the simulator in the simulation.

use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, DisputeState, Funds, PaymentState, RefundState},
    money::Money,
};

use super::WHO;
use crate::{
    edges::observe::{Observed, SeenPayment, SeenRefund},
    order::Session,
    seams::{Event, EventPage, Outside, Read},
};

/// Of a list (<https://docs.stripe.com/api/pagination>).
const PAGE: &str = "100";

/// Somebody who can be asked for Stripe's objects.
pub trait Ask: Sync {
    /// What a place of the API answers.
    fn get(
        &self,
        path: &str,
        parameters: &[(&str, &str)],
    ) -> impl Future<Output = Result<Value, Outside>> + Send;
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
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct DisputeObject {
    id: String,
    amount: i64,
    currency: String,
    status: String,
}

/// What belongs to a payment: charge, refund, dispute.
#[derive(Deserialize)]
struct OfPayment {
    payment_intent: Option<String>,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Value>,
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

pub(super) fn drifted(error: impl std::fmt::Display) -> Outside {
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

/// A session, as it is answered.
///
/// # Errors
/// If it has not the shape of one.
pub fn session(json: Value) -> Result<Session, Outside> {
    of_session(&serde_json::from_value(json).map_err(drifted)?)
}

/// An event, as it is told.
///
/// # Errors
/// If it has not the shape of one.
pub fn event(json: Value) -> Result<Event, Outside> {
    let event: EventObject = serde_json::from_value(json).map_err(drifted)?;
    let event = Event {
        object: event.data.object.id.unwrap_or_else(|| event.id.clone()),
        id: event.id,
        kind: event.kind,
        created: at(event.created)?,
    };
    event.sound().map_err(drifted)
}

/// A page of the events since a moment, the newest first. Page by page: what a busy shop's events of three days say is more than its memory.
///
/// # Errors
/// If Stripe does not answer.
pub async fn events(stripe: &impl Ask, since: Timestamp, after: Option<&str>) -> Result<EventPage, Outside> {
    let page = page(
        stripe,
        "/v1/events",
        &[("created[gte]", &since.as_second().to_string())],
        after,
    )
    .await?;
    let events = page.data.into_iter().map(event);
    Ok(EventPage {
        events: events.collect::<Result<_, _>>()?,
        has_more: page.has_more,
    })
}

fn of_session(object: &SessionObject) -> Result<Session, Outside> {
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

/// `None` if there is no such object.
async fn find<T: DeserializeOwned>(
    stripe: &impl Ask,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<Option<T>, Outside> {
    match stripe.get(path, parameters).await {
        Ok(found) => serde_json::from_value(found).map(Some).map_err(drifted),
        Err(Outside::Refused { code, .. }) if code == "resource_missing" => Ok(None),
        Err(error) => Err(error),
    }
}

/// Of one payment there are not so many refunds or disputes: a list that has more does not end.
const MOST: usize = 10_000;

/// All pages of a list.
async fn all<T: DeserializeOwned>(
    stripe: &impl Ask,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<Vec<T>, Outside> {
    let mut all: Vec<Value> = vec![];
    loop {
        let after = all.last().and_then(|last| last["id"].as_str());
        let page = page(stripe, path, parameters, after).await?;
        let is_last = !page.has_more || page.data.is_empty();
        all.extend(page.data);
        let goes_on = all.last().is_some_and(|last| last["id"].is_string());
        if !is_last && (!goes_on || all.len() > MOST) {
            return Err(drifted("a list goes on after its last object, and ends"));
        }
        if is_last {
            return all
                .into_iter()
                .map(|one| serde_json::from_value(one).map_err(drifted))
                .collect();
        }
    }
}

/// The first page of a list, or the one that follows an object.
async fn page(
    stripe: &impl Ask,
    path: &str,
    parameters: &[(&str, &str)],
    after: Option<&str>,
) -> Result<List, Outside> {
    let mut asked = parameters.to_vec();
    asked.push(("limit", PAGE));
    asked.extend(after.map(|after| ("starting_after", after)));
    serde_json::from_value(stripe.get(path, &asked).await?).map_err(drifted)
}

/// The payment that an object belongs to.
async fn payment_of(stripe: &impl Ask, object: &str) -> Result<Option<String>, Outside> {
    let place = match object.split('_').next().unwrap_or_default() {
        "pi" => return Ok(Some(object.to_owned())),
        "ch" | "py" => "charges",
        "re" | "pyr" => "refunds",
        "dp" | "du" => "disputes",
        _ => return Ok(None),
    };
    let found: Option<OfPayment> = find(stripe, &format!("/v1/{place}/{object}"), &[]).await?;
    Ok(found.and_then(|found| found.payment_intent))
}

async fn payment(stripe: &impl Ask, id: &str, seen: &mut Observed) -> Result<Option<Uuid>, Outside> {
    let expand = [("expand[0]", "latest_charge")];
    let found = find(stripe, &format!("/v1/payment_intents/{id}"), &expand).await?;
    let Some(intent): Option<IntentObject> = found else {
        return Ok(None);
    };
    let state = payment_state(&intent);
    let charge = intent.latest_charge.and_then(|charge| match charge {
        Charge::Whole(charge) => Some(charge),
        Charge::Id(_) => None,
    });
    let is_paid = state == PaymentState::Succeeded;
    let paid_at = charge
        .as_ref()
        .filter(|_| is_paid)
        .map(|charge| at(charge.created));
    seen.payments.push(SeenPayment {
        attempt: intent.metadata.attempt.as_deref().and_then(|n| n.parse().ok()),
        state,
        received: is_paid
            .then(|| money(intent.amount_received, &intent.currency))
            .transpose()?,
        paid_at: paid_at.transpose()?,
        method: charge
            .and_then(|charge| charge.payment_method_details)
            .map(|method| method.kind),
        id: intent.id,
    });
    let of_payment = [("payment_intent", id)];
    let refunds: Vec<RefundObject> = all(stripe, "/v1/refunds", &of_payment).await?;
    for refund in refunds {
        seen.refunds.push(SeenRefund {
            ours: refund.metadata.refund,
            payment: id.to_owned(),
            amount: money(refund.amount, &refund.currency)?,
            state: refund_state(refund.status.as_deref()),
            reason: refund.reason,
            id: refund.id,
        });
    }
    let disputes: Vec<DisputeObject> = all(stripe, "/v1/disputes", &of_payment).await?;
    for dispute in disputes {
        let said = facts::Dispute {
            of: facts::Once::Known(id.to_owned()),
            state: dispute_state(&dispute.status),
        };
        let amount = money(dispute.amount, &dispute.currency)?;
        seen.disputes.push((dispute.id, said, amount));
    }
    Ok(intent.metadata.order)
}

/// What Stripe says of an object now.
///
/// # Errors
/// If it does not answer, or in another shape than it should.
pub async fn read(stripe: &impl Ask, object: &str) -> Result<Option<Read>, Outside> {
    let mut seen = Observed::default();
    let mut order = None;
    let paid_by = if object.starts_with("cs_") {
        let found = find(stripe, &format!("/v1/checkout/sessions/{object}"), &[]).await?;
        let Some(found): Option<SessionObject> = found else {
            return Ok(None);
        };
        order = found.metadata.order;
        if let Some(n) = found.metadata.attempt.as_deref().and_then(|n| n.parse().ok()) {
            seen.sessions.push((n, of_session(&found)?, attempt(&found)));
        }
        found.payment_intent
    } else {
        payment_of(stripe, object).await?
    };
    if let Some(id) = &paid_by {
        order = order.or(payment(stripe, id, &mut seen).await?);
    }
    // A session does not say that money which took days has not come; its payment does
    // (<https://docs.stripe.com/payments/checkout/fulfill-orders>).
    if let (Some((_, _, said)), Some(payment)) = (seen.sessions.last_mut(), seen.payments.last()) {
        let is_waiting = said.session == facts::Session::Complete && said.funds == Funds::Unpaid;
        if is_waiting && payment.state == PaymentState::Failed {
            said.funds = Funds::Failed;
        }
    }
    let is_something = !seen.sessions.is_empty() || !seen.payments.is_empty();
    Ok(is_something.then_some((order, seen)))
}
