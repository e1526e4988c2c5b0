//! One step of the worker: an event, or a task. Claims in a short transaction, asks others with none open, and applies in one.
//!
//! No loop, no sleep, no spawn: whoever calls this decides how often, and the simulation in which order.

use std::time::Duration;

use tracing::{Instrument, Span, field};
use uuid::Uuid;
use vitrine_commerce::facts::UnitId;

use crate::{
    edges::{Refusal, attempt, finance, licence, observe, refund},
    order::Task,
    seams::{By, Claim, Event, Finance, Job, Outside, Signer, Store, StoreError, Stripe},
};

/// Longer than a slow answer of Stripe's or Finance's, which are given up after 30 s.
pub const LEASE: Duration = Duration::from_secs(60);
/// After the first failure; twice as long after each other one, …
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// … and no longer than this: that an outage is over is noticed soon.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// What is on its way is asked for so seldom at last: a webhook tells of it, or the sweep.
const LONGEST_LOOK: Duration = Duration::from_secs(3600);

/// What a step has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There was nothing to do.
    Idle,
    /// Something was done.
    Done,
    /// Something is tried again later.
    PutOff,
    /// Somebody else did it meanwhile.
    Fenced,
}

/// For how long something is put off that was tried so often.
pub fn wait(tries: u32) -> Duration {
    LONGEST_WAIT.min(FIRST_WAIT.saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX)))
}

/// Kinds of events that say something of an order, each by what it begins with. All that is told of is read anew, so that the kind only says that
/// there is something; and not those of which another one tells as well (`charge.succeeded` of what `payment_intent.succeeded` does): what is
/// read for them Stripe counts.
const HANDLED: [&str; 8] = [
    "checkout.session.",
    "payment_intent.processing",
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "charge.refunded",
    "charge.dispute.",
    "refund.",
];

/// Handles the next event.
///
/// # Errors
/// What the database could not do.
pub async fn event<S: Store, T: Stripe>(store: &S, stripe: &T) -> Result<Step, StoreError> {
    let Some(claim) = store.claim_event(LEASE).await? else {
        return Ok(Step::Idle);
    };
    let what = &claim.what;
    // Of the gravest level, that a log which tells of nothing else says which all the same.
    let span = tracing::error_span!(
        "event",
        otel.name = what.kind,
        id = what.id,
        object = what.object,
        order = field::Empty
    );
    fenced(handle(store, stripe, &claim).instrument(span).await)
}

/// Whether these handlers have a use for events of a kind.
pub fn is_handled(kind: &str) -> bool {
    HANDLED.iter().any(|prefix| kind.starts_with(prefix))
}

async fn handle<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    claim: &Claim<Event>,
) -> Result<Step, StoreError> {
    let object = &claim.what.object;
    if !is_handled(&claim.what.kind) {
        store.ignore(claim).await?;
        return Ok(Step::Done);
    }
    let (said, observed) = match stripe.read(object).await {
        Ok(Some(read)) => read,
        // Gone, or not an object of an order's.
        Ok(None) => {
            store.ignore(claim).await?;
            return Ok(Step::Done);
        }
        Err(error) => {
            tracing::warn!(%error, "an event is tried again later");
            store
                .put_off_event(claim, asked_to_wait(&error, claim.tries))
                .await?;
            return Ok(Step::PutOff);
        }
    };
    let known = store.order_of(object).await?;
    let Some(order) = known.or(said) else {
        // Whoever paid this did not pay us for an order.
        store.ignore(claim).await?;
        return Ok(Step::Done);
    };
    Span::current().record("order", field::display(order));
    match store
        .change(order, By::Event(claim), |order, at| {
            observe::apply(order, &observed, at)
        })
        .await
    {
        // It says that it is of an order that is not one of ours: another installation has the same account.
        Err(StoreError::Missing(_)) => {
            store.ignore(claim).await?;
            Ok(Step::Done)
        }
        applied => applied.map(|()| Step::Done),
    }
}

fn asked_to_wait(error: &Outside, tries: u32) -> Duration {
    match error {
        Outside::TooOften {
            wait: Some(asked), ..
        } => wait(tries).max(*asked),
        _ => wait(tries),
    }
}

/// Does the next task.
///
/// # Errors
/// What the database could not do.
pub async fn job<S: Store, T: Stripe, F: Finance, G: Signer>(
    store: &S,
    stripe: &T,
    finance: &F,
    signer: &G,
) -> Result<Step, StoreError> {
    let Some(claim) = store.claim_job(LEASE).await? else {
        return Ok(Step::Idle);
    };
    let Job { order, task } = &claim.what;
    let span = tracing::error_span!("task", otel.name = task.verb(), %task, %order);
    work(store, stripe, finance, signer, &claim)
        .instrument(span)
        .await
}

