//! What is outside of a shop, with all that goes wrong there: Stripe, Finance and the signer, behind the seams that flows know. Each call has a place
//! before its effect and one after it, at which it is lost, or its process ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use uuid::Uuid;
use vitrine_api::{
    edges::{At, Refusal, attempt::Begun},
    order::{Call, Order, Session},
    outside::stripe::reading::{self, Ask},
    seams::{
        By, Claim, Event, EventPage, Finance, Job, Outside, Placing, Read, Signer, Store, StoreError,
        Stripe as StripeSeam,
    },
};
use vitrine_commerce::facts::{self, OrderStatus};
use vitrine_signer::judge::{Row, judge};
use vitrine_stripe::{
    form,
    sim::{Account, Act, Request, Response, Stripe},
};

use super::executor::Clock;
use crate::house::Keys;

/// How likely a call goes wrong, and how.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// It is lost before it takes effect.
    pub lost: f64,
    /// It takes effect, and its answer is lost.
    pub unheard: f64,
    /// Somebody asks to wait.
    pub too_often: f64,
    /// What is read is as it was a while ago.
    pub stale: f64,
    /// An answer is forged.
    pub forged: f64,
    /// A clock that is not ours jumps.
    pub jumps: f64,
}

/// So much, in seconds, a clock is ahead of the scheduler's or behind it: five minutes are what signatures of webhooks allow.
const SKEW: i64 = 300;

impl Faults {
    /// None.
    pub const NONE: Self = Self {
        lost: 0.0,
        unheard: 0.0,
        too_often: 0.0,
        stale: 0.0,
        forged: 0.0,
        jumps: 0.0,
    };
    /// Many.
    pub const MANY: Self = Self {
        lost: 0.06,
        unheard: 0.06,
        too_often: 0.02,
        stale: 0.1,
        forged: 0.02,
        jumps: 0.005,
    };
}

/// All that is outside.
pub struct Outer {
    rng: StdRng,
    /// What goes wrong now.
    pub faults: Faults,
    /// Whether nothing does any more.
    pub is_calm: bool,
    /// Stripe: the truth of what was paid.
    pub stripe: Stripe,
    /// By how much its clock is ahead.
    stripe_ahead: SignedDuration,
    /// By how much the store's clock is ahead.
    pub store_ahead: SignedDuration,
    /// What sessions and payments said before something happened, the oldest first.
    past: BTreeMap<String, Vec<Read>>,
    /// Finance's entries by key: request and receipt.
    pub entries: BTreeMap<String, (Vec<u8>, Vec<u8>)>,
    /// Which effect had which fault, and how often.
    pub coverage: BTreeMap<(&'static str, &'static str), u64>,
    /// What became of events: its kind, where its order stood, and the fault.
    pub handled: BTreeMap<Cell, u64>,
    /// What was told of, for the trace.
    pub said: Vec<String>,
    /// Orders that were placed.
    pub orders: Vec<Uuid>,
}

/// A kind of event, where its order stood when it was handled, and what went wrong with that.
pub type Cell = (String, OrderStatus, &'static str);

/// The world, as each process sees it.
#[derive(Clone)]
pub struct World {
    /// What is outside.
    pub outer: Arc<Mutex<Outer>>,
    /// What time it is.
    pub clock: Clock,
    /// Whose keys there are.
    pub keys: Arc<Keys>,
}

/// On a page; few, so that there are several pages.
const EVENTS: usize = 5;

/// Stripe's secret key.
const KEY: &str = "sk_test_simulation";

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Heard,
    Lost,
    Unheard,
    TooOften,
}

impl World {
    /// A world in which nothing has happened.
    pub fn new(seed: u64, clock: Clock, keys: Arc<Keys>, faults: Faults) -> Self {
        let account = Account {
            key: KEY.to_owned(),
            livemode: false,
            refunds_wait: true,
            pages: "https://pay.example".to_owned(),
        };
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let outer = Outer {
            faults,
            is_calm: false,
            stripe: Stripe::new(account),
            stripe_ahead: skew(&mut rng),
            store_ahead: skew(&mut rng),
            rng,
            past: BTreeMap::new(),
            entries: BTreeMap::new(),
            coverage: BTreeMap::new(),
            handled: BTreeMap::new(),
            said: vec![],
            orders: vec![],
        };
        Self {
            outer: Arc::new(Mutex::new(outer)),
            clock,
            keys,
        }
    }

