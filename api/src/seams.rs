//! What flows need of the world, and nothing else: a store, Stripe, Finance, a signer. In production these are Postgres and HTTP, in the
//! simulation models and a scheduler.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;
use vitrine_commerce::money::Currency;

use crate::{
    edges::{At, Refusal, attempt::Begun, observe::Observed, place::Want},
    order::{Call, Order, Session, Task},
};

/// Somebody outside could not be reached, or said something that was not expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outside {
    /// Whether it took effect is not known.
    #[error("{who} did not answer: {why}")]
    Unknown {
        /// Who.
        who: &'static str,
        /// Why, for people.
        why: String,
    },
    /// It asks to wait.
    #[error("{who} is asked too often")]
    TooOften {
        /// Who.
        who: &'static str,
        /// For how long.
        wait: Option<Duration>,
    },
    /// It says no, and will say so again.
    #[error("{who} refused: {why}")]
    Refused {
        /// Who.
        who: &'static str,
        /// Its word for it.
        code: String,
        /// Why, for people.
        why: String,
    },
}

/// Why a store has not done what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Whether the transaction took effect is not known. Every edge may be taken again.
    #[error("the database did not answer: {0}")]
    Unknown(String),
    /// Somebody else works at it by now: what this one has found counts for nothing.
    #[error("the lease on {0} was lost")]
    Fenced(String),
    /// There is no such thing.
    #[error("there is no {0}")]
    Missing(String),
    /// The same id was asked for before, with something else.
    #[error("{0} was asked for before, with other content")]
    Reused(String),
    /// The edge is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It would break a promise of the schema.
    #[error("the database refused: {0}")]
    Broken(String),
}

/// An event that Stripe told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// Like `refund.created`.
    pub kind: String,
    /// Of which object.
    pub object: String,
    /// When, by Stripe's clock.
    pub created: Timestamp,
}

/// Names of Stripe's have at most so many bytes
/// (<https://docs.stripe.com/upgrades#what-changes-does-stripe-consider-to-be-backward-compatible>).
const LONGEST_NAME: usize = 255;

/// An event that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its {0} is no name: 1 to 255 bytes without control characters")]
pub struct BadName(&'static str);

impl Event {
    /// The same, if it can be kept: what it is called by are names.
    ///
    /// # Errors
    /// What of it is none.
    pub fn sound(self) -> Result<Self, BadName> {
        let names = [
            ("id", &self.id),
            ("type", &self.kind),
            ("object's id", &self.object),
        ];
        let is_bad =
            |name: &str| !(1..=LONGEST_NAME).contains(&name.len()) || name.contains(char::is_control);
        let bad = names.into_iter().find(|(_, name)| is_bad(name));
        bad.map_or(Ok(()), |(what, _)| Err(BadName(what)))?;
        Ok(self)
    }
}

/// Some of Stripe's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    /// These.
    pub events: Vec<Event>,
    /// Whether there are older ones.
    pub has_more: bool,
}

/// A piece of work that is this worker's until the lease is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<T> {
    /// What is to be done.
    pub what: T,
    /// Whoever claims it later has a higher one.
    pub fence: i64,
    /// How often it was tried before.
    pub tries: u32,
}

/// A task of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which order.
    pub order: Uuid,
    /// What.
    pub task: Task,
}

/// Who takes an edge, and what is done with it.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// Somebody who asked, for the audit log like `account:UUID`.
    Somebody(&'a str),
    /// The worker, by an event that is handled with it.
    Event(&'a Claim<Event>),
    /// The worker, by a task. Done or not is what the order says afterwards.
    Job(&'a Claim<Job>),
}

impl By<'_> {
    /// For the audit log.
    pub fn actor(&self) -> String {
        match self {
            Self::Somebody(who) => (*who).to_owned(),
            Self::Event(claim) => format!("stripe:{}", claim.what.id),
            Self::Job(claim) => format!("worker:{}", claim.what.task),
        }
    }
}

/// A new order as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// Its id: the same for the same request.
    pub id: Uuid,
    /// Who buys.
    pub account: Uuid,
    /// In which currency.
    pub currency: Currency,
    /// What.
    pub wants: Vec<Want>,
    /// SHA-256 of the request, in hex digits.
    pub request_sha256: String,
}

