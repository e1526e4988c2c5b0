//! Whatever anybody sends, and whatever Stripe answers: what cannot be used is refused in words, nothing falls over, and what was there is still there
//! (SEC-12). `cargo xtask soak parsers` sends more of it.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{collections::BTreeMap, sync::Mutex};

use serde_json::{Value, json};
use vitrine_api::{
    http::openapi,
    outside::stripe::reading::{self, Ask},
    seams::Outside,
};
use vitrine_parts::soak;
use vitrine_shop_tests::{
    garbage::Garbage,
    town::{Town, WEBHOOK_SECRET, wants},
};
use vitrine_stripe::{sim::Act, webhook::signature};

/// Of each request and of each answer.
fn count() -> u64 {
    if soak() { 10_000 } else { 250 }
}

/// Something that the shop takes.
struct Good {
    method: String,
    path: String,
    body: Option<Value>,
}

/// One good request of each kind that there is.
fn all_good(order: &str) -> Vec<Good> {
    let document = serde_json::to_value(openapi()).unwrap();
    let mut all = vec![];
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let body = operation.get("requestBody").map(|_| match path.as_str() {
                "/api/v1/marketplace/checkout" => wants("notes", 1),
                "/api/v1/marketplace/checkout/confirm" => json!({"order": order}),
                "/api/v1/marketplace/orders/{id}/refunds" => {
                    json!({"units": [{"line": 0, "unit": 0}], "reason": "withdrawn"})
                }
                "/api/v1/admin/marketplace/prices" => {
                    json!({"sku": "notes", "minor": 2000, "currency": "USD", "taxRatePpm": 0, "taxIncluded": true})
                }
                "/webhooks/stripe" => json!({
                    "id": "evt_1", "object": "event", "type": "payment_intent.succeeded", "created": 1_700_000_000, "livemode": false,
                    "data": {"object": {"id": "pi_1", "object": "payment_intent"}}
                }),
                other => panic!("say what is good for {other}"),
            });
            all.push(Good {
                method: method.to_uppercase(),
                path: path.clone(),
                body,
            });
        }
    }
    all
}

/// A path with something wrong in it, as it stands in a request.
fn path_of(garbage: &mut Garbage, path: &str, order: &str) -> String {
    let escaped = |text: String| -> String {
        let bytes = text.as_bytes().iter().take(1_000);
        bytes.map(|byte| format!("%{byte:02X}")).collect()
    };
    let id = if garbage.happens(0.9) {
        order.to_owned()
    } else {
        escaped(garbage.text())
    };
    let mut path = path
        .replace("{id}", &id)
        .replace("{key}", &escaped(garbage.text()));
    if garbage.happens(0.2) {
        let (name, value) = (
            garbage.one_of(&["before", "limit", "other"]),
            escaped(garbage.text()),
        );
        path = format!("{path}?{name}={value}");
    }
    path
}

