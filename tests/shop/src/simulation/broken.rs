//! Shops that are built wrongly, each in one way that other shops were: what finds them is seen to work.

use std::collections::BTreeSet;

use uuid::Uuid;
use vitrine_api::{
    edges::{
        attempt::Begun,
        licence,
        observe::{self, Observed, SeenPayment},
    },
    flows::worker::{self, Step},
    order::{Call, Order, Session, Task},
    seams::{By, Claim, Event, EventPage, Finance, Job, Outside, Read, Signer, Store, StoreError, Stripe},
};
use vitrine_commerce::facts::{Once, PaymentState, UnitId};

use super::{
    executor::Clock,
    world::{Desk, Disk, World},
};

/// In which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// In none.
    No,
    /// An event is answered before it is kept, and nobody looks for what was lost.
    AnswersBeforeItKeeps,
    /// An event is marked as handled before what it tells of is applied: the effect is outside of the transaction.
    MarksBeforeItApplies,
    /// What was read last is taken for what is, and not joined to what is known.
    BelievesTheLastAnswer,
    /// The buyer's coming back pays the order.
    BelievesTheBuyer,
    /// Whatever is signed like Finance is Finance's.
    BelievesAnyReceipt,
    /// A call that is sent again has another key.
    SendsAgainByAnotherKey,
    /// An entry that is asked for again has another key.
    BooksAgainByAnotherKey,
    /// Stripe is asked for a refund before it is written down.
    RefundsBeforeItWrites,
    /// What was read is changed and written back, whatever has happened in between: the lock is of another row.
    WritesWhatItRead,
    /// A licence is signed by what was so when its bytes were fixed.
    SignsWithoutLookingAgain,
}

impl Broken {
    /// All ways.
    pub const ALL: [Self; 10] = [
        Self::AnswersBeforeItKeeps,
        Self::MarksBeforeItApplies,
        Self::BelievesTheLastAnswer,
        Self::BelievesTheBuyer,
        Self::BelievesAnyReceipt,
        Self::SendsAgainByAnotherKey,
        Self::BooksAgainByAnotherKey,
        Self::RefundsBeforeItWrites,
        Self::WritesWhatItRead,
        Self::SignsWithoutLookingAgain,
    ];
}

/// One step of the worker of events.
pub async fn event<S: Store + Clone>(broken: Broken, disk: &Disk<S>) -> Result<Step, StoreError> {
    let (store, world) = (disk, &disk.world);
    match broken {
        Broken::MarksBeforeItApplies => {
            let Some(claim) = store.claim_event(worker::LEASE).await? else {
                return Ok(Step::Idle);
            };
            store.ignore(&claim).await?;
            apply(store, world, &claim, observe_joined).await
        }
        Broken::BelievesTheLastAnswer => {
            let Some(claim) = store.claim_event(worker::LEASE).await? else {
                return Ok(Step::Idle);
            };
            let applied = apply(store, world, &claim, observe_overwritten).await;
            store.ignore(&claim).await?;
            applied
        }
        Broken::WritesWhatItRead => worker::event(&Careless(disk.clone()), world).await,
        _ => worker::event(store, world).await,
    }
}

/// One step of the worker of tasks.
pub async fn job<S: Store + Clone>(broken: Broken, disk: &Disk<S>) -> Result<Step, StoreError> {
    let (world, desk) = (&disk.world, Desk { disk: disk.clone() });
    match broken {
        Broken::SendsAgainByAnotherKey => worker::job(disk, &Forgetful(world.clone()), world, &desk).await,
        Broken::BooksAgainByAnotherKey => worker::job(disk, world, &Forgetful(world.clone()), &desk).await,
        Broken::WritesWhatItRead => worker::job(&Careless(disk.clone()), world, world, &desk).await,
        Broken::SignsWithoutLookingAgain => {
            let Some(claim) = disk.claim_job(worker::LEASE).await? else {
                return Ok(Step::Idle);
            };
            match &claim.what.task {
                Task::License(unit) => sign(disk, &desk, &claim, *unit).await,
                // Another worker has it when the lease is over.
                _ => worker_of(disk, &claim).await,
            }
        }
        _ => worker::job(disk, world, world, &desk).await,
    }
}

