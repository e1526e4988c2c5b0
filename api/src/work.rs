//! Workers: take one step after the other for as long as there is something to do. Here is what flows must not have: loops, sleeps, tasks.

use std::{future::Future, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    books,
    flows::{
        sweep::sweep,
        worker::{self, Step},
    },
    lists,
    metrics::Counters,
    outside::{finance::FinanceApi, signer::SignerApi, stripe::StripeApi},
    seams::StoreError,
    store::postgres::Shop,
};

/// How often a worker that nobody wakes looks for work: another replica may have made some.
const PERIOD: Duration = Duration::from_millis(500);
/// How long a worker rests after the database has not answered.
const REST: Duration = Duration::from_secs(2);
/// How often Stripe is asked for events that nobody told of.
const SWEEP: Duration = Duration::from_secs(300);
/// A sweep begins so long before the last one: events may be listed later than they happened, and those that are known cost little.
const OVERLAP: SignedDuration = SignedDuration::from_mins(15);
/// The first sweep of a process goes back so far: Stripe tells again for three days in live mode (<https://docs.stripe.com/webhooks#retries>).
const FIRST_SWEEP: SignedDuration = SignedDuration::from_hours(72);
/// How often it is looked whether there has to be another revocation list.
const LISTS: Duration = Duration::from_secs(5);

/// How often it is looked whether Finance still has what it has acknowledged: so long, at most, something is asked for that it refuses anyway.
const BOOKS: Duration = Duration::from_secs(10);

/// What workers work with.
#[derive(Clone)]
pub struct Bench {
    /// Orders.
    pub shop: Shop,
    /// Stripe.
    pub stripe: StripeApi,
    /// Finance.
    pub finance: FinanceApi,
    /// The signer.
    pub signer: SignerApi,
    /// What is counted.
    pub counters: Counters,
    /// The key of revocation lists.
    pub lists: lists::Settings,
}

/// Works until the process is told to end; what has begun is finished.
pub async fn run(bench: Arc<Bench>, workers: usize, ended: watch::Receiver<bool>) {
    let mut all = JoinSet::new();
    for _ in 0..workers {
        let (of_events, of_jobs) = (bench.clone(), bench.clone());
        all.spawn(steps(bench.clone(), "event", ended.clone(), move || {
            let bench = of_events.clone();
            async move { worker::event(&bench.shop, &bench.stripe).await }
        }));
        all.spawn(steps(bench.clone(), "task", ended.clone(), move || {
            let bench = of_jobs.clone();
            async move { worker::job(&bench.shop, &bench.stripe, &bench.finance, &bench.signer).await }
        }));
    }
    all.spawn(sweeps(bench.clone(), ended.clone()));
    all.spawn(ledger(bench.clone(), ended.clone()));
    all.spawn(revocations(bench, ended));
    while all.join_next().await.is_some() {}
}

async fn steps<F: Future<Output = Result<Step, StoreError>>>(
    bench: Arc<Bench>,
    of: &'static str,
    mut ended: watch::Receiver<bool>,
    mut step: impl FnMut() -> F,
) {
    while !*ended.borrow() {
        let stepped = step().await;
        let outcome = match &stepped {
            Ok(Step::Idle) => None,
            Ok(Step::Done) => Some("done"),
            Ok(Step::PutOff) => Some("put_off"),
            Ok(Step::Fenced) => Some("fenced"),
            Err(_) => Some("failed"),
        };
        if let Some(outcome) = outcome {
            bench.counters.steps.with_label_values(&[of, outcome]).inc();
        }
        let rest = match stepped {
            Ok(Step::Idle) => PERIOD,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, of, "a step failed; its work is taken up again when its lease is over");
                REST
            }
        };
        tokio::select! {
            () = bench.shop.work() => {}
            () = tokio::time::sleep(rest) => {}
            _ = ended.changed() => {}
        }
    }
}

/// Waits, or ends.
async fn pause(ended: &mut watch::Receiver<bool>, pause: Duration) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        _ = ended.changed() => {}
    }
    !*ended.borrow()
}

async fn sweeps(bench: Arc<Bench>, mut ended: watch::Receiver<bool>) {
    let mut since = Timestamp::now() - FIRST_SWEEP;
    loop {
        let begun = Timestamp::now();
        match sweep(&bench.shop, &bench.stripe, since).await {
            Ok(new) => {
                if new > 0 {
                    tracing::info!(new, "a sweep found events that no webhook told of");
                }
                since = begun - OVERLAP;
            }
            Err(error) => tracing::warn!(%error, "a sweep of events has ended early"),
        }
        bench.counters.stripe_ahead.set(bench.stripe.ahead());
        if !pause(&mut ended, SWEEP).await {
            return;
        }
    }
}

async fn ledger(bench: Arc<Bench>, mut ended: watch::Receiver<bool>) {
    loop {
        match books::look(&bench.shop.books(), &bench.finance).await {
            Ok(wrong) => {
                bench.counters.ledger_whole.set(i64::from(wrong.is_none()));
                if let Some(wrong) = wrong {
                    tracing::error!(
                        wrong,
                        "Finance's ledger is not whole: nothing is booked and nothing licensed until it is"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "whether Finance's ledger is whole is not known"),
        }
        if !pause(&mut ended, BOOKS).await {
            return;
        }
    }
}

async fn revocations(bench: Arc<Bench>, mut ended: watch::Receiver<bool>) {
    loop {
        if let Err(error) = lists::step(&bench.shop, &bench.signer, &bench.lists).await {
            tracing::warn!(%error, "the revocation list is not renewed yet");
        }
        if !pause(&mut ended, LISTS).await {
            return;
        }
    }
}
