//! The shop's flows on a scheduler that a seed decides, with all that goes wrong: calls and commits that are lost before or after their effect, processes
//! that end at any await or sleep past their leases, answers that are old, forged, or told many times. What happens is a history; the same seed is
//! the same history.

mod broken;
pub mod cells;
mod executor;
mod oracle;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use uuid::Uuid;
use vitrine_api::{
    edges::{At, Refusal, observe, place::Want, refund},
    flows::{checkout, sweep::sweep, worker::Step},
    order::{Order, account_id},
    outside::stripe::reading,
    seams::{By, Placing, Store, StoreError},
};
use vitrine_commerce::{facts::UnitId, money::Money, price::Tax};
use vitrine_stripe::{object::DisputeStatus, sim::Act};

pub use broken::Broken;
pub use executor::{Clock, Executor, Odds, Stepped};
pub use oracle::Violation;
pub use world::{Cell, Desk, Disk, Faults, Runs, World};

use crate::{
    house::Keys,
    model::{Model, epoch},
};

/// Replicas of the shop.
const REPLICAS: u32 = 3;
/// The process of buyers, who do not crash with the shop.
const BUYERS: u32 = 100;
/// The process of Stripe and of banks.
const STRIPE: u32 = 101;
/// While things go wrong.
const STORMY: Odds = Odds {
    leaps: 0.02,
    crashes: 0.01,
};
/// Afterwards.
const CALM: Odds = Odds {
    leaps: 0.0,
    crashes: 0.0,
};
/// So many steps follow at most, in which everything has to come to rest.
const BOUND: u64 = 60_000;
/// In calm, this much time is enough for everything that waits: the longest pause is an hour, a session a little more, and an order is given up
/// after a day.
const REST: SignedDuration = SignedDuration::from_hours(36);
/// Who has nothing to do looks again after half a minute, and after twice as long each time.
const FIRST_IDLE: i64 = 30;
/// In seconds: no longer than this.
const LONGEST_IDLE: i64 = 3_600;

/// What a history is made of.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// What decides everything.
    pub seed: u64,
    /// What goes wrong outside.
    pub faults: Faults,
    /// What goes wrong inside.
    pub odds: Odds,
    /// For so many steps at least things go wrong, and for three times as many at most.
    pub storm: u64,
    /// How the shop is built wrongly.
    pub broken: Broken,
}

impl Choice {
    /// When histories begin.
    pub fn begins() -> Timestamp {
        epoch()
    }

    /// The usual: of all that may go wrong some of it, now seldom and now so often that two things in a row do. All of it always hides what
    /// needs only some of it (Groce and others, "Swarm testing", ISSTA 2012).
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5a12);
        let mut some = |usual: f64| {
            if rng.random_bool(0.5) {
                (usual * rng.random_range(-1.0..3.0_f64).exp2()).min(0.5)
            } else {
                0.0
            }
        };
        let many = Faults::MANY;
        Self {
            seed,
            faults: Faults {
                lost: some(many.lost),
                unheard: some(many.unheard),
                too_often: some(many.too_often),
                stale: some(many.stale),
                forged: some(many.forged),
                jumps: some(many.jumps),
            },
            odds: Odds {
                leaps: some(STORMY.leaps),
                crashes: some(STORMY.crashes),
            },
            storm: 300,
            broken: Broken::No,
        }
    }

    /// The smallest of this kind that is still wrong: without faults that it does not need, and with the shortest storm.
    #[must_use]
    pub fn shrunk(self) -> Self {
        let is_wrong = |choice: &Self| run(*choice).violation.is_some();
        let mut least = self;
        let smaller: [fn(&mut Self); 9] = [
            |choice| choice.odds.crashes = 0.0,
            |choice| choice.odds.leaps = 0.0,
            |choice| choice.faults.lost = 0.0,
            |choice| choice.faults.unheard = 0.0,
            |choice| choice.faults.too_often = 0.0,
            |choice| choice.faults.stale = 0.0,
            |choice| choice.faults.forged = 0.0,
            |choice| choice.faults.jumps = 0.0,
            |choice| choice.storm /= 2,
        ];
        for smaller in smaller {
            let mut tried = least;
            smaller(&mut tried);
            if is_wrong(&tried) {
                least = tried;
            }
        }
        least
    }
}

