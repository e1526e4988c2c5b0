//! Commands that are drawn: what is asked for next, by what there is.

use std::{collections::BTreeSet, time::Duration};

use jiff::SignedDuration;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use uuid::Uuid;
use vitrine_api::{
    edges::{
        observe::{Observed, SeenPayment, SeenRefund},
        place::Want,
    },
    order::{Order, Session, Task},
    seams::{Claim, Event, Job, Placing, Store},
};
use vitrine_commerce::{
    facts::{self, Funds, PaymentState, RefundState, UnitId},
    money::Money,
};

use super::{
    command::Command,
    pair::{CURRENCIES, Pair, SKUS},
};
use crate::{house::Keys, model::epoch};

/// What a history has come to, from which what follows is drawn.
pub struct History {
    /// What decides everything.
    pub rng: StdRng,
    /// Orders that were placed.
    pub orders: Vec<Uuid>,
    /// What was claimed.
    pub events: Vec<Claim<Event>>,
    /// What was claimed.
    pub jobs: Vec<Claim<Job>>,
    /// Entries of Finance's ledger.
    pub entries: u64,
    /// Now and then something is said to be of another order.
    pub strays: bool,
    made: u32,
}

impl History {
    /// At its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            orders: vec![],
            events: vec![],
            jobs: vec![],
            entries: 0,
            strays: true,
            made: 0,
        }
    }

    fn unit(&mut self) -> UnitId {
        UnitId {
            line: self.rng.random_range(0..3),
            unit: self.rng.random_range(0..2),
        }
    }

    fn units(&mut self) -> BTreeSet<UnitId> {
        (0..self.rng.random_range(1..3)).map(|_| self.unit()).collect()
    }

    fn placing(&mut self) -> Placing {
        let who = self.rng.random_range(0..3_u8);
        let id = Uuid::from_u128(self.rng.random_range(1..9));
        let want = |rng: &mut StdRng| Want {
            sku: (*SKUS.choose(rng).unwrap()).to_owned(),
            quantity: rng.random_range(1..3),
        };
        Placing {
            id,
            account: vitrine_api::order::account_id("https://id.example", &format!("person{who}")),
            currency: CURRENCIES.choose(&mut self.rng).unwrap().parse().unwrap(),
            wants: (0..self.rng.random_range(1..4))
                .map(|_| want(&mut self.rng))
                .collect(),
            request_sha256: if self.rng.random_bool(0.9) { "0" } else { "1" }.repeat(64),
        }
    }

    /// What Stripe might say: now and then of another amount, or of an object of another order.
    fn seen(&mut self, order: &Order) -> Observed {
        let rng = &mut self.rng;
        let mut seen = Observed::default();
        let payment = format!(
            "pi_{}_{}",
            if self.strays && rng.random_bool(0.02) {
                99
            } else {
                order.id.as_u128()
            },
            rng.random_range(1..3)
        );
        if let Some((n, attempt)) = order.attempts.iter().collect::<Vec<_>>().choose(rng) {
            let session = attempt.session.clone().unwrap_or_else(|| session(order, **n));
            let said = facts::Attempt {
                session: *[
                    facts::Session::Open,
                    facts::Session::Complete,
                    facts::Session::Expired,
                ]
                .choose(rng)
                .unwrap(),
                funds: *[Funds::Unpaid, Funds::Paid, Funds::Failed].choose(rng).unwrap(),
            };
            seen.sessions.push((**n, session, said));
        }
        if rng.random_bool(0.7) {
            let state = *[
                PaymentState::Processing,
                PaymentState::Failed,
                PaymentState::Succeeded,
                PaymentState::Succeeded,
            ]
            .choose(rng)
            .unwrap();
            let due = order.sum.total;
            let minor = if rng.random_bool(0.95) {
                due.minor
            } else {
                due.minor + 1
            };
            seen.payments.push(SeenPayment {
                id: payment.clone(),
                attempt: Some(1),
                state,
                received: (state == PaymentState::Succeeded).then_some(Money::new(minor, due.currency)),
                paid_at: (state == PaymentState::Succeeded).then_some(epoch()),
                method: Some("card".to_owned()),
            });
        }
        for (id, refund) in &order.refunds {
            if let (Some((of, amount)), true) = (refund.said.of.known(), rng.random_bool(0.5)) {
                seen.refunds.push(SeenRefund {
                    id: refund.stripe.clone().unwrap_or_else(|| format!("re_{id}")),
                    ours: Some(*id),
                    payment: of.clone(),
                    amount: *amount,
                    state: *[RefundState::Pending, RefundState::Succeeded, RefundState::Failed]
                        .choose(rng)
                        .unwrap(),
                    reason: None,
                });
            }
        }
        let known: Vec<_> = order
            .payments
            .iter()
            .filter_map(|(id, payment)| Some((id.clone(), *payment.said.received.known()?)))
            .collect();
        if let (Some((id, received)), true) = (known.choose(rng), rng.random_bool(0.1)) {
            seen.refunds.push(SeenRefund {
                id: format!("re_dashboard_{id}"),
                ours: None,
                payment: id.clone(),
                amount: *received,
                state: RefundState::Succeeded,
                reason: Some("fraudulent".to_owned()),
            });
        }
        if let (Some((id, received)), true) = (known.choose(rng), rng.random_bool(0.1)) {
            let said = facts::Dispute {
                of: facts::Once::Known(id.clone()),
                state: *[
                    facts::DisputeState::NeedsResponse,
                    facts::DisputeState::Won,
                    facts::DisputeState::Lost,
                ]
                .choose(rng)
                .unwrap(),
            };
            seen.disputes.push((format!("dp_{id}"), said, *received));
        }
        seen
    }

    /// What follows, where the store in memory is asked how orders stand.
    pub async fn next(&mut self, pair: &Pair) -> Command {
        let placed = self.orders.choose(&mut self.rng).copied();
        let Some(id) = placed.filter(|_| self.rng.random_bool(0.93)) else {
            return if self.rng.random_bool(0.3) {
                Command::Account(self.rng.random_range(0..3))
            } else {
                Command::Place(self.placing())
            };
        };
        let order = pair.model.order(id).await.unwrap();
        self.of(&order, &pair.keys)
    }

    /// What follows for an order that stands so.
    pub fn of(&mut self, order: &Order, keys: &Keys) -> Command {
        let id = order.id;
        let (event, job) = (
            self.events.choose(&mut self.rng).cloned(),
            self.jobs.choose(&mut self.rng).cloned(),
        );
        let wait = Duration::from_secs(self.rng.random_range(0..90));
        match self.rng.random_range(0..22) {
            0 => Command::Begin(id),
            1 => Command::Customer(id, format!("cus_{}", order.buyer.account)),
            2 | 3 => match order.attempts.last_key_value() {
                Some((n, _)) => Command::Made(id, *n, session(order, *n)),
                None => Command::Begin(id),
            },
            4 if self.rng.random_bool(0.2) => Command::Close(id),
            5..=7 => {
                let seen = self.seen(order);
                Command::See(id, seen)
            }
            8 | 9 => match order.bookings.iter().find(|(_, booking)| booking.ack.is_none()) {
                Some((key, booking)) => {
                    self.entries += 1;
                    Command::Acknowledge(id, key.clone(), keys.receipt(&booking.request, self.entries))
                }
                None => Command::Order(id),
            },
            10 | 11 => {
                let licensable = order.tasks.iter().find_map(|task| match task {
                    Task::License(unit) => Some(*unit),
                    _ => None,
                });
                let unit = licensable.unwrap_or_else(|| self.unit());
                if self.rng.random_bool(0.2) {
                    Command::FreezeFor(Keys::before().licences.key().clone(), id, unit)
                } else {
                    Command::Freeze(id, unit)
                }
            }
            12 | 13 => match order
                .licences
                .iter()
                .find(|(_, licence)| licence.signature.is_none())
            {
                Some((unit, licence)) => Command::Sign(id, *unit, keys.licences.sign(&licence.text).unwrap()),
                None => Command::Order(id),
            },
            14 => {
                let (refund, units) = (Uuid::from_u128(self.rng.random_range(100..104)), self.units());
                Command::Refund(id, refund, units)
            }
            15 => {
                let unnamed = order
                    .refunds
                    .iter()
                    .find(|(_, refund)| refund.said.units.is_unknown())
                    .map(|(id, _)| *id);
                let units = self.units();
                Command::Name(id, unnamed.unwrap_or(Uuid::nil()), units)
            }
            16 => {
                self.made += 1;
                Command::Receive(Event {
                    id: format!("evt_{}", self.rng.random_range(0..=self.made)),
                    kind: "payment_intent.succeeded".to_owned(),
                    object: format!("pi_{}_1", id.as_u128()),
                    created: epoch(),
                })
            }
            17 => Command::ClaimEvent,
            18 => Command::ClaimJob,
            19 => match event {
                Some(claim) if self.rng.random_bool(0.4) => {
                    let seen = self.seen(order);
                    Command::SeeBy(claim, id, seen)
                }
                Some(claim) if self.rng.random_bool(0.5) => Command::PutOffEvent(claim, wait),
                Some(claim) => Command::Ignore(claim),
                None => Command::ClaimEvent,
            },
            20 => match job {
                Some(claim) if self.rng.random_bool(0.6) => {
                    let seen = self.seen(order);
                    Command::JobDone(claim, id, seen)
                }
                Some(claim) => Command::PutOffJob(claim, wait),
                None => Command::ClaimJob,
            },
            _ => Command::OrderOf(format!("pi_{}_1", id.as_u128())),
        }
    }
}

fn session(order: &Order, n: u32) -> Session {
    Session {
        id: format!("cs_{}_{n}", order.id.as_u128()),
        url: "https://pay.example".to_owned(),
        expires_at: epoch() + SignedDuration::from_mins(65),
    }
}
