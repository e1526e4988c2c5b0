//! What happens to an order: each function is one edge, decided under the order's lock by what is known then. Pure.
//!
//! An edge says what changes; [`take`] then settles what follows from it by itself (which payment pays, what goes back, what Finance is asked
//! for, what workers have to do) and notes what others are told.

#![deny(clippy::disallowed_macros, clippy::disallowed_methods)]

pub mod attempt;
pub mod finance;
pub mod licence;
pub mod observe;
pub mod place;
pub mod refund;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, Facts, UnitId},
    finance::BadReceipt,
    money::MoneyError,
    note::{BadNote, NamedKey},
    price::PriceError,
};

use crate::order::{News, Order};

/// What edges know of the installation.
#[derive(Clone, Debug)]
pub struct House {
    /// Where the storefront is, without a slash at the end: buyers come back to pages below it.
    pub storefront: String,
    /// By which licences are to be signed.
    pub licence_key: NamedKey,
    /// What Finance signs with, the old key too while there are two.
    pub finance_keys: Vec<NamedKey>,
    /// Where the revocation list is.
    pub revocations: String,
    /// How old a licence's revocation list may be, in seconds, …
    pub staleness_seconds: u32,
    /// … and for how long after that it still holds, with a warning.
    pub grace_seconds: u32,
}

/// Where and when an edge is taken, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The installation.
    pub house: &'a House,
    /// By the store's clock.
    pub now: Timestamp,
    /// For the audit log: `account:UUID`, `stripe`, `worker`.
    pub actor: &'a str,
    /// Random bits, for one thing that nobody may guess.
    pub random: u128,
}

/// Why an edge cannot be taken. The order is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not one of this order's.
    #[error("this order has no {0}")]
    Unknown(String),
    /// It was done by somebody else, or has become needless.
    #[error("{0}")]
    Overtaken(String),
    /// It was asked of an order that is not paid.
    #[error("the order is not paid")]
    Unpaid,
    /// These cannot be refunded.
    #[error("unit {}/{} was refunded already, or is being refunded", .0.line, .0.unit)]
    Refunded(UnitId),
    /// It was asked for so long ago that nobody knows whether it was done.
    #[error(
        "refund {0} was asked for more than 23 hours ago, and Stripe has not said that it has made it; look at its dashboard"
    )]
    TooOld(Uuid),
    /// There is nothing to give back.
    #[error("nothing was paid for this")]
    NothingToRefund,
    /// There is no such product, it is not sold, or not in this currency.
    #[error("{0} is not sold in {1}")]
    NotSold(String, String),
    /// Its listing says what it costs.
    #[error("the listing of {0} says what it costs: change it there, or take the prices out of it")]
    PricedByListing(String),
    /// It cannot be reckoned.
    #[error(transparent)]
    Price(#[from] PriceError),
    /// It cannot be reckoned.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// What Finance is said to have signed is not what it was asked for.
    #[error(transparent)]
    Receipt(#[from] BadReceipt),
    /// What the signer is said to have signed is not the licence.
    #[error("the licence's signature does not hold: {0}")]
    Signature(BadNote),
    /// It cannot be written down.
    #[error("{0} cannot be written as JSON: {1}")]
    Json(&'static str, String),
}

/// Takes an edge.
///
/// # Errors
/// If it is refused; nothing has changed then that a store would write.
pub fn take<T>(
    order: &mut Order,
    at: &At<'_>,
    edge: impl FnOnce(&mut Order, &At<'_>) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let before = order.facts();
    let answer = edge(order, at)?;
    let after = settle::settle(order, at)?;
    tell(order, &before, &after, at);
    Ok(answer)
}

/// Notes what is different now.
fn tell(order: &mut Order, before: &Facts, after: &Facts, at: &At<'_>) {
    let mut news = vec![];
    let (was, is) = (facts::status(before), facts::status(after));
    if was != is {
        news.push(("order.status", json!({"from": was, "to": is})));
    }
    for unit in &after.terms.units {
        let (was, is) = (
            facts::unit_status(before, *unit),
            facts::unit_status(after, *unit),
        );
        if was != is {
            let body = json!({"line": unit.line, "unit": unit.unit, "from": was, "to": is});
            news.push(("unit.status", body));
        }
    }
    let held: BTreeSet<_> = facts::holds(after)
        .difference(&facts::holds(before))
        .map(|hold| format!("{hold:?}"))
        .collect();
    news.extend(held.into_iter().map(|why| ("order.held", json!({"why": why}))));
    order.news.extend(news.into_iter().map(|(kind, body)| News {
        kind,
        actor: at.actor.to_owned(),
        body,
    }));
}

/// An id that is the same whenever the same thing is named again (RFC 9562, section 5.5).
fn named(of: &str) -> Uuid {
    /// Made at random, once.
    const NAMESPACE: Uuid = Uuid::from_u128(0x2b8e_6a34_91f7_4c0d_8a65_0d3c_77e1_54b9);
    Uuid::new_v5(&NAMESPACE, of.as_bytes())
}
