//! The store in Postgres and the one in memory are the same: random commands are given to both, and all that they answer and hold is compared.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use jiff_sqlx::ToSqlx;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sqlx::{Executor, PgPool};
use uuid::Uuid;
use vitrine_api::{
    edges::{
        attempt, finance, licence,
        observe::{self, Observed, SeenPayment, SeenRefund},
        place::{Offer, Want},
        refund,
    },
    order::{Order, Session, Task},
    seams::{By, Claim, Event, Job, Placing, Store, StoreError},
    store::postgres::{MIGRATIONS, Shop},
};
use vitrine_commerce::{
    facts::{self, Funds, PaymentState, RefundState, UnitId},
    licence::Grant,
    money::{Currency, Money},
    price::Tax,
};
use vitrine_shop_tests::{
    house::Keys,
    model::Model,
    postgres::{database, server},
};

const CURRENCIES: [&str; 2] = ["EUR", "JPY"];
const SKUS: [&str; 3] = ["chart", "gift", "notes"];
const MINORS: [i64; 3] = [1700, 0, 1000];
const LEASE: Duration = Duration::from_secs(60);

/// Sets the clock of the database, where a function stands for it.
async fn set(pool: &PgPool, now: Timestamp) {
    sqlx::query("UPDATE test_clock SET at = $1")
        .bind(now.to_sqlx())
        .execute(pool)
        .await
        .unwrap();
}

fn epoch() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

struct Pair {
    shop: Shop,
    model: Model,
    pool: PgPool,
    keys: Keys,
}

impl Pair {
    async fn new() -> Self {
        let database = database(server(), &MIGRATIONS).await;
        let mut connection = database.connect().await;
        connection
            .execute(
                "CREATE TABLE test_clock (at timestamptz NOT NULL); INSERT INTO test_clock VALUES (now());
                GRANT SELECT, UPDATE ON test_clock TO vitrine_api;
                CREATE OR REPLACE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM public.test_clock';",
            )
            .await
            .unwrap();
        let keys = Keys::default();
        let random = Arc::new(AtomicU64::new(0));
        let pool = database.pool(Some("vitrine_api"), 4).await;
        let shop = Shop::new(pool.clone(), keys.house()).with_random(Arc::new(move || {
            u128::from(random.fetch_add(1, Ordering::Relaxed) + 1)
        }));
        let model = Model::new(keys.house(), epoch());
        let pair = Self {
            shop,
            model,
            pool,
            keys,
        };
        set(&pair.pool, epoch()).await;
        for (place, sku) in SKUS.iter().enumerate() {
            sqlx::query("INSERT INTO shop.products VALUES ($1, $2, 1, 'acme', $1, '>=1', '{\"entitlements\":[]}', true, now())")
                .bind(sku)
                .bind(Uuid::from_u128(place as u128))
                .execute(&mut connection)
                .await
                .unwrap();
            for code in CURRENCIES {
                let currency: Currency = code.parse().unwrap();
                let (amount, tax) = (
                    Money::new(MINORS[place], currency),
                    Tax {
                        rate_ppm: 190_000,
                        included: code == "EUR",
                    },
                );
                let (price, _) = pair.shop.add_price(sku, amount, tax).await.unwrap();
                let offer = Offer {
                    sku: (*sku).to_owned(),
                    title: (*sku).to_owned(),
                    seller: "acme".to_owned(),
                    versions: ">=1".to_owned(),
                    grant: Grant::default(),
                    price,
                    amount,
                    tax,
                };
                pair.model
                    .state()
                    .offers
                    .insert(((*sku).to_owned(), code.to_owned()), offer);
            }
        }
        pair
    }
}

/// What is given to both.
#[derive(Clone, Debug)]
enum Command {
    Account(u8),
    Place(Placing),
    Begin(Uuid),
    Customer(Uuid, String),
    Made(Uuid, u32, Session),
    Close(Uuid),
    See(Uuid, Observed),
    SeeBy(Claim<Event>, Uuid, Observed),
    Acknowledge(Uuid, String, Vec<u8>),
    Freeze(Uuid, UnitId),
    Sign(Uuid, UnitId, [u8; 64]),
    Refund(Uuid, Uuid, BTreeSet<UnitId>),
    Name(Uuid, Uuid, BTreeSet<UnitId>),
    Receive(Event),
    ClaimEvent,
    ClaimJob,
    JobDone(Claim<Job>, Uuid, Observed),
    PutOffEvent(Claim<Event>, Duration),
    PutOffJob(Claim<Job>, Duration),
    Ignore(Claim<Event>),
    OrderOf(String),
    Order(Uuid),
}