/// What a history has come to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it is known by.
    pub trace: u64,
    /// How many steps it had.
    pub steps: u64,
    /// What is wrong with it.
    pub violation: Option<Violation>,
    /// What happened how often: effect, and fault.
    pub coverage: BTreeMap<(&'static str, &'static str), u64>,
    /// What became of events, and how often.
    pub handled: BTreeMap<Cell, u64>,
    /// How its orders ended.
    pub ends: Vec<String>,
}

/// A history in memory.
pub fn run(choice: Choice) -> Outcome {
    let keys = Arc::new(Keys::default());
    let mut house = keys.house();
    if choice.broken == Broken::BelievesAnyReceipt {
        house.finance_keys.push(Keys::strangers().finance.key().clone());
    }
    let store = Model::new(house, epoch());
    for (sku, minor) in [("notes", 2000), ("gift", 0)] {
        let tax = Tax {
            rate_ppm: 190_000,
            included: true,
        };
        store.sell(sku, Uuid::nil(), Money::new(minor, "EUR".parse().unwrap()), tax);
    }
    let clock = store.clone();
    history(choice, store, Runs::AtOnce, keys, move |now| {
        clock.state().now = now
    })
}

/// A history on a store whose clock is set by `set`.
pub fn history<S: Store + Clone + 'static>(
    choice: Choice,
    store: S,
    runs: Runs,
    keys: Arc<Keys>,
    set: impl Fn(Timestamp),
) -> Outcome {
    let mut executor = Executor::new(choice.seed, epoch());
    let world = World::new(choice.seed, executor.clock(), keys, choice.faults);
    let disk = Disk {
        store: store.clone(),
        world: world.clone(),
        runs: runs.clone(),
    };
    let mut rng = StdRng::seed_from_u64(choice.seed ^ 0xca11);
    for replica in 0..REPLICAS {
        start(&mut executor, replica, &disk, choice.broken);
    }
    let buyers = rng.random_range(1..=3_u64);
    for buyer in 0..buyers {
        executor.spawn(BUYERS, buys(disk.clone(), choice, buyer));
    }
    executor.spawn(STRIPE, tells(disk.clone(), choice));
    executor.spawn(STRIPE, banks(world.clone(), choice.seed));
    let storm = rng.random_range(choice.storm..=choice.storm * 3);
    let (mut now, mut was_set) = (epoch(), None);
    let mut calm_since = None;
    let mut judge = oracle::Oracle::default();
    let violation = loop {
        let is_stormy = executor.steps < storm;
        if !is_stormy && calm_since.is_none() {
            let mut outer = world.outer();
            outer.faults = Faults::NONE;
            outer.is_calm = true;
            calm_since = Some(now);
        }
        let ahead = world.outer().store_ahead;
        let stepped = executor.step(if is_stormy { choice.odds } else { CALM }, |moved| {
            now = moved;
            let at_the_store = moved + ahead;
            if was_set != Some(at_the_store) {
                was_set = Some(at_the_store);
                set(at_the_store);
            }
        });
        let said = std::mem::take(&mut world.outer().said);
        for said in &said {
            executor.note(said);
        }
        if let Stepped::Crashed(process) = stepped {
            match process {
                replica if replica < REPLICAS => start(&mut executor, replica, &disk, choice.broken),
                // Neither Stripe nor those who buy are ours to end.
                STRIPE => {
                    executor.spawn(STRIPE, tells(disk.clone(), choice));
                    executor.spawn(STRIPE, banks(world.clone(), choice.seed ^ executor.steps));
                }
                _ => {}
            }
        }
        // Nothing is otherwise than it was after a step in which nobody has done anything.
        if !said.is_empty() {
            let orders = read(&runs, &store, &world);
            if let Some(violation) = judge.always(&orders, &world) {
                break Some(violation);
            }
        }
        let rested = calm_since.is_some_and(|since| now.duration_since(since) > REST);
        if rested || executor.steps > storm + BOUND {
            break judge.at_rest(&read(&runs, &store, &world), &world, rested);
        }
    };
    let orders = read(&runs, &store, &world);
    let ends: Vec<_> = orders
        .iter()
        .map(|order| format!("{:?}", vitrine_commerce::facts::status(&order.facts())))
        .collect();
    for end in &ends {
        executor.note(end);
    }
    let (coverage, handled) = {
        let outer = world.outer();
        (outer.coverage.clone(), outer.handled.clone())
    };
    Outcome {
        trace: executor.trace(),
        steps: executor.steps,
        violation,
        coverage,
        handled,
        ends,
    }
}