    /// What is outside.
    pub fn outer(&self) -> MutexGuard<'_, Outer> {
        self.outer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets somebody do something at Stripe, if it can be done as things are. What was so before, may still be told.
    pub fn act(&self, act: &Act) {
        let mut outer = self.outer();
        let now = outer.by_stripe(self.clock.now());
        outer.remember(now);
        outer.said.push(format!("{act:?}"));
        let _ = outer.stripe.act(act, now.as_second());
    }

    /// What becomes of it; where nobody asks to wait, `refused` is what happens instead.
    fn fate(&self, of: &'static str, refused: &'static str) -> (Fate, &'static str) {
        let mut outer = self.outer();
        outer.jump();
        let Faults {
            lost,
            unheard,
            too_often,
            ..
        } = outer.faults;
        let drawn: f64 = outer.rng.random();
        let (fate, name) = match drawn {
            drawn if drawn < lost => (Fate::Lost, "lost"),
            drawn if drawn < lost + unheard => (Fate::Unheard, "unheard"),
            drawn if drawn < lost + unheard + too_often => (Fate::TooOften, refused),
            _ => (Fate::Heard, "heard"),
        };
        *outer.coverage.entry((of, name)).or_default() += 1;
        outer.said.push(format!("{of} {name}"));
        (fate, name)
    }

    /// A call to somebody outside, whose effect is at one moment.
    async fn call<T>(
        &self,
        who: &'static str,
        of: &'static str,
        effect: impl FnOnce(&mut Outer, Timestamp) -> Result<T, Outside>,
    ) -> Result<T, Outside> {
        let lost = || Outside::Unknown {
            who,
            why: "lost".to_owned(),
        };
        self.clock.turn().await;
        let (fate, _) = self.fate(of, "too often");
        match fate {
            Fate::Lost => return Err(lost()),
            Fate::TooOften => {
                return Err(Outside::TooOften {
                    who,
                    wait: Some(Duration::from_secs(5)),
                });
            }
            Fate::Heard | Fate::Unheard => {}
        }
        let answer = {
            let mut outer = self.outer();
            let now = outer.by_stripe(self.clock.now());
            effect(&mut outer, now)
        };
        self.clock.turn().await;
        if fate == Fate::Unheard {
            Err(lost())
        } else {
            answer
        }
    }
}

fn answered(response: Response) -> Result<Value, Outside> {
    if response.status < 400 {
        return Ok(response.body);
    }
    let error = &response.body["error"];
    Err(Outside::Refused {
        who: "Stripe",
        code: error["code"].as_str().unwrap_or("none").to_owned(),
        why: error["message"].to_string(),
    })
}

fn skew(rng: &mut StdRng) -> SignedDuration {
    SignedDuration::from_secs(rng.random_range(-SKEW..=SKEW))
}

impl Outer {
    /// What Stripe's clock says.
    fn by_stripe(&self, now: Timestamp) -> Timestamp {
        now + self.stripe_ahead
    }

    /// Now and then a clock is set.
    fn jump(&mut self) {
        let jumps = self.faults.jumps;
        if jumps > 0.0 && self.rng.random_bool(jumps) {
            self.stripe_ahead = skew(&mut self.rng);
            self.said.push("Stripe's clock jumps".to_owned());
        }
        if jumps > 0.0 && self.rng.random_bool(jumps) {
            self.store_ahead = skew(&mut self.rng);
            self.said.push("the store's clock jumps".to_owned());
        }
    }