/// What one of them answers, as text. What a database says of itself is its own.
fn said<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    match answer {
        Err(StoreError::Broken(_)) => "broken".to_owned(),
        other => format!("{other:?}"),
    }
}

async fn give<S: Store>(store: &S, command: &Command) -> String {
    let by = By::Somebody("test");
    match command.clone() {
        Command::Account(who) => said(store.account("https://id.example", &format!("person{who}")).await),
        Command::Place(placing) => said(store.place(&placing).await),
        Command::Begin(order) => said(store.change(order, by, attempt::begin).await),
        Command::Customer(order, id) => said(
            store
                .change(order, by, |order, _| attempt::customer(order, &id))
                .await,
        ),
        Command::Made(order, n, session) => said(
            store
                .change(order, by, |order, _| attempt::made(order, n, &session))
                .await,
        ),
        Command::Close(order) => said(store.change(order, by, |order, _| attempt::close(order)).await),
        Command::See(order, seen) => said(
            store
                .change(order, by, |order, at| observe::apply(order, &seen, at))
                .await,
        ),
        Command::SeeBy(claim, order, seen) => said(
            store
                .change(order, By::Event(&claim), |order, at| {
                    observe::apply(order, &seen, at)
                })
                .await,
        ),
        Command::Acknowledge(order, key, note) => said(
            store
                .change(order, by, |order, at| {
                    finance::acknowledge(order, &key, &note, at)
                })
                .await,
        ),
        Command::Freeze(order, unit) => said(
            store
                .change(order, by, |order, at| licence::freeze(order, unit, at))
                .await,
        ),
        Command::Sign(order, unit, signature) => said(
            store
                .change(order, by, |order, _| licence::signed(order, unit, &signature))
                .await,
        ),
        Command::Refund(order, id, units) => said(
            store
                .change(order, by, |order, at| refund::ask(order, id, &units, "test", at))
                .await,
        ),
        Command::Name(order, id, units) => said(
            store
                .change(order, by, |order, _| refund::name(order, id, &units))
                .await,
        ),
        Command::Receive(event) => said(store.receive(&[(event.clone(), "0".repeat(64))]).await),
        Command::ClaimEvent => said(store.claim_event(LEASE).await),
        Command::ClaimJob => said(store.claim_job(LEASE).await),
        Command::JobDone(claim, order, seen) => said(
            store
                .change(order, By::Job(&claim), |order, at| {
                    observe::apply(order, &seen, at)
                })
                .await,
        ),
        Command::PutOffEvent(claim, wait) => said(store.put_off_event(&claim, wait).await),
        Command::PutOffJob(claim, wait) => said(store.put_off_job(&claim, wait).await),
        Command::Ignore(claim) => said(store.ignore(&claim).await),
        Command::OrderOf(object) => said(store.order_of(&object).await),
        Command::Order(order) => said(store.order(order).await),
    }
}

/// What a history has come to, from which what follows is drawn.
struct History {
    rng: StdRng,
    orders: Vec<Uuid>,
    events: Vec<Claim<Event>>,
    jobs: Vec<Claim<Job>>,
    entries: u64,
    made: u32,
}