fn read<S: Store>(runs: &Runs, store: &S, world: &World) -> Vec<vitrine_api::order::Order> {
    let ids = world.outer().orders.clone();
    ids.into_iter()
        .filter_map(|id| runs.run(store.order(id)).ok())
        .collect()
}

/// One process of the shop.
fn start<S: Store + Clone + 'static>(executor: &mut Executor, replica: u32, disk: &Disk<S>, broken: Broken) {
    let clock = disk.world.clock.clone();
    for kind in 0..2 {
        let (disk, clock) = (disk.clone(), clock.clone());
        executor.spawn(replica, async move {
            let mut idle = FIRST_IDLE;
            loop {
                let stepped = if kind == 0 {
                    broken::event(broken, &disk).await
                } else {
                    broken::job(broken, &disk).await
                };
                let rest = match stepped {
                    Ok(Step::Idle) => idle,
                    Ok(_) => 0,
                    Err(_) => 2,
                };
                idle = if rest == idle {
                    (idle * 2).min(LONGEST_IDLE)
                } else {
                    FIRST_IDLE
                };
                clock.sleep(SignedDuration::from_secs(rest)).await;
            }
        });
    }
    if broken == Broken::AnswersBeforeItKeeps {
        return;
    }
    let (disk, clock) = (disk.clone(), clock);
    executor.spawn(replica, async move {
        loop {
            // Everything since the beginning: events are few here.
            let _ = sweep(&disk, &disk.world, epoch()).await;
            clock.sleep(SignedDuration::from_hours(6)).await;
        }
    });
}

/// A buyer, who tries again whatever goes wrong.
async fn buys<S: Store + Clone>(disk: Disk<S>, choice: Choice, buyer: u64) {
    let (world, clock) = (disk.world.clone(), disk.world.clock.clone());
    let mut rng = StdRng::seed_from_u64(choice.seed ^ (buyer << 32) ^ 0xb0b);
    let subject = format!("buyer{buyer}");
    let account = account_id("https://id.example", &subject);
    let placing = Placing {
        id: Uuid::from_u128(u128::from(buyer) + 1),
        account,
        currency: "EUR".parse().unwrap(),
        wants: vec![Want {
            sku: if rng.random_bool(0.9) { "notes" } else { "gift" }.to_owned(),
            quantity: rng.random_range(1..=2),
        }],
        request_sha256: "0".repeat(64),
    };
    while disk.account("https://id.example", &subject).await.is_err() {
        clock.sleep(SignedDuration::from_secs(1)).await;
    }
    world.outer().orders.push(placing.id);
    // Some never pay, and some go away before they have been told where to.
    let patience = rng.random_range(0..6);
    let mut begun = loop {
        match checkout::place(&disk, &world, &placing, "buyer").await {
            Err(_) if rng.random_bool(0.95) => clock.sleep(SignedDuration::from_secs(1)).await,
            begun => break begun,
        }
    };
    for turn in 0..patience {
        if turn > 0 {
            begun = checkout::begin(&disk, &world, placing.id, "buyer").await;
        }
        match &begun {
            Ok(checkout::Destination::Pay(session)) => {
                clock
                    .sleep(SignedDuration::from_secs(rng.random_range(0..90)))
                    .await;
                let act = match rng.random_range(0..10) {
                    0 | 1 => Act::Decline(session.id.clone()),
                    2 | 3 => Act::PayLater(session.id.clone()),
                    // Goes away, and comes back later.
                    4 => {
                        clock
                            .sleep(SignedDuration::from_mins(rng.random_range(1..120)))
                            .await;
                        continue;
                    }
                    _ => Act::Pay(session.id.clone()),
                };
                world.act(&act);
                if rng.random_bool(0.5) {
                    if choice.broken == Broken::BelievesTheBuyer {
                        let believes = |order: &mut Order, at: &At<'_>| {
                            observe::apply(order, &broken::believed(order), at)
                        };
                        let _ = disk.change(placing.id, By::Somebody("buyer"), believes).await;
                    }
                    let _ = checkout::confirm(&disk, &world, placing.id, "buyer").await;
                }
            }
            Ok(checkout::Destination::Paid) => break,
            Ok(checkout::Destination::Closed) => return,
            Err(_) => clock.sleep(SignedDuration::from_secs(5)).await,
        }
    }
    if rng.random_bool(0.4) {
        // Some change their minds at once, while the shop is still at it, some just when it is about to sign; others later.
        let is_hasty = rng.random_bool(0.5);
        if is_hasty {
            let is_to_be_signed = rng.random_bool(0.5);
            for _ in 0..rng.random_range(0..100) {
                clock.turn().await;
                let is_frozen =
                    |order: Order| order.licences.values().any(|licence| licence.signature.is_none());
                if is_to_be_signed && disk.runs.run(disk.store.order(placing.id)).is_ok_and(is_frozen) {
                    break;
                }
            }
        } else {
            clock
                .sleep(SignedDuration::from_mins(rng.random_range(0..90)))
                .await;
        }
        let units: BTreeSet<_> = [UnitId { line: 0, unit: 0 }].into();
        let id = Uuid::from_u128(1000 + u128::from(buyer));
        for _ in 0..20 {
            let asked = if choice.broken == Broken::RefundsBeforeItWrites {
                broken::refund_first(&disk, &clock, id, placing.id, &units).await
            } else {
                let ask = |order: &mut Order, at: &At<'_>| {
                    refund::ask(order, id, &units, "withdrawn", at).map(drop)
                };
                disk.change(placing.id, By::Somebody("buyer"), ask).await
            };
            match asked {
                Err(StoreError::Unknown(_)) => clock.sleep(SignedDuration::from_secs(1)).await,
                Err(StoreError::Refused(Refusal::Unpaid)) if is_hasty => clock.turn().await,
                _ => break,
            }
        }
    }
}

