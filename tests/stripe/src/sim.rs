//! The account: what is asked of it, what people and banks do to it, and what it tells by webhooks. Sans-I/O: time is passed in, and of two
//! accounts to which the same happens both are the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    error::Error,
    form,
    object::{
        BalanceTransaction, Charge, Customer, Dispute, DisputeStatus, Intent, IntentStatus, Metadata,
        PaymentStatus, Refund, RefundStatus, Session, SessionStatus, VERSION,
    },
};

/// A session that says nothing else can be paid for so long, in seconds (<https://docs.stripe.com/api/checkout/sessions/create#create_checkout_session-expires_at>); …
const DAY: i64 = 86_400;
/// … and for no less than this.
const HALF_AN_HOUR: i64 = 1_800;
/// Events are kept for so long, in seconds (<https://docs.stripe.com/api/events>).
const EVENTS_KEPT: i64 = 30 * DAY;
/// Answers are kept by their keys for so long, in seconds (<https://docs.stripe.com/api/idempotent_requests>).
const KEYS_KEPT: i64 = DAY;
/// Of a charge, in hundredths of a per cent, and once (<https://stripe.com/pricing>, European cards).
const FEE_BPS: i64 = 150;
const FEE_FIXED: i64 = 25;
/// Of a dispute, in minor units.
const DISPUTE_FEE: i64 = 2_000;
/// Of a list, if nothing else is asked (<https://docs.stripe.com/api/pagination>), and at most.
const PAGE: usize = 10;
const LARGEST_PAGE: usize = 100;
/// Entries, characters of a name, and of a value (<https://docs.stripe.com/api/metadata>).
const METADATA: (usize, usize, usize) = (50, 40, 500);

/// A request to the API.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET` or `POST`.
    pub method: String,
    /// Like `/v1/refunds`.
    pub path: String,
    /// Parameters of a `GET`, as in the URL.
    pub query: String,
    /// Parameters of a `POST`, as in the body.
    pub body: String,
    /// Of the header `Authorization: Bearer`.
    pub key: Option<String>,
    /// Of the header `Idempotency-Key`.
    pub idempotency_key: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// JSON.
    pub body: Value,
    /// Whether it is one that was given before (header `Idempotent-Replayed`).
    pub replayed: bool,
}

/// What others do, who are no callers of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// The buyer pays a session's amount at once.
    Pay(String),
    /// The buyer's card is declined; the session stays open.
    Decline(String),
    /// The buyer pays by something that takes days.
    PayLater(String),
    /// The money of such a session arrives, …
    Arrive(String),
    /// … or it does not.
    Bounce(String),
    /// Somebody refunds a payment in the dashboard: all that is left, or so much.
    RefundInDashboard(String, Option<i64>),
    /// A refund that was pending or has succeeded goes on.
    Refund(String, RefundStatus),
    /// The buyer's bank asks, or takes the money back.
    Dispute(String, DisputeStatus),
    /// A dispute goes on.
    Settle(String, DisputeStatus),
}

/// An event, as it is told.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// When it happened, Unix seconds.
    pub created: i64,
    /// Like `refund.created`.
    pub kind: &'static str,
    /// As it is sent.
    pub json: Value,
}

struct Kept {
    request: [u8; 32],
    response: Response,
}

/// What an account is made with.
#[derive(Clone, Debug)]
pub struct Account {
    /// The API's secret key.
    pub key: String,
    /// Whether money is real.
    pub livemode: bool,
    /// Whether refunds of cards wait for the balance before they succeed.
    pub refunds_wait: bool,
    /// Where sessions' pages are.
    pub pages: String,
}

/// An account with all that is in it.
pub struct Stripe {
    account: Account,
    made: BTreeMap<&'static str, u64>,
    customers: BTreeMap<String, Customer>,
    sessions: BTreeMap<String, Session>,
    intents: BTreeMap<String, Intent>,
    charges: BTreeMap<String, Charge>,
    refunds: BTreeMap<String, Refund>,
    disputes: BTreeMap<String, Dispute>,
    balance: Vec<BalanceTransaction>,
    events: Vec<Event>,
    kept: BTreeMap<String, Kept>,
    /// Sessions by when they expire, and answers by since when they are kept: of many, those that are over are found without looking at the others.
    expiring: BTreeSet<(i64, String)>,
    aging: BTreeSet<(i64, String)>,
    limits: Limits,
    /// In which second it was asked for what how often.
    asked: (i64, BTreeMap<String, u32>),
}

/// How many requests are answered in a second; others are turned away (<https://docs.stripe.com/rate-limits>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub account: u32,
    /// Of each endpoint: a method, and a path without the ids in it.
    pub endpoint: u32,
}