async fn worker_of<S: Store + Clone>(disk: &Disk<S>, claim: &Claim<Job>) -> Result<Step, StoreError> {
    disk.put_off_job(claim, std::time::Duration::ZERO).await?;
    let desk = Desk { disk: disk.clone() };
    worker::job(disk, &disk.world, &disk.world, &desk).await
}

async fn sign<S: Store>(
    disk: &Disk<S>,
    desk: &Desk<S>,
    claim: &Claim<Job>,
    unit: UnitId,
) -> Result<Step, StoreError> {
    let (order, by) = (claim.what.order, By::Job(claim));
    let Some(id) = disk
        .change(order, by, |order, at| licence::freeze(order, unit, at))
        .await?
    else {
        return Ok(Step::Done);
    };
    let Ok(signature) = desk.sign(id).await else {
        disk.put_off_job(claim, worker::wait(claim.tries)).await?;
        return Ok(Step::PutOff);
    };
    let given = By::Somebody("worker");
    disk.change(order, given, |order, _| {
        if let Some(licence) = order.licences.get_mut(&unit) {
            licence.signature = Some(signature);
        }
        Ok(())
    })
    .await?;
    Ok(Step::Done)
}

fn observe_joined(
    order: &mut Order,
    seen: &Observed,
    at: &vitrine_api::edges::At<'_>,
) -> Result<(), vitrine_api::edges::Refusal> {
    observe::apply(order, seen, at)
}

fn observe_overwritten(
    order: &mut Order,
    seen: &Observed,
    at: &vitrine_api::edges::At<'_>,
) -> Result<(), vitrine_api::edges::Refusal> {
    observe::apply(order, seen, at)?;
    for payment in &seen.payments {
        if let Some(known) = order.payments.get_mut(&payment.id) {
            known.said.state = payment.state;
            known.said.received = payment.received.map_or(Once::Unknown, Once::Known);
        }
    }
    for refund in &seen.refunds {
        let known = order
            .refunds
            .values_mut()
            .find(|known| known.stripe.as_ref() == Some(&refund.id));
        if let Some(known) = known {
            known.said.state = refund.state;
        }
    }
    Ok(())
}

