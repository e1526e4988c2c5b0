//! A store in memory, with a clock that is set: what Postgres is compared with, and what the simulation keeps its orders in. Its order of work is
//! that of Postgres: ordered maps only.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;
use vitrine_api::{
    edges::{
        self, At, House, Refusal,
        attempt::Begun,
        place::{self, Offer},
    },
    order::{Buyer, News, Order, Task, account_id},
    seams::{By, Claim, Event, Job, Placing, Store, StoreError},
};
use vitrine_commerce::{licence::Grant, money::Money, price::Tax};

/// A store.
#[derive(Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    house: Arc<House>,
}

/// All that is in it.
#[derive(Clone, Debug)]
pub struct State {
    /// What time it is.
    pub now: Timestamp,
    /// Products with their prices, by sku and currency.
    pub offers: BTreeMap<(String, String), Offer>,
    accounts: BTreeMap<Uuid, Buyer>,
    orders: BTreeMap<Uuid, (Order, String)>,
    inbox: BTreeMap<String, Received>,
    tasks: BTreeMap<(Uuid, String), Waiting>,
    fences: i64,
    /// How often random bits were drawn, which are their number, …
    pub random: u128,
    /// … and by how much it grows each time: by nothing where all are to be the same.
    pub draw: u128,
    /// What has happened, by order.
    pub audit: BTreeMap<Uuid, Vec<News>>,
}

#[derive(Clone, Debug)]
struct Received {
    event: Event,
    handled: Option<bool>,
    waiting: Waiting,
}

#[derive(Clone, Debug)]
struct Waiting {
    leased_until: Option<Timestamp>,
    fence: i64,
    tries: u32,
    next_try_at: Timestamp,
}

impl Waiting {
    const fn from(next_try_at: Timestamp) -> Self {
        Self {
            leased_until: None,
            fence: 0,
            tries: 0,
            next_try_at,
        }
    }

    fn is_due(&self, now: Timestamp) -> bool {
        self.next_try_at <= now && self.leased_until.is_none_or(|until| until <= now)
    }

