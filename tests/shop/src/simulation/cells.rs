//! Which events are handled where an order stands, and with which fault: the cells that histories fill together, and those that none can. Pure.

use std::collections::BTreeMap;

use vitrine_commerce::facts::OrderStatus::{self, *};

use super::world::Cell;

/// Events of the simulated Stripe's of which handlers have a use (`vitrine_api::flows::worker::is_handled`).
pub const KINDS: [&str; 16] = [
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
    "charge.refunded",
    "checkout.session.async_payment_failed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "payment_intent.payment_failed",
    "payment_intent.processing",
    "payment_intent.succeeded",
    "refund.created",
    "refund.failed",
    "refund.updated",
];

/// Where orders stand.
pub const STATUSES: [OrderStatus; 10] = [
    Pending,
    AwaitingFunds,
    Failed,
    AwaitingFinance,
    Licensing,
    Completed,
    Suspended,
    Held,
    PartlyRefunded,
    Refunded,
];

/// What goes wrong where an event is applied.
pub const FAULTS: [&str; 5] = ["heard", "lost", "unheard", "serialisation failure", "fenced"];

/// An event that is not handled there, and why.
pub struct Impossible {
    /// Events.
    pub kinds: &'static [&'static str],
    /// Where their order does not stand then.
    pub statuses: &'static [OrderStatus],
    /// Why not.
    pub why: &'static str,
}

/// All of them, whatever the fault.
pub const IMPOSSIBLE: [Impossible; 1] = [Impossible {
    kinds: &[
        "charge.dispute.closed",
        "charge.dispute.created",
        "charge.dispute.funds_reinstated",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.updated",
        "charge.refunded",
        "checkout.session.async_payment_succeeded",
        "payment_intent.succeeded",
        "refund.created",
        "refund.failed",
        "refund.updated",
    ],
    statuses: &[Failed],
    why: "they follow money that has come, and an order is given up only once Stripe has said of each of its sessions that none will",
}];

/// Why a cell is one that no history can fill.
pub fn impossible(kind: &str, stood: OrderStatus) -> Option<&'static str> {
    let of = |listed: &&Impossible| listed.kinds.contains(&kind) && listed.statuses.contains(&stood);
    IMPOSSIBLE.iter().find(of).map(|listed| listed.why)
}

/// What is wrong with a table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// Cells that are empty, and not listed as impossible.
    pub empty: Vec<Cell>,
    /// Cells that are listed as impossible, and are filled; or whose event is listed nowhere.
    pub surprising: Vec<Cell>,
}

/// Looks through a table.
pub fn gaps(handled: &BTreeMap<Cell, u64>) -> Gaps {
    let mut gaps = Gaps::default();
    for kind in KINDS {
        for stood in STATUSES {
            for fault in FAULTS {
                let cell = (kind.to_owned(), stood, fault);
                if !handled.contains_key(&cell) && impossible(kind, stood).is_none() {
                    gaps.empty.push(cell);
                }
            }
        }
    }
    let is_surprising =
        |(kind, stood, _): &&Cell| !KINDS.contains(&kind.as_str()) || impossible(kind, *stood).is_some();
    gaps.surprising = handled.keys().filter(is_surprising).cloned().collect();
    gaps
}