impl History {
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
            if rng.random_bool(0.98) {
                order.id.as_u128()
            } else {
                99
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

    async fn next(&mut self, pair: &Pair) -> Command {
        let placed = self.orders.choose(&mut self.rng).copied();
        let Some(id) = placed.filter(|_| self.rng.random_bool(0.93)) else {
            return if self.rng.random_bool(0.3) {
                Command::Account(self.rng.random_range(0..3))
            } else {
                Command::Place(self.placing())
            };
        };
        let order = pair.model.order(id).await.unwrap();
        let (event, job) = (
            self.events.choose(&mut self.rng).cloned(),
            self.jobs.choose(&mut self.rng).cloned(),
        );
        let wait = Duration::from_secs(self.rng.random_range(0..90));
        match self.rng.random_range(0..22) {
            0 => Command::Begin(id),
            1 => Command::Customer(id, format!("cus_{}", order.buyer.account)),
            2 | 3 => match order.attempts.last_key_value() {
                Some((n, _)) => Command::Made(id, *n, session(&order, *n)),
                None => Command::Begin(id),
            },
            4 if self.rng.random_bool(0.2) => Command::Close(id),
            5..=7 => {
                let seen = self.seen(&order);
                Command::See(id, seen)
            }
            8 | 9 => match order.bookings.iter().find(|(_, booking)| booking.ack.is_none()) {
                Some((key, booking)) => {
                    self.entries += 1;
                    Command::Acknowledge(id, key.clone(), pair.keys.receipt(&booking.request, self.entries))
                }
                None => Command::Order(id),
            },
            10 | 11 => {
                let licensable = order.tasks.iter().find_map(|task| match task {
                    Task::License(unit) => Some(*unit),
                    _ => None,
                });
                let unit = licensable.unwrap_or_else(|| self.unit());
                Command::Freeze(id, unit)
            }
            12 | 13 => match order
                .licences
                .iter()
                .find(|(_, licence)| licence.signature.is_none())
            {
                Some((unit, licence)) => {
                    Command::Sign(id, *unit, pair.keys.licences.sign(&licence.text).unwrap())
                }
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
                    let seen = self.seen(&order);
                    Command::SeeBy(claim, id, seen)
                }
                Some(claim) if self.rng.random_bool(0.5) => Command::PutOffEvent(claim, wait),
                Some(claim) => Command::Ignore(claim),
                None => Command::ClaimEvent,
            },
            20 => match job {
                Some(claim) if self.rng.random_bool(0.6) => {
                    let seen = self.seen(&order);
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

/// Gives one history to both.
async fn same(seed: u64, length: usize) {
    let pair = Pair::new().await;
    let mut history = History {
        rng: StdRng::seed_from_u64(seed),
        orders: vec![],
        events: vec![],
        jobs: vec![],
        entries: 0,
        made: 0,
    };
    let mut now = epoch();
    for step in 0..length {
        if history.rng.random_bool(0.2) {
            now += SignedDuration::from_secs(history.rng.random_range(0..1200));
            set(&pair.pool, now).await;
            pair.model.state().now = now;
        }
        let command = history.next(&pair).await;
        match &command {
            // Both claim the same; what is claimed is given back later, or when another has it.
            Command::ClaimEvent => {
                let (of_shop, of_model) = (
                    pair.shop.claim_event(LEASE).await,
                    pair.model.claim_event(LEASE).await,
                );
                assert_eq!(of_shop, of_model, "seed {seed}, step {step}: {command:?}");
                history.events.extend(of_model.unwrap());
            }
            Command::ClaimJob => {
                let (of_shop, of_model) = (
                    pair.shop.claim_job(LEASE).await,
                    pair.model.claim_job(LEASE).await,
                );
                assert_eq!(of_shop, of_model, "seed {seed}, step {step}: {command:?}");
                history.jobs.extend(of_model.unwrap());
            }
            command => {
                let before = pair.model.state().orders();
                let of_shop = give(&pair.shop, command).await;
                if of_shop == "broken" {
                    // The schema refuses more than edges do: one payment of two orders, say. Then nothing has changed.
                    for (id, order) in before {
                        assert_eq!(
                            pair.shop.order(id).await.as_ref(),
                            Ok(&order),
                            "seed {seed}, step {step}: {command:?}"
                        );
                    }
                    // The edge was taken there.
                    pair.model.state().random += 1;
                    continue;
                }
                let of_model = give(&pair.model, command).await;
                assert_eq!(of_shop, of_model, "seed {seed}, step {step}: {command:?}");
                if let (Command::Place(placing), true) = (command, of_shop.starts_with("Ok")) {
                    history.orders.push(placing.id);
                }
            }
        }
        let orders = pair.model.state().orders();
        for (id, order) in &orders {
            let read = pair.shop.order(*id).await.unwrap();
            assert_eq!(&read, order, "seed {seed}, step {step}: {command:?}");
        }
    }
    let audit = pair.model.state().audit.clone();
    for (order, news) in audit {
        let rows: Vec<(String, String, serde_json::Value)> =
            sqlx::query_as("SELECT actor, kind, body FROM shop.audit WHERE aggregate = $1 ORDER BY number")
                .bind(order)
                .fetch_all(&pair.pool)
                .await
                .unwrap();
        let news: Vec<_> = news
            .into_iter()
            .map(|one| (one.actor, one.kind.to_owned(), one.body))
            .collect();
        assert_eq!(rows, news, "seed {seed}: the audit log of {order}");
    }
}

#[tokio::test]
async fn random_commands_have_the_same_answers_in_postgres_and_in_memory() {
    let seeds = std::env::var("VITRINE_STORE_SEEDS").map_or(6, |text| text.parse().unwrap());
    for seed in 0..seeds {
        same(seed, 150).await;
    }
}
