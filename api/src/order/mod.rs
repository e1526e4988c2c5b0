//! An order as a store has it, whole: what was asked of others, what they said, and what was decided. Pure.
//!
//! Edges ([`crate::edges`]) change one in memory, under the order's lock; a store writes what is different afterwards, in one transaction.

mod task;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, Facts, Fulfilment, LicenceState, Once, Terms, UnitId},
    finance::{EntryKind, Part},
    licence::{Grant, LicenceKey},
    money::Money,
    price::Amounts,
    split::split,
};

pub use task::Task;

/// A call to Stripe as it was decided; sent again verbatim, so that replicas of two versions cannot disagree about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of the API, like `/v1/refunds`.
    pub path: String,
    /// Parameters, form-encoded.
    pub body: String,
    /// Idempotency key.
    pub key: String,
}

/// Who buys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buyer {
    /// The account.
    pub account: Uuid,
    /// Their identity provider.
    pub issuer: String,
    /// Its name for them.
    pub subject: String,
    /// The Stripe customer, once there is one.
    pub customer: Option<String>,
}

/// One line of an order; fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The item's id.
    pub item: Uuid,
    /// What is bought.
    pub sku: String,
    /// Its name, for people.
    pub title: String,
    /// Whose goods these are.
    pub seller: String,
    /// Which versions, like `>=1.2, <2`.
    pub versions: String,
    /// By which price.
    pub price: Uuid,
    /// How many.
    pub quantity: u32,
    /// What it comes to.
    pub amounts: Amounts,
    /// What a licence for it says.
    pub grant: Grant,
}

/// An attempt to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What makes its session.
    pub call: Call,
    /// When it was begun.
    pub begun_at: Timestamp,
    /// The session that it made.
    pub session: Option<Session>,
    /// What Stripe says of it.
    pub said: facts::Attempt,
}

/// A session of Stripe's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: String,
    /// Where the buyer pays.
    pub url: String,
    /// Until when.
    pub expires_at: Timestamp,
}

/// A payment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// What Stripe says of it.
    pub said: facts::Payment,
    /// When it succeeded, by Stripe's clock (CHK-31).
    pub paid_at: Option<Timestamp>,
    /// By what, like `card`.
    pub method: Option<String>,
}

/// Money that goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// Stripe's id, once it has one.
    pub stripe: Option<String>,
    /// Ours: what makes it. Of the dashboard's: nothing.
    pub call: Option<Call>,
    /// Ours: since when.
    pub asked_at: Option<Timestamp>,
    /// Why, in a word.
    pub reason: String,
    /// What is known of it.
    pub said: facts::Refund,
}

/// A dispute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// What Stripe says of it.
    pub said: facts::Dispute,
    /// Over how much.
    pub amount: Money,
}

/// An entry that Finance is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booking {
    /// What it does.
    pub kind: EntryKind,
    /// The bytes that ask for it.
    pub request: Vec<u8>,
    /// Finance's receipt, once there is one.
    pub ack: Option<Ack>,
}

/// What Finance has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Its id.
    pub id: Uuid,
    /// Of which ledger.
    pub epoch: Uuid,
    /// Which entry of it.
    pub sequence: u64,
    /// The receipt, as it was signed.
    pub note: Vec<u8>,
}

/// A unit's licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// Its id.
    pub id: Uuid,
    /// What a person types.
    pub lookup: LicenceKey,
    /// By which acknowledgement.
    pub ack: Uuid,
    /// What is signed: the text of the note.
    pub text: Vec<u8>,
    /// The public key's encoding, by which it is to be signed.
    pub key: String,
    /// Once it is.
    pub signature: Option<[u8; 64]>,
}

/// Something that happened, for the outbox and the audit log: written in the effect's own transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Like `order.paid`.
    pub kind: &'static str,
    /// By whom.
    pub actor: String,
    /// What, as JSON.
    pub body: serde_json::Value,
}

/// The id of a person's account: the same whoever sees them first.
pub fn account_id(issuer: &str, subject: &str) -> Uuid {
    /// Made at random, once.
    const NAMESPACE: Uuid = Uuid::from_u128(0x9a0d_41c7_e5b2_4f38_b1f6_54d2_80ce_7a13);
    // A line break is in neither of them (OpenID Connect Core 1.0, section 2).
    Uuid::new_v5(&NAMESPACE, format!("{issuer}\n{subject}").as_bytes())
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its id.
    pub id: Uuid,
    /// Who buys.
    pub buyer: Buyer,
    /// What it comes to.
    pub sum: Amounts,
    /// What is bought.
    pub lines: Vec<Line>,
    /// Whether it was given up.
    pub closed: bool,
    /// Which payment pays it.
    pub accepted: Option<String>,
    /// Attempts, by number from 1.
    pub attempts: BTreeMap<u32, Attempt>,
    /// Payments, by Stripe's id.
    pub payments: BTreeMap<String, Payment>,
    /// Refunds, by our id.
    pub refunds: BTreeMap<Uuid, Refund>,
    /// Disputes, by Stripe's id.
    pub disputes: BTreeMap<String, Dispute>,
    /// What Finance is asked for, by key.
    pub bookings: BTreeMap<String, Booking>,
    /// Licences, by unit.
    pub licences: BTreeMap<UnitId, Licence>,
    /// What has still to be done.
    pub tasks: BTreeSet<Task>,
    /// What has happened since the order was read. Never read from a store.
    pub news: Vec<News>,
}

