//! Several clients at once on a real Postgres: what they are answered is what they would be if one came after the other, in an order that nobody has
//! seen differently (Herlihy and Wing, "Linearizability", 1990). The store in memory says what that would be.
//!
//! Clients meet between rounds, in each of which everybody asks for one thing: so each order of a round is tried, and none of the whole history.

use std::collections::BTreeSet;

use futures::{FutureExt, future::join_all};
use jiff::SignedDuration;
use rand::RngExt;
use uuid::Uuid;
use vitrine_api::{
    edges::place::Want,
    order::account_id,
    seams::{Event, Placing, Store},
};
use vitrine_commerce::{money::Money, price::Tax};

use super::{
    command::{Command, LEASE, give},
    drawn::History,
    pair::Pair,
};
use crate::{
    model::{Model, State, epoch},
    wire::Mutant,
};

/// Clients at once.
const CLIENTS: u64 = 4;
/// How often they meet.
const ROUNDS: usize = 40;
/// Orders, both of one buyer: their account is what two orders share.
const ORDERS: [u128; 2] = [1, 2];
/// How many there are of what is claimed.
const CLAIMS: usize = 60;

/// A history of clients who do what they do at once.
///
/// # Errors
/// If no order of some round explains what was answered.
pub async fn at_once(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let pair = Pair::unordered(mutant).await;
    let mut clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let mut history = History::new(seed * CLIENTS + client);
            history.strays = false;
            // No two entries of a ledger have one number.
            history.entries = client * 1_000;
            history
        })
        .collect();
    let mut states = vec![pair.model.state().clone()];
    for round in 0..ROUNDS {
        let mut commands = vec![];
        for client in &mut clients {
            commands.push(wanted(client, &pair, round).await);
        }
        let asked = commands.iter().map(|command| {
            let (shop, command) = (pair.shop.clone(), command.clone());
            tokio::spawn(async move { give(&shop, &command).await })
        });
        let answers: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
        let asked: Vec<_> = commands.iter().zip(&answers).collect();
        states = after(&pair.model, &states, &asked);
        if states.is_empty() {
            return Err(format!("seed {seed}, round {round}: no order explains {asked:?}"));
        }
    }
    let mut held = vec![];
    for id in ORDERS {
        held.extend(pair.shop.order(Uuid::from_u128(id)).await.ok());
    }
    let explains = |state: &State| state.orders().into_values().eq(held.iter().cloned());
    if states.iter().any(explains) {
        Ok(())
    } else {
        Err(format!(
            "seed {seed}: nothing that was answered explains {held:?}"
        ))
    }
}

/// What a client asks for next. Claims are not among it: which of several they find is nobody's promise ([`claims`]).
async fn wanted(client: &mut History, pair: &Pair, round: usize) -> Command {
    let id = Uuid::from_u128(ORDERS[client.rng.random_range(0..ORDERS.len())]);
    let placing = || Placing {
        id,
        account: account_id("https://id.example", "person0"),
        currency: "EUR".parse().unwrap(),
        wants: vec![Want {
            sku: "notes".to_owned(),
            quantity: 1,
        }],
        request_sha256: "0".repeat(64),
    };
    match pair.shop.order(id).await {
        _ if round == 0 => Command::Account(0),
        Err(_) => Command::Place(placing()),
        Ok(_) if client.rng.random_bool(0.05) => Command::Place(Placing {
            request_sha256: "1".repeat(64),
            ..placing()
        }),
        Ok(order) => match client.of(&order, &pair.keys) {
            Command::ClaimEvent | Command::ClaimJob => Command::Order(id),
            command => command,
        },
    }
}

/// What there may be after a round: for each order of it in which all answers are those that were given.
fn after(model: &Model, before: &[State], asked: &[(&Command, &String)]) -> Vec<State> {
    let (mut known, mut states) = (BTreeSet::new(), vec![]);
    for state in before {
        explained(model, state, asked, &mut |state| {
            if known.insert(format!("{state:?}")) {
                states.push(state.clone());
            }
        });
    }
    states
}

