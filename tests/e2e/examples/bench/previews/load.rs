//! Claims at times that were set before: nobody waits for an answer before the next one comes (open loop). Writes claims, watches them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use vitrine_e2e::dice::Dice;

use super::side::Side;

/// After the last arrival, what has no answer yet gets none.
const PATIENCE: Duration = Duration::from_secs(60);
/// Deletes at once, when what a measurement has left is cleared away.
const CLEARS: usize = 32;

/// When claims come, from the beginning.
#[derive(Clone, Debug)]
pub struct Arrivals(pub Vec<Duration>);

impl Arrivals {
    /// So many a second on average, each whenever it likes (Poisson), the same in every run of a seed.
    pub fn poisson(rate: f64, seconds: u64, seed: u64) -> Self {
        const SIDES: usize = 1 << 30;
        let mut dice = Dice::new(seed);
        let mut at = 0.0;
        let mut all = vec![];
        loop {
            #[expect(clippy::cast_precision_loss, reason = "30 bits fit")]
            let even = (dice.roll(SIDES) as f64 + 0.5) / SIDES as f64;
            at += -even.ln() / rate;
            if at >= seconds as f64 {
                return Self(all);
            }
            all.push(Duration::from_secs_f64(at));
        }
    }

    /// These, and others after so many seconds.
    pub fn then(mut self, others: &Self, seconds: u64) -> Self {
        let after = Duration::from_secs(seconds);
        self.0.extend(others.0.iter().map(|at| after + *at));
        self
    }

    /// One after the other in equal steps.
    pub fn even(count: u32, rate: f64) -> Self {
        Self(
            (0..count)
                .map(|n| Duration::from_secs_f64(f64::from(n) / rate))
                .collect(),
        )
    }

    /// All at once.
    pub fn at_once(count: usize) -> Self {
        Self(vec![Duration::ZERO; count])
    }
}

/// One claim, as who made it saw it. Times are from the beginning of its measurement.
#[derive(Clone, Debug)]
pub struct Claim {
    /// When it was to come.
    pub due: Duration,
    /// When its creation was sent.
    pub sent: Duration,
    /// When its creation was answered.
    pub created: Duration,
    /// When the watch told that it is ready, and whether it had to be made first.
    pub ready: Option<(Duration, bool)>,
    /// Until when it was waited for.
    pub given_up: Duration,
}

impl Claim {
    /// From the answer to its creation until it was ready, or nobody waited any more: the peer's own measure.
    pub fn after_create(&self) -> Duration {
        self.until().saturating_sub(self.created)
    }

    /// From when it was to come until it was ready, or nobody waited any more: what a visitor waits.
    pub fn in_all(&self) -> Duration {
        self.until().saturating_sub(self.due)
    }

    fn until(&self) -> Duration {
        self.ready.map_or(self.given_up, |(ready, _)| ready)
    }

    /// Whether it is ready, and had to be made first.
    pub fn is_cold(&self) -> bool {
        self.ready.is_some_and(|(_, cold)| cold)
    }

    /// By how much the generator of the load was late.
    pub fn late(&self) -> Duration {
        self.sent.saturating_sub(self.due)
    }
}

/// When a claim was ready, and whether it had to be made first.
type Ready = (Instant, bool);

#[derive(Default)]
struct Seen {
    ready: HashMap<String, Ready>,
    waiting: HashMap<String, oneshot::Sender<Ready>>,
}

impl Seen {
    fn see(&mut self, name: String, ready: Ready) {
        if let Some(waiting) = self.waiting.remove(&name) {
            // Who waited may have given up.
            let _ = waiting.send(ready);
        }
        self.ready.entry(name).or_insert(ready);
    }
}

/// Sees when claims are ready.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Watches all claims of a side, over a connection of its own. Those that are there are listed by then: a list of ten thousand, which
    /// the API server wrote while it served what was measured, was most of what a claim seemed to cost among them.
    pub async fn begin(side: &Side) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (for_task, side) = (seen.clone(), side.clone());
        let (list, listed) = oneshot::channel();
        let mut list = Some(list);
        let api = side.claims();
        let task = tokio::spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                let now = Instant::now();
                let mut seen = for_task.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(claim) | Event::InitApply(claim)) => {
                        if let Some(cold) = side.is_ready(&claim) {
                            seen.see(claim.name_any(), (now, cold));
                        }
                    }
                    Ok(Event::InitDone) => {
                        // Who began the watch may have ended.
                        list.take().map(|list| list.send(()));
                    }
                    Ok(Event::Delete(_) | Event::Init) => {}
                    Err(error) => eprintln!("the watch of claims: {error}"),
                }
            }
        });
        listed.await.unwrap();
        Self { seen, task }
    }

    /// When a claim is ready.
    pub async fn until_ready(&self, name: &str) -> Ready {
        let told = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ready) = seen.ready.get(name) {
                return *ready;
            }
            let (tell, told) = oneshot::channel();
            seen.waiting.insert(name.to_owned(), tell);
            told
        };
        told.await.unwrap()
    }
}

/// Makes the claims, each at its time, and says how each fared. `delete_after` is how long after its readiness each is deleted.
pub async fn run(
    side: &Side,
    watch: &Arc<Watch>,
    prefix: &str,
    arrivals: &Arrivals,
    delete_after: Option<Duration>,
) -> Vec<Claim> {
    let begun = Instant::now();
    let last = arrivals.0.last().copied().unwrap_or_default();
    let given_up = begun + last + PATIENCE;
    let claims = arrivals.0.iter().enumerate().map(|(number, due)| {
        let (side, watch, due) = (side.clone(), watch.clone(), *due);
        let name = format!("{prefix}-{number}");
        tokio::spawn(async move {
            tokio::time::sleep_until(begun + due).await;
            let sent = begun.elapsed();
            let api: Api<DynamicObject> = side.claims();
            let made = api.create(&PostParams::default(), &side.claim(&name)).await;
            made.unwrap_or_else(|error| panic!("claim {name}: {error}"));
            let created = begun.elapsed();
            let ready = tokio::time::timeout_at(given_up, watch.until_ready(&name))
                .await
                .ok();
            if let (Some(after), Some((ready, _))) = (delete_after, ready) {
                tokio::time::sleep_until(ready + after).await;
                let deleted = api.delete(&name, &DeleteParams::default()).await;
                deleted.unwrap_or_else(|error| panic!("delete claim {name}: {error}"));
            }
            Claim {
                ready: ready.map(|(ready, cold)| (ready.duration_since(begun), cold)),
                given_up: last + PATIENCE,
                due,
                sent,
                created,
            }
        })
    });
    let claims: Vec<_> = claims.collect();
    join_all(claims).await.into_iter().map(Result::unwrap).collect()
}

/// Deletes all claims, and waits until they are gone.
pub async fn clear(side: &Side, patience: Duration) {
    let api = side.claims();
    let begun = Instant::now();
    loop {
        let left = api.list_metadata(&ListParams::default()).await.unwrap().items;
        if left.is_empty() {
            return;
        }
        assert!(
            begun.elapsed() < patience,
            "{} claims are still there",
            left.len()
        );
        let asked = left
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none());
        futures::stream::iter(asked.map(ResourceExt::name_any))
            .for_each_concurrent(CLEARS, |name| {
                let api = api.clone();
                async move {
                    // It may be gone already.
                    let _ = api.delete(&name, &DeleteParams::default()).await;
                }
            })
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