    fn request(
        &mut self,
        method: &str,
        path: &str,
        parameters: &str,
        key: Option<&str>,
        now: Timestamp,
    ) -> Result<Value, Outside> {
        let (query, body) = if method == "GET" {
            (parameters, "")
        } else {
            ("", parameters)
        };
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            body: body.to_owned(),
            key: Some(KEY.to_owned()),
            idempotency_key: key.map(str::to_owned),
        };
        answered(self.stripe.step(&request, now.as_second()))
    }

    fn remember(&mut self, now: Timestamp) {
        let sessions = self.stripe.sessions().map(|session| session.id.clone());
        let known: Vec<_> = sessions
            .chain(self.stripe.intents().map(|intent| intent.id.clone()))
            .collect();
        for id in known {
            if let Ok(Some(read)) = self.read(&id, now) {
                let past = self.past.entry(id).or_default();
                if past.last() != Some(&read) {
                    past.push(read);
                }
            }
        }
    }

    fn post(&mut self, call: &Call, now: Timestamp) -> Result<Value, Outside> {
        self.request("POST", &call.path, &call.body, Some(&call.key), now)
    }

    /// What it says of an object at this moment.
    fn read(&mut self, object: &str, now: Timestamp) -> Result<Option<Read>, Outside> {
        let asked = Moment {
            outer: Mutex::new(self),
            now,
        };
        Runs::AtOnce.run(reading::read(&asked, object))
    }
}

/// Stripe at one moment: all that is asked is answered in it.
struct Moment<'a> {
    outer: Mutex<&'a mut Outer>,
    now: Timestamp,
}

impl Ask for Moment<'_> {
    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, Outside> {
        let parameters = form::write(parameters.iter().copied());
        let mut outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        outer.request("GET", path, &parameters, None, self.now)
    }
}