fn explained(model: &Model, state: &State, asked: &[(&Command, &String)], found: &mut impl FnMut(&State)) {
    if asked.is_empty() {
        return found(state);
    }
    for (place, (command, answer)) in asked.iter().enumerate() {
        let tried = model.at(state.clone());
        // In memory nobody waits.
        let answered = give(&tried, command).now_or_never().unwrap();
        if answered == **answer {
            let mut rest = asked.to_vec();
            rest.remove(place);
            let state = tried.state().clone();
            explained(model, &state, &rest, found);
        }
    }
}

/// What is claimed by many at once is each time one's alone.
///
/// # Errors
/// If somebody has what another one has.
pub async fn claims(mutant: Option<Mutant>) -> Result<(), String> {
    let pair = Pair::new(mutant).await;
    let told: Vec<_> = (0..CLAIMS)
        .map(|number| {
            let event = Event {
                id: format!("evt_{number:03}"),
                kind: "refund.created".to_owned(),
                object: "re_1".to_owned(),
                created: epoch(),
            };
            (event, "0".repeat(64))
        })
        .collect();
    let shop = &pair.shop;
    shop.receive(&told).await.map_err(|error| error.to_string())?;
    let account = shop.account("https://id.example", "person0").await;
    for number in 0..CLAIMS {
        let placing = Placing {
            id: Uuid::from_u128(number as u128 + 1),
            account: account.clone().map_err(|error| error.to_string())?,
            currency: "EUR".parse().unwrap(),
            wants: vec![Want {
                sku: "notes".to_owned(),
                quantity: 1,
            }],
            request_sha256: "0".repeat(64),
        };
        shop.place(&placing).await.map_err(|error| error.to_string())?;
    }
    // Orders are given up after a day.
    pair.set(epoch() + SignedDuration::from_hours(25)).await;
    let claimers = (0..2 * CLIENTS).map(|_| {
        let shop = shop.clone();
        tokio::spawn(async move {
            let mut claimed = vec![];
            for _ in 0..2 * CLAIMS {
                match shop.claim_event(LEASE).await {
                    Ok(Some(claim)) => claimed.push(claim.what.id),
                    Ok(None) => {}
                    Err(error) => claimed.push(error.to_string()),
                }
                match shop.claim_job(LEASE).await {
                    Ok(Some(claim)) => claimed.push(claim.what.order.to_string()),
                    Ok(None) => {}
                    Err(error) => claimed.push(error.to_string()),
                }
            }
            claimed
        })
    });
    let claimed = join_all(claimers).await.into_iter().map(Result::unwrap);
    let claimed: Vec<_> = claimed.flatten().collect();
    let different: BTreeSet<_> = claimed.iter().collect();
    if (claimed.len(), different.len()) == (2 * CLAIMS, 2 * CLAIMS) {
        Ok(())
    } else {
        Err(format!(
            "of {} there were {} claims, of {}",
            2 * CLAIMS,
            claimed.len(),
            different.len()
        ))
    }
}

/// Prices of one product that are said at once have versions of their own.
///
/// # Errors
/// If one of them is refused.
pub async fn prices(mutant: Option<Mutant>) -> Result<(), String> {
    let pair = Pair::new(mutant).await;
    let tax = Tax {
        rate_ppm: 0,
        included: true,
    };
    let said = (0..8 * CLIENTS).map(|minor| {
        let (shop, minor) = (pair.shop.clone(), i64::try_from(minor).unwrap());
        tokio::spawn(async move {
            let amount = Money::new(minor, "EUR".parse().unwrap());
            shop.add_price("notes", amount, tax).await
        })
    });
    for said in join_all(said).await {
        said.unwrap().map_err(|error| error.to_string())?;
    }
    Ok(())
}