impl Limits {
    /// None.
    pub const NONE: Self = Self {
        account: u32::MAX,
        endpoint: u32::MAX,
    };
    /// Those of an account in live mode that has agreed on no others.
    pub const USUAL: Self = Self {
        account: 100,
        endpoint: 25,
    };
}

type Answer = Result<Value, Error>;

impl Stripe {
    /// An empty account.
    pub const fn new(account: Account) -> Self {
        Self {
            account,
            made: BTreeMap::new(),
            customers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            intents: BTreeMap::new(),
            charges: BTreeMap::new(),
            refunds: BTreeMap::new(),
            disputes: BTreeMap::new(),
            balance: vec![],
            events: vec![],
            kept: BTreeMap::new(),
            expiring: BTreeSet::new(),
            aging: BTreeSet::new(),
            limits: Limits::NONE,
            asked: (0, BTreeMap::new()),
        }
    }

    /// Has these limits from now on.
    pub const fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    fn is_asked_too_often(&mut self, request: &Request, now: i64) -> bool {
        if self.limits == Limits::NONE {
            return false;
        }
        if self.asked.0 != now {
            self.asked = (now, BTreeMap::new());
        }
        let asked = self.asked.1.entry(endpoint(request)).or_default();
        *asked += 1;
        *asked > self.limits.endpoint || self.asked.1.values().sum::<u32>() > self.limits.account
    }