    fn put_off(&mut self, until: Timestamp) {
        self.leased_until = None;
        self.next_try_at = until;
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// When histories begin.
pub fn epoch() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

fn later(now: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

impl Model {
    /// An empty store.
    pub fn new(house: House, now: Timestamp) -> Self {
        let state = State {
            now,
            offers: BTreeMap::new(),
            accounts: BTreeMap::new(),
            orders: BTreeMap::new(),
            inbox: BTreeMap::new(),
            tasks: BTreeMap::new(),
            fences: 0,
            random: 0,
            draw: 1,
            audit: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            house: Arc::new(house),
        }
    }

    /// Another one of the same house, in which this is.
    #[must_use]
    pub fn at(&self, state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            house: self.house.clone(),
        }
    }

    /// Sells a product of the same name for so much, by the row of a price.
    pub fn sell(&self, sku: &str, price: Uuid, amount: Money, tax: Tax) {
        let offer = Offer {
            sku: sku.to_owned(),
            title: sku.to_owned(),
            seller: "acme".to_owned(),
            versions: ">=1".to_owned(),
            grant: Grant::default(),
            price,
            amount,
            tax,
        };
        let key = (sku.to_owned(), amount.currency.code().to_owned());
        self.state().offers.insert(key, offer);
    }

    /// All that is in it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// All orders, as they would be read.
    pub fn orders(&self) -> BTreeMap<Uuid, Order> {
        self.orders
            .keys()
            .filter_map(|id| Some((*id, self.read(*id).ok()?)))
            .collect()
    }

    fn settle(&mut self, before: Option<&Order>, mut after: Order, request: String) {
        let id = after.id;
        self.audit.entry(id).or_default().append(&mut after.news);
        if let Some(account) = self.accounts.get_mut(&after.buyer.account) {
            account.customer.clone_from(&after.buyer.customer);
        }
        let none = std::collections::BTreeSet::new();
        let was = before.map_or(&none, |before| &before.tasks);
        for task in was.difference(&after.tasks) {
            self.tasks.remove(&(id, task.to_string()));
        }
        for task in after.tasks.difference(was) {
            self.tasks.insert(
                (id, task.to_string()),
                Waiting::from(later(self.now, task.waits())),
            );
        }
        self.orders.insert(id, (after, request));
    }

    fn read(&self, id: Uuid) -> Result<Order> {
        let (order, _) = self
            .orders
            .get(&id)
            .ok_or_else(|| StoreError::Missing(format!("order {id}")))?;
        let mut order = order.clone();
        // One account has many orders.
        order.buyer = self.accounts[&order.buyer.account].clone();
        Ok(order)
    }

    fn at<'a>(&mut self, house: &'a House, actor: &'a str) -> At<'a> {
        self.random += self.draw;
        At {
            house,
            now: self.now,
            actor,
            random: self.random,
        }
    }

    fn waiting(&mut self, by: By<'_>) -> Option<&mut Waiting> {
        match by {
            By::Somebody(_) => None,
            By::Event(claim) => {
                let received = self.inbox.get_mut(&claim.what.id)?;
                (received.handled.is_none() && received.waiting.fence == claim.fence)
                    .then_some(&mut received.waiting)
            }
            By::Job(claim) => {
                let waiting = self
                    .tasks
                    .get_mut(&(claim.what.order, claim.what.task.to_string()))?;
                (waiting.fence == claim.fence).then_some(waiting)
            }
        }
    }

    fn handled(&mut self, claim: &Claim<Event>, ignored: bool) -> Result<()> {
        let received = self
            .inbox
            .get_mut(&claim.what.id)
            .filter(|received| received.handled.is_none() && received.waiting.fence == claim.fence);
        let received = received.ok_or_else(|| StoreError::Fenced(claim.what.id.clone()))?;
        received.handled = Some(ignored);
        received.waiting.leased_until = None;
        Ok(())
    }
}

fn of(by: By<'_>) -> String {
    match by {
        By::Somebody(who) => who.to_owned(),
        By::Event(claim) => claim.what.id.clone(),
        By::Job(claim) => claim.what.task.to_string(),
    }
}

impl Store for Model {
    async fn account(&self, issuer: &str, subject: &str) -> Result<Uuid> {
        let id = account_id(issuer, subject);
        self.state().accounts.entry(id).or_insert_with(|| Buyer {
            account: id,
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            customer: None,
        });
        Ok(id)
    }

    async fn place(&self, placing: &Placing) -> Result<Option<Begun>> {
        let mut state = self.state();
        let missing = || StoreError::Missing(format!("account {}", placing.account));
        let buyer = state
            .accounts
            .get(&placing.account)
            .cloned()
            .ok_or_else(missing)?;
        if let Some((_, request)) = state.orders.get(&placing.id) {
            return if *request == placing.request_sha256 {
                Ok(None)
            } else {
                Err(StoreError::Reused(format!("order {}", placing.id)))
            };
        }
        let code = placing.currency.code();
        let offers = state.offers.iter().filter(|((_, currency), _)| currency == code);
        let offers = offers
            .map(|((sku, _), offer)| (sku.clone(), offer.clone()))
            .collect();
        let mut order = place::place(placing.id, buyer, placing.currency, &placing.wants, &offers)?;
        let actor = format!("account:{}", placing.account);
        let at = state.at(&self.house, &actor);
        let begun = edges::take(&mut order, &at, place::placed)?;
        state.settle(None, order, placing.request_sha256.clone());
        Ok(Some(begun))
    }

    async fn order(&self, id: Uuid) -> Result<Order> {
        self.state().read(id)
    }

    async fn change<T: Send>(
        &self,
        id: Uuid,
        by: By<'_>,
        edge: impl FnOnce(&mut Order, &At<'_>) -> std::result::Result<T, Refusal> + Send,
    ) -> Result<T> {
        let mut state = self.state();
        let before = state.read(id)?;
        if !matches!(by, By::Somebody(_)) && state.waiting(by).is_none() {
            return Err(StoreError::Fenced(of(by)));
        }
        let actor = by.actor();
        let at = state.at(&self.house, &actor);
        let mut after = before.clone();
        let answer = edges::take(&mut after, &at, edge)?;
        let (_, request) = state.orders[&id].clone();
        state.settle(Some(&before), after, request);
        if let By::Event(claim) = by {
            state.handled(claim, false)?;
        }
        Ok(answer)
    }

    async fn order_of(&self, object: &str) -> Result<Option<Uuid>> {
        let state = self.state();
        let is_of = |order: &Order| {
            order.attempts.values().any(|attempt| {
                attempt
                    .session
                    .as_ref()
                    .is_some_and(|session| session.id == object)
            }) || order.payments.contains_key(object)
                || order
                    .refunds
                    .values()
                    .any(|refund| refund.stripe.as_deref() == Some(object))
                || order.disputes.contains_key(object)
        };
        Ok(state
            .orders
            .iter()
            .find(|(_, (order, _))| is_of(order))
            .map(|(id, _)| *id))
    }

    async fn receive(&self, told: &[(Event, String)]) -> Result<u64> {
        let mut state = self.state();
        let (now, before) = (state.now, state.inbox.len());
        for (event, _) in told {
            state.inbox.entry(event.id.clone()).or_insert_with(|| Received {
                event: event.clone(),
                handled: None,
                waiting: Waiting::from(now),
            });
        }
        Ok((state.inbox.len() - before) as u64)
    }

    async fn claim_event(&self, lease: Duration) -> Result<Option<Claim<Event>>> {
        let mut state = self.state();
        let now = state.now;
        let open = state
            .inbox
            .iter_mut()
            .filter(|(_, received)| received.handled.is_none() && received.waiting.is_due(now));
        let next = open.min_by_key(|(id, received)| (received.waiting.next_try_at, (*id).clone()));
        Ok(next.map(|(_, received)| {
            let waiting = &mut received.waiting;
            waiting.fence += 1;
            waiting.tries += 1;
            waiting.leased_until = Some(later(now, lease));
            Claim {
                what: received.event.clone(),
                fence: waiting.fence,
                tries: waiting.tries - 1,
            }
        }))
    }

    async fn claim_job(&self, lease: Duration) -> Result<Option<Claim<Job>>> {
        let mut state = self.state();
        let now = state.now;
        let fence = state.fences + 1;
        let due = state.tasks.iter_mut().filter(|(_, waiting)| waiting.is_due(now));
        let Some(((order, task), waiting)) =
            due.min_by_key(|(key, waiting)| (waiting.next_try_at, (*key).clone()))
        else {
            return Ok(None);
        };
        waiting.fence = fence;
        waiting.tries += 1;
        waiting.leased_until = Some(later(now, lease));
        let task: Task = task
            .parse()
            .map_err(|error| StoreError::Broken(format!("{error}")))?;
        let claim = Claim {
            what: Job { order: *order, task },
            fence,
            tries: waiting.tries - 1,
        };
        state.fences = fence;
        Ok(Some(claim))
    }

    async fn put_off_event(&self, claim: &Claim<Event>, wait: Duration) -> Result<()> {
        let mut state = self.state();
        let until = later(state.now, wait);
        let waiting = state
            .waiting(By::Event(claim))
            .ok_or_else(|| StoreError::Fenced(claim.what.id.clone()))?;
        waiting.put_off(until);
        Ok(())
    }

    async fn put_off_job(&self, claim: &Claim<Job>, wait: Duration) -> Result<()> {
        let mut state = self.state();
        let until = later(state.now, wait);
        if let Some(waiting) = state.waiting(By::Job(claim)) {
            waiting.put_off(until);
        }
        Ok(())
    }

    async fn ignore(&self, claim: &Claim<Event>) -> Result<()> {
        self.state().handled(claim, true)
    }
}