async fn work<S: Store, T: Stripe, F: Finance, G: Signer>(
    store: &S,
    stripe: &T,
    finance: &F,
    signer: &G,
    claim: &Claim<Job>,
) -> Result<Step, StoreError> {
    let done = match &claim.what.task {
        Task::Look(object) => look(store, stripe, claim, object).await,
        Task::Send(refund) => send(store, stripe, claim, *refund).await,
        Task::Book(key) => book(store, finance, claim, key).await,
        Task::License(unit) => license(store, signer, claim, *unit).await,
        Task::GiveUp => store
            .change(claim.what.order, By::Job(claim), |order, _| attempt::close(order))
            .await
            .map(|()| Step::Done),
    };
    match fenced(done) {
        // What somebody else did meanwhile, or what a person has to look at, is not done by trying again soon.
        Err(StoreError::Refused(refusal)) => {
            tracing::error!(%refusal, "a task is refused");
            fenced(
                store
                    .put_off_job(claim, LONGEST_WAIT)
                    .await
                    .map(|()| Step::PutOff),
            )
        }
        done => done,
    }
}

async fn look<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    claim: &Claim<Job>,
    object: &str,
) -> Result<Step, StoreError> {
    match stripe.read(object).await {
        Ok(read) => {
            let (_, observed) = read.unwrap_or_default();
            let by = By::Job(claim);
            store
                .change(claim.what.order, by, |order, at| {
                    observe::apply(order, &observed, at)
                })
                .await?;
            // Still on its way, if there is still such a task.
            store
                .put_off_job(claim, LONGEST_LOOK.min(wait(claim.tries).saturating_mul(60)))
                .await?;
            Ok(Step::Done)
        }
        Err(error) => put_off(store, claim, &error).await,
    }
}

async fn send<S: Store, T: Stripe>(
    store: &S,
    stripe: &T,
    claim: &Claim<Job>,
    id: Uuid,
) -> Result<Step, StoreError> {
    let (order, by) = (claim.what.order, By::Job(claim));
    let Some((payment, call)) = store
        .change(order, by, |order, at| refund::to_send(order, id, at))
        .await?
    else {
        return Ok(Step::Done);
    };
    match stripe.make_refund(&call).await {
        Ok(()) => {}
        Err(refused @ Outside::Refused { .. }) => {
            tracing::warn!(%refused, "a refund is not made");
            store
                .change(order, by, |order, _| refund::refused(order, id))
                .await?;
            return Ok(Step::Done);
        }
        Err(error) => return put_off(store, claim, &error).await,
    }
    match stripe.read(&payment).await {
        Ok(Some((_, observed))) => {
            store
                .change(order, by, |order, at| observe::apply(order, &observed, at))
                .await?;
            // Still to be sent, if what was read is older than what was made.
            store.put_off_job(claim, wait(claim.tries)).await?;
            Ok(Step::Done)
        }
        Ok(None) => {
            let why = format!("payment {payment}, which was refunded, is not there");
            put_off(store, claim, &Outside::Unknown { who: "Stripe", why }).await
        }
        Err(error) => put_off(store, claim, &error).await,
    }
}

async fn book<S: Store, F: Finance>(
    store: &S,
    finance: &F,
    claim: &Claim<Job>,
    key: &str,
) -> Result<Step, StoreError> {
    let order = store.order(claim.what.order).await?;
    let Some(request) = finance::asked(&order, key)? else {
        return Ok(Step::Done);
    };
    let receipt = match finance.post(key, &request).await {
        // Whether the entry was written is not known: it is asked for by its key.
        Err(Outside::Unknown { who, why }) => finance
            .find(key)
            .await
            .and_then(|found| found.ok_or(Outside::Unknown { who, why })),
        other => other,
    };
    match receipt {
        Ok(receipt) => {
            let by = By::Job(claim);
            store
                .change(claim.what.order, by, |order, at| {
                    finance::acknowledge(order, key, &receipt, at)
                })
                .await?;
            Ok(Step::Done)
        }
        Err(error) => put_off(store, claim, &error).await,
    }
}

async fn license<S: Store, G: Signer>(
    store: &S,
    signer: &G,
    claim: &Claim<Job>,
    unit: UnitId,
) -> Result<Step, StoreError> {
    let (order, by) = (claim.what.order, By::Job(claim));
    let Some(id) = store
        .change(order, by, |order, at| licence::freeze(order, unit, at))
        .await?
    else {
        return Ok(Step::Done);
    };
    match signer.sign(id).await {
        Ok(signature) => match store
            .change(order, by, |order, _| licence::signed(order, unit, &signature))
            .await
        {
            // A refund came in between.
            Err(StoreError::Refused(Refusal::Overtaken(_))) => Ok(Step::Done),
            signed => signed.map(|()| Step::Done),
        },
        Err(error) => put_off(store, claim, &error).await,
    }
}

async fn put_off<S: Store>(store: &S, claim: &Claim<Job>, error: &Outside) -> Result<Step, StoreError> {
    tracing::warn!(%error, "a task is tried again later");
    store
        .put_off_job(claim, asked_to_wait(error, claim.tries))
        .await?;
    Ok(Step::PutOff)
}

/// Who has lost the lease has nothing to be sorry for.
fn fenced(step: Result<Step, StoreError>) -> Result<Step, StoreError> {
    match step {
        Err(StoreError::Fenced(_)) => Ok(Step::Fenced),
        other => other,
    }
}