/// Stripe tells of its events: late, out of order, several times; some never.
async fn tells<S: Store + Clone>(disk: Disk<S>, choice: Choice) {
    let mut rng = StdRng::seed_from_u64(choice.seed ^ 0x7e11);
    let mut waiting: Vec<usize> = vec![];
    let (mut known, mut idle) = (0, FIRST_IDLE);
    loop {
        let events = disk.world.outer().stripe.events().len();
        for at in known..events {
            waiting.extend(std::iter::repeat_n(at, rng.random_range(0..3)));
        }
        idle = if events > known {
            FIRST_IDLE
        } else {
            (idle * 2).min(LONGEST_IDLE)
        };
        known = events;
        if waiting.is_empty() {
            disk.world.clock.sleep(SignedDuration::from_secs(idle)).await;
            continue;
        }
        let at = waiting.swap_remove(rng.random_range(0..waiting.len()));
        let told = disk
            .world
            .outer()
            .stripe
            .events()
            .get(at)
            .map(|event| event.json.clone());
        if let Some(event) = told.and_then(|json| reading::event(json).ok()) {
            // What is not answered is told again.
            let is_answered = disk.receive(&[(event, "0".repeat(64))]).await.is_ok()
                || choice.broken == Broken::AnswersBeforeItKeeps;
            if !is_answered && rng.random_bool(0.8) {
                waiting.push(at);
            }
        }
    }
}

/// What banks do, and who sits at Stripe's dashboard.
async fn banks(world: World, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xba4c);
    loop {
        let minutes = if world.outer().is_calm { 180 } else { 10 };
        world
            .clock
            .sleep(SignedDuration::from_mins(rng.random_range(1..minutes)))
            .await;
        let (moves, is_calm) = {
            let outer = world.outer();
            (oracle::moves(&outer.stripe), outer.is_calm)
        };
        for (usual, other) in moves {
            // In calm everything comes to its end; before, some of it.
            if is_calm || rng.random_bool(0.5) {
                world.act(if rng.random_bool(0.8) { &usual } else { &other });
            }
        }
        if is_calm || !rng.random_bool(0.4) {
            continue;
        }
        let paid = oracle::paid(&world.outer().stripe);
        if let Some(payment) = paid.first() {
            world.act(&match rng.random_range(0..3) {
                0 => Act::RefundInDashboard(payment.clone(), None),
                1 => Act::RefundInDashboard(payment.clone(), Some(500)),
                _ if rng.random_bool(0.3) => {
                    Act::Dispute(payment.clone(), DisputeStatus::WarningNeedsResponse)
                }
                _ => Act::Dispute(payment.clone(), DisputeStatus::NeedsResponse),
            });
        }
    }
}