impl StripeSeam for World {
    async fn make_customer(&self, call: &Call) -> Result<String, Outside> {
        self.call("Stripe", "make customer", |outer, now| {
            Ok(outer.post(call, now)?["id"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        })
        .await
    }

    async fn make_session(&self, call: &Call) -> Result<Session, Outside> {
        self.call("Stripe", "make session", |outer, now| {
            reading::session(outer.post(call, now)?)
        })
        .await
    }

    async fn expire_session(&self, id: &str) -> Result<(), Outside> {
        let expired = self.call("Stripe", "expire session", |outer, now| {
            outer.request(
                "POST",
                &format!("/v1/checkout/sessions/{id}/expire"),
                "",
                Some(&format!("expire:{id}")),
                now,
            )
        });
        match expired.await {
            Ok(_) | Err(Outside::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn make_refund(&self, call: &Call) -> Result<(), Outside> {
        self.call("Stripe", "make refund", |outer, now| {
            outer.post(call, now).map(drop)
        })
        .await
    }

    async fn read(&self, object: &str) -> Result<Option<Read>, Outside> {
        self.call("Stripe", "read", |outer, now| {
            let read = outer.read(object, now)?;
            let payment = read
                .as_ref()
                .and_then(|(_, seen)| Some(seen.payments.first()?.id.clone()));
            let of = if object.starts_with("cs_") {
                Some(object.to_owned())
            } else {
                payment
            };
            let past = of.and_then(|of| outer.past.get(&of)).cloned().unwrap_or_default();
            let stale = outer.faults.stale;
            if !past.is_empty() && outer.rng.random_bool(stale) {
                let at = outer.rng.random_range(0..past.len());
                *outer.coverage.entry(("read", "stale")).or_default() += 1;
                return Ok(Some(past[at].clone()));
            }
            Ok(read)
        })
        .await
    }

    async fn events(&self, since: Timestamp, after: Option<&str>) -> Result<EventPage, Outside> {
        self.call("Stripe", "events", |outer, _| {
            let since = since.as_second();
            let newest_first = outer.stripe.events().iter().rev();
            let told = newest_first
                .filter(|event| event.created >= since)
                .skip_while(|event| after.is_some_and(|after| event.id != after))
                .skip(usize::from(after.is_some()));
            let mut events: Vec<_> = told
                .take(EVENTS + 1)
                .map(|event| reading::event(event.json.clone()))
                .collect::<Result<_, _>>()?;
            let has_more = events.len() > EVENTS;
            events.truncate(EVENTS);
            Ok(EventPage { events, has_more })
        })
        .await
    }
}

impl World {
    /// Has Finance write an entry by a key that need not be the entry's own.
    ///
    /// # Errors
    /// If it is not heard of, or there is another one.
    pub async fn book_as(&self, key: &str, request: &[u8]) -> Result<Vec<u8>, Outside> {
        let keys = self.keys.clone();
        self.call("Finance", "post entry", |outer, _| {
            if let Some((known, receipt)) = outer.entries.get(key) {
                return if known == request {
                    Ok(receipt.clone())
                } else {
                    Err(Outside::Refused {
                        who: "Finance",
                        code: "entry-differs".to_owned(),
                        why: key.to_owned(),
                    })
                };
            }
            let sequence = outer.entries.len() as u64 + 1;
            let receipt = keys.receipt(request, sequence);
            outer
                .entries
                .insert(key.to_owned(), (request.to_vec(), receipt.clone()));
            let forged = outer.faults.forged;
            if outer.rng.random_bool(forged) {
                *outer.coverage.entry(("post entry", "forged")).or_default() += 1;
                return Ok(Keys::strangers().receipt(request, sequence));
            }
            Ok(receipt)
        })
        .await
    }
}

impl Finance for World {
    async fn post(&self, key: &str, request: &[u8]) -> Result<Vec<u8>, Outside> {
        self.book_as(key, request).await
    }

    async fn find(&self, key: &str) -> Result<Option<Vec<u8>>, Outside> {
        self.call("Finance", "find entry", |outer, _| {
            Ok(outer.entries.get(key).map(|(_, receipt)| receipt.clone()))
        })
        .await
    }
}

/// A store as a process sees it: each transaction is there whole or not at all, and whether it is may not be known.
#[derive(Clone)]
pub struct Disk<S> {
    /// What is kept.
    pub store: S,
    /// The world it is in.
    pub world: World,
    /// Runs what the store does, to its end.
    pub runs: Runs,
}

/// Runs a future to its end: at once for what is in memory, on a runtime for a real database.
#[derive(Clone)]
pub enum Runs {
    /// It is ready when it is polled.
    AtOnce,
    /// It waits for a database.
    On(Arc<tokio::runtime::Runtime>),
}

impl Runs {
    /// Runs it.
    ///
    /// # Panics
    /// If something in memory waits.
    pub fn run<T>(&self, what: impl Future<Output = T>) -> T {
        match self {
            Self::AtOnce => {
                let mut what = std::pin::pin!(what);
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                match what.as_mut().poll(&mut context) {
                    std::task::Poll::Ready(answer) => answer,
                    std::task::Poll::Pending => panic!("a store in memory waits for something"),
                }
            }
            Self::On(runtime) => runtime.block_on(what),
        }
    }
}

impl<S: Store> Disk<S> {
    async fn transaction<T>(
        &self,
        of: &'static str,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.known(of, what).await.0
    }

    /// The same, and what has gone wrong.
    async fn known<T>(
        &self,
        of: &'static str,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> (Result<T, StoreError>, &'static str) {
        let lost = || StoreError::Unknown("lost".to_owned());
        self.world.clock.turn().await;
        let (fate, name) = self.world.fate(of, "serialisation failure");
        if matches!(fate, Fate::Lost | Fate::TooOften) {
            return (Err(lost()), name);
        }
        let answer = self.runs.run(what);
        self.world.clock.turn().await;
        match answer {
            Err(StoreError::Fenced(_)) => (answer, "fenced"),
            _ if fate == Fate::Unheard => (Err(lost()), name),
            _ => (answer, name),
        }
    }
}

impl<S: Store> Store for Disk<S> {
    async fn account(&self, issuer: &str, subject: &str) -> Result<Uuid, StoreError> {
        self.transaction("account", self.store.account(issuer, subject))
            .await
    }

    async fn place(&self, placing: &Placing) -> Result<Option<Begun>, StoreError> {
        self.transaction("place", self.store.place(placing)).await
    }

    async fn order(&self, id: Uuid) -> Result<Order, StoreError> {
        self.transaction("order", self.store.order(id)).await
    }

    async fn change<T: Send>(
        &self,
        id: Uuid,
        by: By<'_>,
        edge: impl FnOnce(&mut Order, &At<'_>) -> Result<T, Refusal> + Send,
    ) -> Result<T, StoreError> {
        let of = match by {
            By::Somebody(_) => "change",
            By::Event(_) => "apply event",
            By::Job(_) => "apply task",
        };
        let By::Event(claim) = by else {
            return self.transaction(of, self.store.change(id, by, edge)).await;
        };
        let stood = self.runs.run(self.store.order(id)).ok();
        let (answer, fault) = self.known(of, self.store.change(id, by, edge)).await;
        if let Some(stood) = stood {
            let cell = (claim.what.kind.clone(), facts::status(&stood.facts()), fault);
            *self.world.outer().handled.entry(cell).or_default() += 1;
        }
        answer
    }

    async fn order_of(&self, object: &str) -> Result<Option<Uuid>, StoreError> {
        self.transaction("order of", self.store.order_of(object)).await
    }

    async fn receive(&self, told: &[(Event, String)]) -> Result<u64, StoreError> {
        self.transaction("receive", self.store.receive(told)).await
    }

    async fn claim_event(&self, lease: Duration) -> Result<Option<Claim<Event>>, StoreError> {
        self.transaction("claim event", self.store.claim_event(lease))
            .await
    }

    async fn claim_job(&self, lease: Duration) -> Result<Option<Claim<Job>>, StoreError> {
        self.transaction("claim task", self.store.claim_job(lease)).await
    }

    async fn put_off_event(&self, claim: &Claim<Event>, wait: Duration) -> Result<(), StoreError> {
        self.transaction("put off event", self.store.put_off_event(claim, wait))
            .await
    }

    async fn put_off_job(&self, claim: &Claim<Job>, wait: Duration) -> Result<(), StoreError> {
        self.transaction("put off task", self.store.put_off_job(claim, wait))
            .await
    }

    async fn ignore(&self, claim: &Claim<Event>) -> Result<(), StoreError> {
        self.transaction("ignore", self.store.ignore(claim)).await
    }
}

/// The signer with its own look at the store.
#[derive(Clone)]
pub struct Desk<S> {
    /// What is kept.
    pub disk: Disk<S>,
}

impl<S: Store> Signer for Desk<S> {
    async fn sign(&self, licence: Uuid) -> Result<[u8; 64], Outside> {
        let (disk, keys) = (&self.disk, self.disk.world.keys.clone());
        // Which order it is of is in its text, which is checked; here the store is asked for all.
        let orders = disk.world.outer().orders.clone();
        let row = disk.runs.run(row(&disk.store, &orders, licence));
        disk.world
            .call("the signer", "sign", move |_, _| {
                let refused = |why: String| Outside::Refused {
                    who: "the signer",
                    code: "licence-refused".to_owned(),
                    why,
                };
                let row = row.ok_or_else(|| refused(format!("no licence {licence}")))?;
                judge(
                    &row,
                    std::slice::from_ref(keys.finance.key()),
                    keys.licences.key(),
                )
                .map_err(|bad| refused(bad.to_string()))?;
                Ok(keys.licences.sign(&row.text).unwrap())
            })
            .await
    }
}

async fn row<S: Store>(store: &S, orders: &[Uuid], licence: Uuid) -> Option<Row> {
    let mut found = None;
    for id in orders {
        let order = store.order(*id).await.ok();
        found = found.or(order.filter(|order| order.licences.values().any(|frozen| frozen.id == licence)));
    }
    let order = found?;
    let (unit, frozen) = order.licences.iter().find(|(_, frozen)| frozen.id == licence)?;
    let line = order.line(*unit)?;
    let mut acknowledged = order
        .bookings
        .values()
        .filter_map(|booking| Some((&booking.request, booking.ack.as_ref()?)));
    let (request, receipt) = acknowledged.find(|(_, ack)| ack.id == frozen.ack)?;
    Some(Row {
        id: licence,
        item: line.item,
        unit: unit.unit,
        order: order.id,
        total: order.sum.total,
        buyer: (order.buyer.issuer.clone(), order.buyer.subject.clone()),
        sku: (line.sku.clone(), line.versions.clone()),
        grant: line.grant.clone(),
        request: request.clone(),
        receipt: receipt.note.clone(),
        text: frozen.text.clone(),
        key: frozen.key.clone(),
    })
}