impl Order {
    /// One with which nothing has happened yet.
    pub fn new(id: Uuid, buyer: Buyer, sum: Amounts, lines: Vec<Line>) -> Self {
        Self {
            id,
            buyer,
            sum,
            lines,
            closed: false,
            accepted: None,
            attempts: BTreeMap::new(),
            payments: BTreeMap::new(),
            refunds: BTreeMap::new(),
            disputes: BTreeMap::new(),
            bookings: BTreeMap::new(),
            licences: BTreeMap::new(),
            tasks: BTreeSet::new(),
            news: vec![],
        }
    }

    /// Its units, in the order of its lines.
    pub fn units(&self) -> impl Iterator<Item = (UnitId, &Line)> {
        (0..)
            .zip(&self.lines)
            .flat_map(|(line, bought)| (0..bought.quantity).map(move |unit| (UnitId { line, unit }, bought)))
    }

    /// The line of a unit, if it is one of this order's.
    pub fn line(&self, unit: UnitId) -> Option<&Line> {
        let line = self.lines.get(usize::try_from(unit.line).ok()?)?;
        (unit.unit < line.quantity).then_some(line)
    }

    /// What each unit comes to. Those of a line add up to it.
    pub fn parts(&self) -> BTreeMap<UnitId, Part> {
        let mut parts = BTreeMap::new();
        for (line, bought) in (0..).zip(&self.lines) {
            let (totals, taxes) = (
                shares(bought.amounts.total, bought.quantity),
                shares(bought.amounts.tax, bought.quantity),
            );
            for ((unit, total), tax) in (0..).zip(totals).zip(taxes) {
                let part = Part {
                    item: bought.item,
                    unit,
                    seller: bought.seller.clone(),
                    total,
                    tax,
                };
                parts.insert(UnitId { line, unit }, part);
            }
        }
        parts
    }

    /// What has to be paid, and for what.
    pub fn terms(&self) -> Terms {
        Terms {
            due: self.sum.total,
            units: self.units().map(|(unit, _)| unit).collect(),
        }
    }

    /// The acknowledgement by which licences of this order may be signed.
    pub fn reserved(&self) -> Option<&Ack> {
        let licensing = self.bookings.values().filter(|booking| booking.kind.licenses());
        licensing.filter_map(|booking| booking.ack.as_ref()).next()
    }

    /// All that is known of it.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.terms());
        facts.closed = self.closed;
        facts.attempts = self
            .attempts
            .iter()
            .map(|(n, attempt)| (*n, attempt.said))
            .collect();
        let payments = self.payments.iter();
        facts.payments = payments
            .map(|(id, payment)| (id.clone(), payment.said.clone()))
            .collect();
        let refunds = self.refunds.iter();
        facts.refunds = refunds
            .map(|(id, refund)| (id.to_string(), refund.said.clone()))
            .collect();
        let disputes = self.disputes.iter();
        facts.disputes = disputes
            .map(|(id, dispute)| (id.clone(), dispute.said.clone()))
            .collect();
        facts.accepted = self.accepted.clone().map_or(Once::Unknown, Once::Known);
        let receipt = self
            .reserved()
            .map(|ack| vitrine_commerce::finance::digest(&ack.note));
        facts.reserved = receipt.map_or(Once::Unknown, Once::Known);
        facts.units = self
            .licences
            .iter()
            .map(|(unit, licence)| (*unit, fulfilment(licence)))
            .collect();
        facts
    }
}

/// An amount in so many parts, as equal as they can be.
fn shares(amount: Money, quantity: u32) -> Vec<Money> {
    let weights: Vec<_> = (0..quantity).map(|unit| (unit, 1)).collect();
    let shares = split(amount.minor, &weights).unwrap_or_default();
    shares
        .into_iter()
        .map(|(_, minor)| Money::new(minor, amount.currency))
        .collect()
}

fn fulfilment(licence: &Licence) -> Fulfilment {
    Fulfilment {
        licence: match licence.signature {
            Some(_) => LicenceState::Signed,
            None => LicenceState::Frozen,
        },
        ..Fulfilment::default()
    }
}
