//! What is known of an order. Nobody writes its status: it is what the facts amount to ([`status`]). Pure.
//!
//! Observations (attempts, payments, refunds, disputes) are what Stripe says of its own objects. They are joined in any order, so an older
//! answer that arrives late changes nothing. Decisions (which payment pays, what Finance has acknowledged, what was licensed) are made
//! once, under the order's lock, by what is known then.

mod duties;
#[cfg(test)]
mod explored;
mod lattice;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use duties::{Duty, Refusal, duties, may_license};
pub use lattice::{Join, Once};
pub use status::{Hold, OrderStatus, Projection, UnitStatus, holds, projection, status, unit_status};

use serde::Serialize;

use self::lattice::steps;
use crate::money::Money;

/// One licence's worth of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// Which line, from 0.
    pub line: u32,
    /// Which unit of the line, from 0.
    pub unit: u32,
}

/// What an order is for; fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// What has to be paid. Zero: the order is paid as it is made.
    pub due: Money,
    /// What is bought.
    pub units: BTreeSet<UnitId>,
}

/// All that is known of an order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Facts {
    /// What it is for.
    pub terms: Terms,
    /// Whether it was given up: no attempt is begun any more. One that was paid all the same counts.
    pub closed: bool,
    /// Attempts to pay, by number.
    pub attempts: BTreeMap<u32, Attempt>,
    /// Payments by Stripe's id.
    pub payments: BTreeMap<String, Payment>,
    /// Refunds by our or, where it was made in Stripe's dashboard, Stripe's id.
    pub refunds: BTreeMap<String, Refund>,
    /// Disputes by Stripe's id.
    pub disputes: BTreeMap<String, Dispute>,
    /// Which payment pays the order. All others are surplus and go back.
    pub accepted: Once<String>,
    /// SHA-256 of Finance's receipt for what is reserved for seller, fee and tax, in hex digits.
    pub reserved: Once<String>,
    /// How far the fulfilment of each unit is.
    pub units: BTreeMap<UnitId, Fulfilment>,
}

/// A checkout session (Stripe, `checkout.session`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// Its `status`.
    pub session: Session,
    /// Its `payment_status`.
    pub funds: Funds,
}

/// A session's `status`. It cannot become `complete` after `expired`, nor the other way round; if both were said, money goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Session {
    /// The buyer can pay.
    #[default]
    Open,
    /// Nobody can pay any more.
    Expired,
    /// The buyer has done all there is to do.
    Complete,
}

/// Whether a session's money is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Funds {
    /// Not yet: `unpaid`.
    #[default]
    Unpaid,
    /// It will not come: `checkout.session.async_payment_failed`.
    Failed,
    /// `paid`, or `no_payment_required`.
    Paid,
}

/// A payment (Stripe, `payment_intent`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Payment {
    /// Of which attempt.
    pub attempt: Once<u32>,
    /// How far it is.
    pub state: PaymentState,
    /// What has arrived (`amount_received`), once it has succeeded.
    pub received: Once<Money>,
}

/// A payment's `status`, as far as it matters. One that failed may be tried again; one that succeeded stays so, whatever goes back later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentState {
    /// `requires_…`.
    #[default]
    Pending,
    /// `processing`: money is on its way, which may take days.
    Processing,
    /// `canceled`, or its last try failed.
    Failed,
    /// `succeeded`.
    Succeeded,
}

/// Money that goes back (Stripe, `refund`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Refund {
    /// Of which payment, and how much.
    pub of: Once<(String, Money)>,
    /// How far it is.
    pub state: RefundState,
    /// For which units: ours says so as it is made, of another's a person says it later.
    pub units: Once<BTreeSet<UnitId>>,
}

/// A refund's `status`. It may fail after it has succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefundState {
    /// `pending`, or not yet asked for.
    #[default]
    Pending,
    /// `requires_action`.
    RequiresAction,
    /// `succeeded`.
    Succeeded,
    /// `canceled`: the money is ours again.
    Canceled,
    /// `failed`: the money came back.
    Failed,
}