    /// All events, the oldest first.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// A session.
    pub fn session(&self, id: &str) -> Option<&Session> {
        self.sessions.get(id)
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// All payment intents.
    pub fn intents(&self) -> impl Iterator<Item = &Intent> {
        self.intents.values()
    }

    /// A payment intent.
    pub fn intent(&self, id: &str) -> Option<&Intent> {
        self.intents.get(id)
    }

    /// All refunds.
    pub fn refunds(&self) -> impl Iterator<Item = &Refund> {
        self.refunds.values()
    }

    /// All disputes.
    pub fn disputes(&self) -> impl Iterator<Item = &Dispute> {
        self.disputes.values()
    }

    /// All movements of money, the oldest first.
    pub fn balance(&self) -> &[BalanceTransaction] {
        &self.balance
    }

    /// Answers a request at a moment, Unix seconds.
    pub fn step(&mut self, request: &Request, now: i64) -> Response {
        self.expire(now);
        if request.key.as_deref() != Some(&self.account.key) {
            return refused(&Error::unauthorized());
        }
        if self.is_asked_too_often(request, now) {
            return refused(&Error::too_often());
        }
        let Some(key) = request
            .idempotency_key
            .clone()
            .filter(|_| request.method == "POST")
        else {
            return self.answer(request, now);
        };
        while let Some((at, old)) = self.aging.pop_first() {
            if at + KEYS_KEPT > now {
                self.aging.insert((at, old));
                break;
            }
            self.kept.remove(&old);
        }
        let same = hash(request);
        if let Some(kept) = self.kept.get(&key) {
            return if kept.request == same {
                Response {
                    replayed: true,
                    ..kept.response.clone()
                }
            } else {
                refused(&Error::other_request(&key))
            };
        }
        let response = self.answer(request, now);
        // What failed before it began may be tried again with the key; what began is answered the same for ever.
        if response.status < 400 || response.status >= 500 {
            let kept = Kept {
                request: same,
                response: response.clone(),
            };
            self.aging.insert((now, key.clone()));
            self.kept.insert(key, kept);
        }
        response
    }

    fn answer(&mut self, request: &Request, now: i64) -> Response {
        match self.route(request, now) {
            Ok(body) => Response {
                status: 200,
                body,
                replayed: false,
            },
            Err(error) => refused(&error),
        }
    }

    fn route(&mut self, request: &Request, now: i64) -> Answer {
        let text = if request.method == "GET" {
            &request.query
        } else {
            &request.body
        };
        let mut parameters = Parameters(
            form::read(text)
                .map_err(|param| Error::invalid(format!("Invalid parameter {param}")).of(param))?,
        );
        let path: Vec<_> = request.path.trim_matches('/').split('/').collect();
        let live = self.account.livemode;
        let expanded = parameters.0.remove("expand").unwrap_or_default();
        let is_expanded = |name: &str| {
            expanded
                .as_object()
                .is_some_and(|all| all.values().any(|one| one == name))
        };
        let answer = match (request.method.as_str(), path.as_slice()) {
            ("POST", ["v1", "customers"]) => self.create_customer(&mut parameters, now),
            ("GET", ["v1", "customers", id]) => of(&self.customers, "customer", id).map(|one| one.json(live)),
            ("POST", ["v1", "checkout", "sessions"]) => self.create_session(&mut parameters, now),
            ("GET", ["v1", "checkout", "sessions", id]) => {
                of(&self.sessions, "checkout.session", id).map(|one| one.json(live))
            }
            ("POST", ["v1", "checkout", "sessions", id, "expire"]) => self.expire_session(id, now),
            ("GET", ["v1", "payment_intents", id]) => of(&self.intents, "payment_intent", id).map(|one| {
                let mut json = one.json(live);
                // <https://docs.stripe.com/api/expanding_objects>
                let charge = one.latest_charge.as_ref().and_then(|id| self.charges.get(id));
                if let Some(charge) = charge.filter(|_| is_expanded("latest_charge")) {
                    json["latest_charge"] = charge.json(live);
                }
                json
            }),
            ("GET", ["v1", "charges", id]) => of(&self.charges, "charge", id).map(|one| one.json(live)),
            ("POST", ["v1", "refunds"]) => self.create_refund(&mut parameters, now),
            ("GET", ["v1", "refunds", id]) => of(&self.refunds, "refund", id).map(Refund::json),
            ("GET", ["v1", "refunds"]) => self.list_refunds(&mut parameters),
            ("GET", ["v1", "disputes", id]) => {
                of(&self.disputes, "dispute", id).map(|one| self.dispute_json(one))
            }
            ("GET", ["v1", "disputes"]) => self.list_disputes(&mut parameters),
            ("GET", ["v1", "events"]) => self.list_events(&mut parameters, now),
            ("GET", ["v1", "balance_transactions"]) => self.list_balance(&mut parameters),
            (method, _) => {
                let message = format!("Unrecognized request URL ({method}: {}).", request.path);
                return Err(Error::no_such_place(message));
            }
        };
        let body = answer?;
        match parameters.0.keys().next() {
            Some(unknown) => Err(Error::unknown(unknown)),
            None => Ok(body),
        }
    }

    fn id(&mut self, prefix: &'static str) -> String {
        let made = self.made.entry(prefix).or_default();
        *made += 1;
        let mode = if self.account.livemode { "" } else { "test_" };
        match prefix {
            "cs" => format!("cs_{mode}{made:024}"),
            _ => format!("{prefix}_{made:024}"),
        }
    }

    fn tell(&mut self, kind: &'static str, object: Value, now: i64) {
        let id = self.id("evt");
        let json = json!({
            "id": id, "object": "event", "api_version": VERSION, "created": now, "livemode": self.account.livemode, "type": kind,
            "data": {"object": object}, "pending_webhooks": 1, "request": {"id": null, "idempotency_key": null}
        });
        self.events.push(Event {
            id,
            created: now,
            kind,
            json,
        });
    }

    fn move_money(
        &mut self,
        kind: &'static str,
        category: &'static str,
        money: (i64, i64, &str),
        source: &str,
        now: i64,
    ) -> String {
        let (amount, fee, currency) = money;
        let id = self.id("txn");
        self.balance.push(BalanceTransaction {
            id: id.clone(),
            created: now,
            kind,
            category,
            amount,
            fee,
            currency: currency.to_owned(),
            source: source.to_owned(),
        });
        id
    }

    fn create_customer(&mut self, parameters: &mut Parameters, now: i64) -> Answer {
        let (email, metadata) = (parameters.text("email")?, parameters.metadata("metadata")?);
        parameters.all_known()?;
        let customer = Customer {
            id: self.id("cus"),
            created: now,
            email,
            metadata,
        };
        let json = customer.json(self.account.livemode);
        self.customers.insert(customer.id.clone(), customer);
        self.tell("customer.created", json.clone(), now);
        Ok(json)
    }

    fn create_session(&mut self, parameters: &mut Parameters, now: i64) -> Answer {
        match parameters.needed("mode")?.as_str() {
            "payment" => {}
            other => {
                return Err(Error::invalid(format!(
                    "Invalid mode: {other} is not supported by this simulator"
                ))
                .of("mode"));
            }
        }
        let success_url = parameters.needed("success_url")?;
        let cancel_url = parameters.text("cancel_url")?;
        let client_reference_id = parameters.text("client_reference_id")?;
        if client_reference_id.as_ref().is_some_and(|id| id.len() > 200) {
            return Err(
                Error::invalid("Invalid string: must be at most 200 characters").of("client_reference_id")
            );
        }
        let customer = parameters.text("customer")?;
        if let Some(id) = &customer {
            of(&self.customers, "customer", id)?;
        }
        let expires_at = parameters.number("expires_at")?.unwrap_or(now + DAY);
        if !(now + HALF_AN_HOUR..=now + DAY).contains(&expires_at) {
            let message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation.";
            return Err(Error::invalid(message).of("expires_at"));
        }
        let metadata = parameters.metadata("metadata")?;
        let mut intent = parameters.inner("payment_intent_data")?;
        let intent_metadata = intent.metadata("metadata")?;
        intent.all_known()?;
        let (amount, currency) = line_items(parameters)?;
        parameters.text("payment_method_types")?;
        parameters.all_known()?;
        let id = self.id("cs");
        let session = Session {
            url: format!("{}/pay/{id}", self.account.pages),
            id: id.clone(),
            created: now,
            expires_at,
            status: SessionStatus::Open,
            payment_status: PaymentStatus::Unpaid,
            amount,
            currency,
            customer,
            client_reference_id,
            // Only once the buyer confirms (<https://docs.stripe.com/changelog/2022-08-01>).
            payment_intent: None,
            metadata,
            intent_metadata,
            success_url,
            cancel_url,
        };
        let json = session.json(self.account.livemode);
        self.expiring.insert((expires_at, id.clone()));
        self.sessions.insert(id, session);
        Ok(json)
    }

    fn expire_session(&mut self, id: &str, now: i64) -> Answer {
        let session = self
            .sessions
            .get_mut(id)
            .ok_or_else(|| Error::no_such("checkout.session", id))?;
        if session.status != SessionStatus::Open {
            let status = session.status.as_str();
            let message = format!(
                "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status of {status}."
            );
            return Err(Error::invalid(message));
        }
        session.status = SessionStatus::Expired;
        let json = session.json(self.account.livemode);
        self.tell("checkout.session.expired", json.clone(), now);
        Ok(json)
    }

    /// Sessions whose time is over.
    fn expire(&mut self, now: i64) {
        while let Some((at, id)) = self.expiring.pop_first() {
            if at > now {
                self.expiring.insert((at, id));
                break;
            }
            // One that was paid, or expired by somebody, is over already.
            let _ = self.expire_session(&id, at);
        }
    }

    fn create_refund(&mut self, parameters: &mut Parameters, now: i64) -> Answer {
        let intent = parameters.needed("payment_intent")?;
        let amount = parameters.number("amount")?;
        let (reason, metadata) = (parameters.text("reason")?, parameters.metadata("metadata")?);
        let is_reason =
            |reason: &String| ["duplicate", "fraudulent", "requested_by_customer"].contains(&reason.as_str());
        if reason.as_ref().is_some_and(|reason| !is_reason(reason)) {
            return Err(Error::invalid(
                "Invalid reason: must be one of duplicate, fraudulent, or requested_by_customer",
            )
            .of("reason"));
        }
        parameters.all_known()?;
        self.refund(&intent, amount, reason, metadata, now)
    }

    fn refund(
        &mut self,
        intent: &str,
        amount: Option<i64>,
        reason: Option<String>,
        metadata: Metadata,
        now: i64,
    ) -> Answer {
        let intent = of(&self.intents, "payment_intent", intent)?.clone();
        let charge = intent
            .latest_charge
            .as_ref()
            .and_then(|id| self.charges.get(id))
            .filter(|charge| charge.is_paid);
        let Some(charge) = charge.cloned() else {
            let message = format!(
                "This PaymentIntent ({}) does not have a successful charge to refund.",
                intent.id
            );
            return Err(Error::invalid(message).of("payment_intent"));
        };
        let left = charge.amount - charge.refunded;
        if left == 0 {
            let message = format!("Charge {} has already been refunded.", charge.id);
            return Err(Error::invalid(message).with_code("charge_already_refunded"));
        }
        if charge.is_disputed {
            let message = format!(
                "Charge {} has been charged back; cannot issue a refund.",
                charge.id
            );
            return Err(Error::invalid(message).with_code("charge_disputed"));
        }
        let amount = amount.unwrap_or(left);
        if amount < 1 {
            return Err(Error::invalid("Invalid positive integer")
                .with_code("parameter_invalid_integer")
                .of("amount"));
        }
        if amount > left {
            let message =
                format!("Refund amount ({amount}) is greater than unrefunded amount on charge ({left})");
            return Err(Error::invalid(message).of("amount"));
        }
        let id = self.id("re");
        let status = if self.account.refunds_wait {
            RefundStatus::Pending
        } else {
            RefundStatus::Succeeded
        };
        let moved = self.move_money("refund", "refund", (-amount, 0, &charge.currency), &id, now);
        let refund = Refund {
            id: id.clone(),
            created: now,
            status,
            amount,
            currency: charge.currency.clone(),
            charge: charge.id.clone(),
            intent: intent.id,
            reason,
            balance_transaction: Some(moved),
            metadata,
        };
        let json = refund.json();
        self.refunds.insert(id, refund);
        self.tell("refund.created", json.clone(), now);
        self.set_refunded(&charge.id, charge.refunded + amount, now);
        Ok(json)
    }

    fn set_refunded(&mut self, charge: &str, refunded: i64, now: i64) {
        let Some(charge) = self.charges.get_mut(charge) else {
            return;
        };
        let more = refunded > charge.refunded;
        charge.refunded = refunded;
        let json = charge.json(self.account.livemode);
        // Also of a part (<https://docs.stripe.com/api/events/types#event_types-charge.refunded>).
        self.tell(if more { "charge.refunded" } else { "charge.updated" }, json, now);
    }

    fn list_refunds(&self, parameters: &mut Parameters) -> Answer {
        let intent = parameters.text("payment_intent")?;
        let all = self
            .refunds
            .values()
            .rev()
            .filter(|refund| intent.as_ref().is_none_or(|intent| refund.intent == *intent));
        page(
            parameters,
            "/v1/refunds",
            all.map(|refund| (refund.id.as_str(), refund)),
            Refund::json,
        )
    }

    fn list_disputes(&self, parameters: &mut Parameters) -> Answer {
        let intent = parameters.text("payment_intent")?;
        let all = self
            .disputes
            .values()
            .rev()
            .filter(|dispute| intent.as_ref().is_none_or(|intent| dispute.intent == *intent));
        page(
            parameters,
            "/v1/disputes",
            all.map(|dispute| (dispute.id.as_str(), dispute)),
            |dispute| self.dispute_json(dispute),
        )
    }

    fn list_events(&self, parameters: &mut Parameters, now: i64) -> Answer {
        let mut created = parameters.inner("created")?;
        let from = created.number("gte")?.unwrap_or(0).max(now - EVENTS_KEPT);
        created.all_known()?;
        let all = self.events.iter().rev().filter(|event| event.created >= from);
        page(
            parameters,
            "/v1/events",
            all.map(|event| (event.id.as_str(), event)),
            |event| event.json.clone(),
        )
    }

    fn list_balance(&self, parameters: &mut Parameters) -> Answer {
        let all = self.balance.iter().rev().map(|one| (one.id.as_str(), one));
        page(
            parameters,
            "/v1/balance_transactions",
            all,
            BalanceTransaction::json,
        )
    }

    fn dispute_json(&self, dispute: &Dispute) -> Value {
        let moved: Vec<_> = self
            .balance
            .iter()
            .filter(|one| one.source == dispute.id)
            .map(BalanceTransaction::json)
            .collect();
        dispute.json(self.account.livemode, &moved)
    }

    /// Lets others do something.
    ///
    /// # Errors
    /// If it cannot be done as things are.
    pub fn act(&mut self, act: &Act, now: i64) -> Result<(), Error> {
        self.expire(now);
        match act {
            Act::Pay(session) => self.pay(session, true, now),
            Act::PayLater(session) => self.pay(session, false, now),
            Act::Decline(session) => self.decline(session, now),
            Act::Arrive(session) => self.arrive(session, true, now),
            Act::Bounce(session) => self.arrive(session, false, now),
            Act::RefundInDashboard(intent, amount) => self
                .refund(intent, *amount, None, Metadata::new(), now)
                .map(|_| ()),
            Act::Refund(id, status) => self.go_on(id, *status, now),
            Act::Dispute(intent, status) => self.dispute(intent, *status, now),
            Act::Settle(id, status) => self.settle(id, *status, now),
        }
    }

    fn open_session(&self, id: &str) -> Result<Session, Error> {
        let session = of(&self.sessions, "checkout.session", id)?;
        if session.status == SessionStatus::Open {
            Ok(session.clone())
        } else {
            Err(Error::invalid(format!(
                "the session is {}",
                session.status.as_str()
            )))
        }
    }

    /// The intent of a session, made when the buyer first confirms.
    fn intent_of(&mut self, session: &Session, now: i64) -> Intent {
        if let Some(intent) = session
            .payment_intent
            .as_ref()
            .and_then(|id| self.intents.get(id))
        {
            return intent.clone();
        }
        let intent = Intent {
            id: self.id("pi"),
            created: now,
            status: IntentStatus::RequiresPaymentMethod,
            amount: session.amount,
            received: 0,
            currency: session.currency.clone(),
            customer: session.customer.clone(),
            latest_charge: None,
            has_failed: false,
            metadata: session.intent_metadata.clone(),
        };
        if let Some(session) = self.sessions.get_mut(&session.id) {
            session.payment_intent = Some(intent.id.clone());
        }
        self.intents.insert(intent.id.clone(), intent.clone());
        self.tell("payment_intent.created", intent.json(self.account.livemode), now);
        intent
    }

    fn pay(&mut self, id: &str, at_once: bool, now: i64) -> Result<(), Error> {
        let session = self.open_session(id)?;
        let intent = self.intent_of(&session, now);
        if at_once {
            self.succeed(&intent.id, now);
        } else {
            self.set_intent(
                &intent.id,
                IntentStatus::Processing,
                "payment_intent.processing",
                now,
            );
        }
        self.set_session(
            id,
            SessionStatus::Complete,
            at_once,
            "checkout.session.completed",
            now,
        );
        Ok(())
    }

    fn decline(&mut self, id: &str, now: i64) -> Result<(), Error> {
        let session = self.open_session(id)?;
        let intent = self.intent_of(&session, now);
        self.charge(&intent, false, now);
        self.set_intent(
            &intent.id,
            IntentStatus::RequiresPaymentMethod,
            "payment_intent.payment_failed",
            now,
        );
        Ok(())
    }

    fn arrive(&mut self, id: &str, arrives: bool, now: i64) -> Result<(), Error> {
        let session = of(&self.sessions, "checkout.session", id)?.clone();
        let intent = session.payment_intent.filter(|intent| {
            self.intents
                .get(intent)
                .is_some_and(|intent| intent.status == IntentStatus::Processing)
        });
        let intent = intent.ok_or_else(|| Error::invalid("no money of this session is on its way"))?;
        if arrives {
            self.succeed(&intent, now);
            self.set_session(
                id,
                SessionStatus::Complete,
                true,
                "checkout.session.async_payment_succeeded",
                now,
            );
        } else {
            self.set_intent(
                &intent,
                IntentStatus::RequiresPaymentMethod,
                "payment_intent.payment_failed",
                now,
            );
            self.set_session(
                id,
                SessionStatus::Complete,
                false,
                "checkout.session.async_payment_failed",
                now,
            );
        }
        Ok(())
    }

    fn charge(&mut self, intent: &Intent, is_paid: bool, now: i64) -> String {
        let id = self.id("ch");
        let fee = intent.amount * FEE_BPS / 10_000 + FEE_FIXED;
        let moved = is_paid.then(|| {
            self.move_money(
                "charge",
                "charge",
                (intent.amount, fee, &intent.currency),
                &id,
                now,
            )
        });
        let charge = Charge {
            id: id.clone(),
            created: now,
            intent: intent.id.clone(),
            amount: intent.amount,
            currency: intent.currency.clone(),
            is_paid,
            refunded: 0,
            is_disputed: false,
            balance_transaction: moved,
            metadata: intent.metadata.clone(),
        };
        let json = charge.json(self.account.livemode);
        self.charges.insert(id.clone(), charge);
        if let Some(intent) = self.intents.get_mut(&intent.id) {
            intent.latest_charge = Some(id.clone());
        }
        self.tell(
            if is_paid {
                "charge.succeeded"
            } else {
                "charge.failed"
            },
            json,
            now,
        );
        id
    }

    fn succeed(&mut self, id: &str, now: i64) {
        let Some(intent) = self.intents.get(id).cloned() else {
            return;
        };
        self.charge(&intent, true, now);
        if let Some(intent) = self.intents.get_mut(id) {
            intent.received = intent.amount;
        }
        self.set_intent(id, IntentStatus::Succeeded, "payment_intent.succeeded", now);
    }

    fn set_intent(&mut self, id: &str, status: IntentStatus, kind: &'static str, now: i64) {
        let Some(intent) = self.intents.get_mut(id) else {
            return;
        };
        intent.status = status;
        // <https://docs.stripe.com/payments/payment-intents/verifying-status#checking-status>: after a failed try a method is required again.
        intent.has_failed = status == IntentStatus::RequiresPaymentMethod;
        let json = intent.json(self.account.livemode);
        self.tell(kind, json, now);
    }

    fn set_session(&mut self, id: &str, status: SessionStatus, is_paid: bool, kind: &'static str, now: i64) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.status = status;
        session.payment_status = if is_paid {
            PaymentStatus::Paid
        } else {
            PaymentStatus::Unpaid
        };
        let json = session.json(self.account.livemode);
        self.tell(kind, json, now);
    }

    /// A refund succeeds, fails, or is canceled; when it does not succeed, the money is on the balance again
    /// (<https://docs.stripe.com/refunds#failed-refunds>).
    fn go_on(&mut self, id: &str, status: RefundStatus, now: i64) -> Result<(), Error> {
        let refund = self
            .refunds
            .get_mut(id)
            .ok_or_else(|| Error::no_such("refund", id))?;
        let may = matches!(
            (refund.status, status),
            (RefundStatus::Pending, RefundStatus::RequiresAction)
                | (
                    RefundStatus::Pending | RefundStatus::RequiresAction,
                    RefundStatus::Succeeded | RefundStatus::Failed | RefundStatus::Canceled
                )
                | (RefundStatus::Succeeded, RefundStatus::Failed)
        );
        if !may {
            return Err(Error::invalid(format!(
                "a refund that is {} does not become {}",
                refund.status.as_str(),
                status.as_str()
            )));
        }
        refund.status = status;
        let refund = refund.clone();
        if matches!(status, RefundStatus::Failed | RefundStatus::Canceled) {
            self.move_money(
                "refund_failure",
                "refund_failure",
                (refund.amount, 0, &refund.currency),
                id,
                now,
            );
            let refunded = self
                .charges
                .get(&refund.charge)
                .map_or(0, |charge| charge.refunded - refund.amount);
            self.set_refunded(&refund.charge, refunded, now);
        }
        let kind = if status == RefundStatus::Failed {
            "refund.failed"
        } else {
            "refund.updated"
        };
        self.tell(kind, refund.json(), now);
        Ok(())
    }

    fn dispute(&mut self, intent: &str, status: DisputeStatus, now: i64) -> Result<(), Error> {
        if !matches!(
            status,
            DisputeStatus::WarningNeedsResponse | DisputeStatus::NeedsResponse
        ) {
            return Err(Error::invalid(format!(
                "no dispute begins as {}",
                status.as_str()
            )));
        }
        let intent = of(&self.intents, "payment_intent", intent)?.clone();
        let charge = intent
            .latest_charge
            .as_ref()
            .and_then(|id| self.charges.get(id))
            .filter(|charge| charge.is_paid)
            .cloned();
        let charge = charge.ok_or_else(|| Error::invalid("nothing was paid"))?;
        let dispute = Dispute {
            id: self.id("dp"),
            created: now,
            status,
            amount: charge.amount,
            currency: charge.currency,
            charge: charge.id,
            intent: intent.id,
        };
        let id = dispute.id.clone();
        self.disputes.insert(id.clone(), dispute);
        self.tell_dispute("charge.dispute.created", &id, now);
        if status == DisputeStatus::NeedsResponse {
            self.take(&id, now);
        }
        Ok(())
    }

    /// The disputed money leaves the balance (<https://docs.stripe.com/disputes/how-disputes-work>).
    fn take(&mut self, id: &str, now: i64) {
        let Some(dispute) = self.disputes.get(id).cloned() else {
            return;
        };
        if let Some(charge) = self.charges.get_mut(&dispute.charge) {
            charge.is_disputed = true;
        }
        self.move_money(
            "adjustment",
            "dispute",
            (-dispute.amount, DISPUTE_FEE, &dispute.currency),
            id,
            now,
        );
        self.tell_dispute("charge.dispute.funds_withdrawn", id, now);
    }

    fn tell_dispute(&mut self, kind: &'static str, id: &str, now: i64) {
        let json = self.disputes.get(id).map(|dispute| self.dispute_json(dispute));
        if let Some(json) = json {
            self.tell(kind, json, now);
        }
    }

    fn settle(&mut self, id: &str, status: DisputeStatus, now: i64) -> Result<(), Error> {
        use DisputeStatus::{Lost, NeedsResponse, UnderReview, WarningClosed, WarningNeedsResponse, Won};
        let dispute = self
            .disputes
            .get_mut(id)
            .ok_or_else(|| Error::no_such("dispute", id))?;
        let may = matches!(
            (dispute.status, status),
            (WarningNeedsResponse, WarningClosed | NeedsResponse)
                | (NeedsResponse, UnderReview | Won | Lost)
                | (UnderReview, Won | Lost)
        );
        if !may {
            return Err(Error::invalid(format!(
                "a dispute that is {} does not become {}",
                dispute.status.as_str(),
                status.as_str()
            )));
        }
        dispute.status = status;
        let dispute = dispute.clone();
        match status {
            NeedsResponse => {
                self.tell_dispute("charge.dispute.updated", id, now);
                self.take(id, now);
            }
            UnderReview => self.tell_dispute("charge.dispute.updated", id, now),
            Won => {
                self.move_money(
                    "adjustment",
                    "dispute_reversal",
                    (dispute.amount, 0, &dispute.currency),
                    id,
                    now,
                );
                self.tell_dispute("charge.dispute.funds_reinstated", id, now);
                self.tell_dispute("charge.dispute.closed", id, now);
            }
            Lost | WarningClosed | WarningNeedsResponse => {
                self.tell_dispute("charge.dispute.closed", id, now)
            }
        }
        Ok(())
    }
}

/// What is asked for, without which one: ids have an underscore after the kind of their object, and a digit somewhere.
fn endpoint(request: &Request) -> String {
    let is_id =
        |part: &&str| part.contains('_') && part.contains(|character: char| character.is_ascii_digit());
    let parts = request.path.split('/');
    let parts: Vec<_> = parts.map(|part| if is_id(&part) { "ID" } else { part }).collect();
    format!("{} {}", request.method, parts.join("/"))
}

fn refused(error: &Error) -> Response {
    Response {
        status: error.status,
        body: error.json(),
        replayed: false,
    }
}

fn of<'a, T>(all: &'a BTreeMap<String, T>, object: &str, id: &str) -> Result<&'a T, Error> {
    all.get(id).ok_or_else(|| Error::no_such(object, id))
}