/// Keeps orders and what has to be done for them. One method is one transaction, which is there whole or not at all, and which may be taken
/// again after [`StoreError::Unknown`].
pub trait Store: Send + Sync {
    /// The account of a person, made when they are first seen.
    fn account(&self, issuer: &str, subject: &str) -> impl Future<Output = Result<Uuid, StoreError>> + Send;
    /// Writes a new order, by the newest prices, and where its payment stands; nothing if it is there already.
    fn place(&self, placing: &Placing) -> impl Future<Output = Result<Option<Begun>, StoreError>> + Send;
    /// An order as it is.
    fn order(&self, id: Uuid) -> impl Future<Output = Result<Order, StoreError>> + Send;
    /// Takes an edge of an order ([`crate::edges::take`]) under its lock, and writes what has changed.
    fn change<T: Send>(
        &self,
        id: Uuid,
        by: By<'_>,
        edge: impl FnOnce(&mut Order, &At<'_>) -> Result<T, Refusal> + Send,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;
    /// The order that an object of Stripe's belongs to, as far as it is known here.
    fn order_of(&self, object: &str) -> impl Future<Output = Result<Option<Uuid>, StoreError>> + Send;
    /// Events have arrived, each with the SHA-256 of what was told, in hex digits; how many of them are new.
    fn receive(&self, told: &[(Event, String)]) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// The next event that nobody works at.
    fn claim_event(
        &self,
        lease: Duration,
    ) -> impl Future<Output = Result<Option<Claim<Event>>, StoreError>> + Send;
    /// The next task that nobody works at.
    fn claim_job(
        &self,
        lease: Duration,
    ) -> impl Future<Output = Result<Option<Claim<Job>>, StoreError>> + Send;
    /// Tries an event again later.
    fn put_off_event(
        &self,
        claim: &Claim<Event>,
        wait: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Tries a task again later.
    fn put_off_job(
        &self,
        claim: &Claim<Job>,
        wait: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// These handlers have no use for an event; later ones may have.
    fn ignore(&self, claim: &Claim<Event>) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// What Stripe says of an object: whose it is, if it says so, and all that hangs on it.
pub type Read = (Option<Uuid>, Observed);

/// Stripe, as far as a shop needs it.
pub trait Stripe: Send + Sync {
    /// Makes a customer; its id.
    fn make_customer(&self, call: &Call) -> impl Future<Output = Result<String, Outside>> + Send;
    /// Makes a session.
    fn make_session(&self, call: &Call) -> impl Future<Output = Result<Session, Outside>> + Send;
    /// Expires a session; one that is over stays as it is.
    fn expire_session(&self, session: &str) -> impl Future<Output = Result<(), Outside>> + Send;
    /// Makes a refund.
    fn make_refund(&self, call: &Call) -> impl Future<Output = Result<(), Outside>> + Send;
    /// What it says of an object now: a session with its payment, a payment with its refunds and disputes. `None` if there is no such object,
    /// or none that says anything of an order.
    fn read(&self, object: &str) -> impl Future<Output = Result<Option<Read>, Outside>> + Send;
    /// A page of the events since a moment, the newest first: the first one, or the one that follows the event with this id.
    fn events(
        &self,
        since: Timestamp,
        after: Option<&str>,
    ) -> impl Future<Output = Result<EventPage, Outside>> + Send;
}

/// Finance, behind its HTTP contract.
pub trait Finance: Send + Sync {
    /// Writes an entry, or says the receipt of the one that is there by this key.
    fn post(&self, key: &str, request: &[u8]) -> impl Future<Output = Result<Vec<u8>, Outside>> + Send;
    /// The receipt of the entry that is there by this key.
    fn find(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, Outside>> + Send;
}

/// The signer, which looks for itself whether it may.
pub trait Signer: Send + Sync {
    /// Signs the licence with this id.
    fn sign(&self, licence: Uuid) -> impl Future<Output = Result<[u8; 64], Outside>> + Send;
}