/// Has a person buy something, until it is licensed; the order.
async fn buys(town: &Town, who: &str) -> String {
    let (order, session) = town.orders(who, "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    let confirm = "/api/v1/marketplace/checkout/confirm";
    let (status, seen) = town
        .ask(who, "POST", confirm, None, Some(json!({"order": order})))
        .await;
    assert_eq!(status, 200, "{seen}");
    town.reaches(who, &order, "completed").await;
    order
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_sent_is_answered_and_nothing_falls_over() {
    let mut town = Town::with(1, false).await;
    let order = buys(&town, "alice").await;
    town.revocations().await;
    let runs_the_shop = json!({"groups": ["vitrine:admins"], "amr": ["mfa"]});
    let (mut taken, mut refused) = (0, 0);
    for (number, good) in all_good(&order).into_iter().enumerate() {
        for seed in 0..count() {
            let garbage = &mut Garbage::new(seed << 8 | number as u64);
            let to = format!("{}{}", town.base, path_of(garbage, &good.path, &order));
            let body = good.body.as_ref().map(|body| {
                let changed = garbage.of(body).to_string().into_bytes();
                if garbage.happens(0.1) {
                    garbage.bytes(&changed)
                } else {
                    changed
                }
            });
            let body = body.unwrap_or_default();
            let mut request = town
                .client
                .request(good.method.parse().unwrap(), &to)
                .header("content-type", "application/json")
                // Signed by Stripe: what it means is all that can be wrong with it.
                .header(
                    "stripe-signature",
                    signature(&[WEBHOOK_SECRET], &body, jiff::Timestamp::now().as_second()),
                );
            // What no header can be is not sent.
            let key = if garbage.happens(0.9) {
                format!("k{seed}")
            } else {
                garbage.text()
            };
            if let Ok(key) = reqwest::header::HeaderValue::from_str(&key) {
                request = request.header("idempotency-key", key);
            }
            if garbage.happens(0.95) {
                // Each time a new one: a long run outlives it.
                request = request.bearer_auth(town.token("alice", &runs_the_shop));
            }
            let answer = request.body(body.clone()).send().await.unwrap();
            let (status, said) = (answer.status(), answer.bytes().await.unwrap());
            let said = String::from_utf8_lossy(&said);
            let what = || {
                format!(
                    "{} {to} {}: {status} {said}",
                    good.method,
                    String::from_utf8_lossy(&body)
                )
            };
            assert!(!status.is_server_error(), "{}", what());
            if status.is_success() {
                taken += 1;
            } else {
                refused += 1;
                let problem: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{}", what()));
                assert!(
                    problem["code"].is_string() && problem["title"].is_string(),
                    "{}",
                    what()
                );
            }
        }
    }
    eprintln!("{taken} were taken, and {refused} refused");
    assert!(taken > 0 && refused > 0);
    // It goes on as if nothing had been.
    buys(&town, "bob").await;
    town.ends().await;
}

/// A Stripe that answers what it has answered before, now and then with something wrong in it.
struct Answers<'a> {
    known: &'a BTreeMap<String, Value>,
    garbage: Mutex<Garbage>,
}

impl Ask for Answers<'_> {
    async fn get(&self, path: &str, _: &[(&str, &str)]) -> Result<Value, Outside> {
        let good = self.known.get(path).cloned().unwrap_or(Value::Null);
        let mut garbage = self.garbage.lock().unwrap();
        Ok(if garbage.happens(0.5) {
            garbage.of(&good)
        } else {
            good
        })
    }
}

/// How many were read, and how many refused.
fn tally(what: &str, outcomes: impl IntoIterator<Item = bool>) {
    let (read, refused): (Vec<bool>, Vec<bool>) = outcomes.into_iter().partition(|is_read| *is_read);
    eprintln!("{what}: {} were read, and {} refused", read.len(), refused.len());
    assert!(!read.is_empty() && !refused.is_empty(), "{what}");
}

#[tokio::test]
async fn whatever_stripe_answers_is_read_or_refused() {
    let mut town = Town::new().await;
    let (order, session) = town.orders("alice", "notes", 2).await;
    town.stripe.act(&Act::Pay(session.clone())).unwrap();
    town.reaches("alice", &order, "completed").await;
    let payment = town.payment_of(&session);
    town.stripe
        .act(&Act::RefundInDashboard(payment.clone(), Some(500)))
        .unwrap();
    town.reaches("alice", &order, "held").await;
    town.ends().await;
    let asked = town.stripe.asked().into_iter().map(|request| request.path);
    let known: BTreeMap<String, Value> = asked.zip(town.stripe.answers()).collect();
    let events: Vec<Value> = {
        let stripe = town.stripe.stripe();
        stripe.events().iter().map(|event| event.json.clone()).collect()
    };
    let spoiled = |good: &Value| {
        let good = good.clone();
        (0..count()).map(move |seed| Garbage::new(seed).of(&good))
    };
    let of_session = &known[&format!("/v1/checkout/sessions/{session}")];
    tally(
        "sessions",
        spoiled(of_session).map(|session| reading::session(session).is_ok()),
    );
    tally(
        "events",
        events
            .iter()
            .flat_map(spoiled)
            .map(|event| reading::event(event).is_ok()),
    );
    let mut outcomes = vec![];
    for seed in 0..count() {
        for object in [&session, &payment] {
            let stripe = Answers {
                known: &known,
                garbage: Mutex::new(Garbage::new(seed)),
            };
            outcomes.push(reading::read(&stripe, object).await.is_ok());
        }
    }
    tally("objects", outcomes);
}