/// The same parameters to the same place are the same request.
fn hash(request: &Request) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&request.method, &request.path, &request.body] {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// The newest first, so many of them (<https://docs.stripe.com/api/pagination>). Only what is on the page is made JSON of: a load has a hundred
/// thousand events, and whoever looks through them asks for a thousand pages.
fn page<'a, T>(
    parameters: &mut Parameters,
    url: &str,
    all: impl Iterator<Item = (&'a str, T)>,
    json: impl Fn(T) -> Value,
) -> Answer {
    let limit = parameters
        .number("limit")?
        .map_or(Ok(PAGE), usize::try_from)
        .unwrap_or(0);
    if !(1..=LARGEST_PAGE).contains(&limit) {
        return Err(Error::invalid("Invalid limit: must be between 1 and 100").of("limit"));
    }
    let after = parameters.text("starting_after")?;
    parameters.all_known()?;
    let mut all = all
        .skip_while(|(id, _)| after.as_ref().is_some_and(|after| after != id))
        .skip(usize::from(after.is_some()));
    let data: Vec<_> = all.by_ref().take(limit).map(|(_, one)| json(one)).collect();
    Ok(json!({"object": "list", "url": url, "data": data, "has_more": all.next().is_some()}))
}

/// What a session's lines cost together.
fn line_items(parameters: &mut Parameters) -> Result<(i64, String), Error> {
    let lines = parameters.inner("line_items")?;
    let (mut amount, mut of_all) = (0_i64, None);
    if lines.0.is_empty() {
        return Err(Error::missing("line_items"));
    }
    for number in 0..lines.0.len() {
        let line = lines.0.get(&number.to_string()).and_then(Value::as_object);
        let mut line = Parameters(
            line.ok_or_else(|| Error::invalid("Invalid array").of("line_items"))?
                .clone(),
        );
        let quantity = line
            .number("quantity")?
            .ok_or_else(|| Error::missing("line_items[quantity]"))?;
        let mut price = line.inner("price_data")?;
        let currency = price.needed("currency")?;
        let each = price
            .number("unit_amount")?
            .ok_or_else(|| Error::missing("line_items[price_data][unit_amount]"))?;
        let mut product = price.inner("product_data")?;
        product.needed("name")?;
        product.text("description")?;
        for known in [&product, &price, &line] {
            known.all_known()?;
        }
        if each < 0 || quantity < 1 {
            return Err(Error::invalid("Invalid non-negative integer")
                .with_code("parameter_invalid_integer")
                .of("line_items"));
        }
        if of_all.get_or_insert_with(|| currency.clone()) != &currency {
            return Err(
                Error::invalid("All prices on a Checkout Session must have the same `currency`")
                    .of("line_items"),
            );
        }
        let sum = each
            .checked_mul(quantity)
            .and_then(|line| amount.checked_add(line));
        // The largest amount has eight digits (<https://docs.stripe.com/currencies#minimum-and-maximum-charge-amounts>).
        amount = sum.filter(|sum| *sum <= 99_999_999).ok_or_else(|| {
            Error::invalid("Amount must be no more than 999,999.99").with_code("amount_too_large")
        })?;
    }
    Ok((amount, of_all.unwrap_or_default()))
}

/// Parameters that were not looked at yet.
struct Parameters(Map<String, Value>);

impl Parameters {
    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            // A list of words, none of which matters here.
            Some(Value::Object(list)) if list.values().all(Value::is_string) => Ok(None),
            Some(_) => Err(Error::invalid(format!("Invalid string: {name}")).of(name)),
        }
    }

    fn needed(&mut self, name: &str) -> Result<String, Error> {
        self.text(name)?.ok_or_else(|| Error::missing(name))
    }

    fn number(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let text = self.text(name)?;
        let number = text.map(|text| text.parse().map_err(|_| text));
        number.transpose().map_err(|text| {
            Error::invalid(format!("Invalid integer: {text}"))
                .with_code("parameter_invalid_integer")
                .of(name)
        })
    }

    fn inner(&mut self, name: &str) -> Result<Self, Error> {
        match self.0.remove(name) {
            None => Ok(Self(Map::new())),
            Some(Value::Object(inner)) => Ok(Self(inner)),
            Some(_) => Err(Error::invalid("Invalid object").of(name)),
        }
    }

    fn metadata(&mut self, name: &str) -> Result<Metadata, Error> {
        let (most, longest_name, longest) = METADATA;
        let inner = self.inner(name)?.0;
        let too_many = inner.len() > most;
        let metadata: Metadata = inner
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
            .collect();
        let too_long = metadata
            .iter()
            .any(|(key, value)| key.chars().count() > longest_name || value.chars().count() > longest);
        if too_many || too_long {
            return Err(Error::invalid(format!(
                "Metadata has at most {most} keys of {longest_name} characters, with values of {longest}"
            ))
            .of(name));
        }
        Ok(metadata)
    }

    fn all_known(&self) -> Result<(), Error> {
        self.0
            .keys()
            .next()
            .map_or(Ok(()), |unknown| Err(Error::unknown(unknown)))
    }
}
