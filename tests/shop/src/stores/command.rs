//! What a store can be asked for, as a value: given to two stores, or by several clients at once, and written down with what was answered.

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;
use vitrine_api::{
    edges::{
        At, House, attempt, finance, licence,
        observe::{self, Observed},
        refund,
    },
    order::{Order, Session},
    seams::{By, Claim, Event, Job, Placing, Store, StoreError},
};
use vitrine_commerce::{facts::UnitId, note::NamedKey};

/// How long what is claimed is nobody else's.
pub const LEASE: Duration = Duration::from_secs(60);

/// What a store is asked for.
#[derive(Clone, Debug)]
pub enum Command {
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
    /// For a key that is retired later.
    FreezeFor(NamedKey, Uuid, UnitId),
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

/// What is answered, as text. What a database says of itself is its own.
fn said<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    match answer {
        Err(StoreError::Broken(_)) => "broken".to_owned(),
        other => format!("{other:?}"),
    }
}

/// Asks a store.
pub async fn give<S: Store>(store: &S, command: &Command) -> String {
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
        Command::FreezeFor(key, order, unit) => {
            let freeze = |order: &mut Order, at: &At<'_>| {
                let house = House {
                    licence_key: key.clone(),
                    ..at.house.clone()
                };
                licence::freeze(order, unit, &At { house: &house, ..*at })
            };
            said(store.change(order, by, freeze).await)
        }
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