impl RefundState {
    /// Whether the money is gone, or on its way.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Pending | Self::RequiresAction | Self::Succeeded)
    }
}

/// A dispute (Stripe, `dispute`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dispute {
    /// Of which payment.
    pub of: Once<String>,
    /// How far it is.
    pub state: DisputeState,
}

/// A dispute's `status`. An inquiry may become a dispute. Lost comes last: if both were said, the money counts as gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DisputeState {
    /// `warning_needs_response`: an inquiry, no money has moved.
    #[default]
    WarningNeedsResponse,
    /// `warning_under_review`.
    WarningUnderReview,
    /// `warning_closed`.
    WarningClosed,
    /// `prevented`.
    Prevented,
    /// `needs_response`: the money was taken.
    NeedsResponse,
    /// `under_review`.
    UnderReview,
    /// `won`: the money came back.
    Won,
    /// `lost`.
    Lost,
}

/// How far a unit's fulfilment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fulfilment {
    /// Its licence.
    pub licence: LicenceState,
    /// Its first delivery.
    pub delivery: DeliveryState,
}

/// How far a licence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LicenceState {
    /// There is none.
    #[default]
    None,
    /// Its bytes are fixed, and not signed.
    Frozen,
    /// Signed, and the signature is committed.
    Signed,
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryState {
    /// There is none.
    #[default]
    None,
    /// The buyer has no key to encrypt to.
    AwaitingRecipient,
    /// It is being made.
    Delivering,
    /// It can be fetched.
    Delivered,
}

steps!(
    Session,
    Funds,
    PaymentState,
    RefundState,
    DisputeState,
    LicenceState,
    DeliveryState
);

impl Join for Attempt {
    fn join(&mut self, other: Self) {
        self.session.join(other.session);
        self.funds.join(other.funds);
    }
}

impl Join for Payment {
    fn join(&mut self, other: Self) {
        self.attempt.join(other.attempt);
        self.state.join(other.state);
        self.received.join(other.received);
    }
}

impl Join for Refund {
    fn join(&mut self, other: Self) {
        self.of.join(other.of);
        self.state.join(other.state);
        self.units.join(other.units);
    }
}

impl Join for Dispute {
    fn join(&mut self, other: Self) {
        self.of.join(other.of);
        self.state.join(other.state);
    }
}

impl Join for Fulfilment {
    fn join(&mut self, other: Self) {
        self.licence.join(other.licence);
        self.delivery.join(other.delivery);
    }
}

impl Facts {
    /// What is known of an order as it is made.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            closed: false,
            attempts: BTreeMap::new(),
            payments: BTreeMap::new(),
            refunds: BTreeMap::new(),
            disputes: BTreeMap::new(),
            accepted: Once::Unknown,
            reserved: Once::Unknown,
            units: BTreeMap::new(),
        }
    }

    /// How far a unit's fulfilment is.
    pub fn fulfilment(&self, unit: UnitId) -> Fulfilment {
        self.units.get(&unit).copied().unwrap_or_default()
    }

    /// Whether the order is paid. Once it is, it stays so: what goes back later is another fact.
    pub fn is_paid(&self) -> bool {
        let accepted = self.accepted.known().and_then(|id| self.payments.get(id));
        self.terms.due.is_zero() || accepted.is_some_and(|payment| payment.state == PaymentState::Succeeded)
    }
}

impl Join for Facts {
    /// Both are of the same order.
    fn join(&mut self, other: Self) {
        self.closed.join(other.closed);
        self.attempts.join(other.attempts);
        self.payments.join(other.payments);
        self.refunds.join(other.refunds);
        self.disputes.join(other.disputes);
        self.accepted.join(other.accepted);
        self.reserved.join(other.reserved);
        self.units.join(other.units);
    }
}