async fn apply<S: Store>(
    store: &Disk<S>,
    world: &World,
    claim: &Claim<Event>,
    edge: fn(&mut Order, &Observed, &vitrine_api::edges::At<'_>) -> Result<(), vitrine_api::edges::Refusal>,
) -> Result<Step, StoreError> {
    let Ok(Some((said, seen))) = world.read(&claim.what.object).await else {
        return Ok(Step::Done);
    };
    let Some(order) = store.order_of(&claim.what.object).await?.or(said) else {
        return Ok(Step::Done);
    };
    store
        .change(order, By::Somebody("stripe"), |order, at| edge(order, &seen, at))
        .await?;
    Ok(Step::Done)
}

/// What a shop does that believes its buyers.
pub fn believed(order: &Order) -> Observed {
    let payment = SeenPayment {
        id: format!("pi_claimed_{}", order.id.as_u128()),
        attempt: None,
        state: PaymentState::Succeeded,
        received: Some(order.sum.total),
        paid_at: None,
        method: None,
    };
    Observed {
        payments: vec![payment],
        ..Observed::default()
    }
}

/// Asks Stripe for a refund, and writes it down afterwards.
pub async fn refund_first<S: Store>(
    disk: &Disk<S>,
    clock: &Clock,
    id: Uuid,
    order: Uuid,
    units: &BTreeSet<UnitId>,
) -> Result<(), StoreError> {
    let known = disk.order(order).await?;
    let Some(payment) = known.accepted.clone() else {
        return Ok(());
    };
    let amount: i64 = known
        .parts()
        .iter()
        .filter(|(unit, _)| units.contains(unit))
        .map(|(_, part)| part.total.minor)
        .sum();
    let call = Call {
        path: "/v1/refunds".to_owned(),
        body: format!(
            "payment_intent={payment}&amount={amount}&metadata[order]={order}&metadata[refund]={id}"
        ),
        key: format!("refund:{id}"),
    };
    let _ = disk.world.make_refund(&call).await;
    clock.turn().await;
    disk.change(order, By::Somebody("buyer"), |order, at| {
        vitrine_api::edges::refund::ask(order, id, units, "withdrawn", at)
    })
    .await
    .map(drop)
}

/// Whoever sends again does not know what he has sent.
struct Forgetful(World);

impl Forgetful {
    fn another(&self, key: &str) -> String {
        format!("{key}:{}", self.0.clock.now())
    }
}

impl Stripe for Forgetful {
    async fn make_customer(&self, call: &Call) -> Result<String, Outside> {
        self.0.make_customer(call).await
    }

    async fn make_session(&self, call: &Call) -> Result<Session, Outside> {
        self.0.make_session(call).await
    }

    async fn expire_session(&self, session: &str) -> Result<(), Outside> {
        self.0.expire_session(session).await
    }

    async fn make_refund(&self, call: &Call) -> Result<(), Outside> {
        let call = Call {
            key: self.another(&call.key),
            ..call.clone()
        };
        self.0.make_refund(&call).await
    }

    async fn read(&self, object: &str) -> Result<Option<Read>, Outside> {
        self.0.read(object).await
    }

    async fn events(&self, since: jiff::Timestamp, after: Option<&str>) -> Result<EventPage, Outside> {
        self.0.events(since, after).await
    }
}

impl Finance for Forgetful {
    async fn post(&self, key: &str, request: &[u8]) -> Result<Vec<u8>, Outside> {
        self.0.book_as(&self.another(key), request).await
    }

    async fn find(&self, _: &str) -> Result<Option<Vec<u8>>, Outside> {
        Ok(None)
    }
}

/// Whoever writes what he has read.
#[derive(Clone)]
struct Careless<S>(Disk<S>);

impl<S: Store> Store for Careless<S> {
    async fn account(&self, issuer: &str, subject: &str) -> Result<Uuid, StoreError> {
        self.0.account(issuer, subject).await
    }

    async fn place(&self, placing: &vitrine_api::seams::Placing) -> Result<Option<Begun>, StoreError> {
        self.0.place(placing).await
    }

    async fn order(&self, id: Uuid) -> Result<Order, StoreError> {
        self.0.order(id).await
    }

    async fn change<T: Send>(
        &self,
        id: Uuid,
        by: By<'_>,
        edge: impl FnOnce(&mut Order, &vitrine_api::edges::At<'_>) -> Result<T, vitrine_api::edges::Refusal>
        + Send,
    ) -> Result<T, StoreError> {
        let read = self.0.order(id).await?;
        self.0
            .change(id, by, move |order, at| {
                *order = read;
                edge(order, at)
            })
            .await
    }

    async fn order_of(&self, object: &str) -> Result<Option<Uuid>, StoreError> {
        self.0.order_of(object).await
    }

    async fn receive(&self, told: &[(Event, String)]) -> Result<u64, StoreError> {
        self.0.receive(told).await
    }

    async fn claim_event(&self, lease: std::time::Duration) -> Result<Option<Claim<Event>>, StoreError> {
        self.0.claim_event(lease).await
    }

    async fn claim_job(&self, lease: std::time::Duration) -> Result<Option<Claim<Job>>, StoreError> {
        self.0.claim_job(lease).await
    }

    async fn put_off_event(&self, claim: &Claim<Event>, wait: std::time::Duration) -> Result<(), StoreError> {
        self.0.put_off_event(claim, wait).await
    }

    async fn put_off_job(&self, claim: &Claim<Job>, wait: std::time::Duration) -> Result<(), StoreError> {
        self.0.put_off_job(claim, wait).await
    }

    async fn ignore(&self, claim: &Claim<Event>) -> Result<(), StoreError> {
        self.0.ignore(claim).await
    }
}
