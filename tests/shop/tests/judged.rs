//! What our shop asks of Stripe is judged by Stripe's own mock server, and what our simulator answers by the schemas of Stripe's own API
//! description (`spec3.json`, which is in that server's module).

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use vitrine_parts::{Helper, Port};
use vitrine_shop_tests::town::{Town, until};
use vitrine_stripe::{object::DisputeStatus, sim::Act};

fn judge() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../stripe/judge")
}

/// Stripe's mock server, which answers from fixtures and keeps nothing.
struct Mock {
    _helper: Helper,
    _port: Port,
    base: String,
}

impl Mock {
    async fn start() -> Self {
        let port = Port::take();
        let address = port.address;
        let helper = Helper::start(&judge(), "github.com/stripe/stripe-mock", |command| {
            command
                .args(["-http-addr", &address.to_string()])
                .stdout(Stdio::null());
        })
        .unwrap();
        let base = format!("http://{address}");
        until(async || {
            TcpStream::connect(address)
                .await
                .map_err(|error| error.to_string())
        })
        .await;
        Self {
            _helper: helper,
            _port: port,
            base,
        }
    }
}

/// An order's whole life, with a refund and a dispute: all that the shop asks of Stripe is in there.
async fn lived() -> Town {
    let mut town = Town::new().await;
    let mut orders = vec![];
    for who in ["alice", "bob"] {
        let (order, session) = town.orders(who, "notes", 2).await;
        town.stripe.act(&Act::Decline(session.clone())).unwrap();
        town.stripe.act(&Act::Pay(session.clone())).unwrap();
        town.reaches(who, &order, "completed").await;
        orders.push((order, session));
    }
    let [(refunded, _), (disputed, session)] = &orders[..] else {
        unreachable!("two have bought");
    };
    let refund = json!({"units": [{"line": 0, "unit": 0}], "reason": "withdrawn"});
    let path = format!("/api/v1/marketplace/orders/{refunded}/refunds");
    let (status, asked) = town.ask("alice", "POST", &path, Some("r"), Some(refund)).await;
    assert_eq!(status, 202, "{asked}");
    town.reaches("alice", refunded, "partly_refunded").await;
    let payment = town.payment_of(session);
    town.stripe
        .act(&Act::Dispute(payment, DisputeStatus::NeedsResponse))
        .unwrap();
    town.reaches("bob", disputed, "suspended").await;
    town.ends().await;
    town
}

#[tokio::test]
async fn what_the_shop_asks_is_what_stripe_understands() {
    let (town, mock) = (lived().await, Mock::start().await);
    let asked = town.stripe.asked();
    let mut places = std::collections::BTreeSet::new();
    for request in &asked {
        let mut sent = town.client.request(
            request.method.parse().unwrap(),
            format!("{}{}?{}", mock.base, request.path, request.query),
        );
        if request.method == "POST" {
            sent = sent
                .header("content-type", "application/x-www-form-urlencoded")
                .body(request.body.clone());
        }
        let answer = sent.bearer_auth("sk_test_123").send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{request:?}: {body}");
        let kind: Vec<_> = request
            .path
            .split('/')
            .filter(|part| !part.contains('_') || *part == "payment_intents")
            .collect();
        places.insert(format!("{} {}", request.method, kind.join("/")));
    }
    // Of each order one session, by the key that an attempt of it has.
    let made = asked
        .iter()
        .filter(|request| request.path == "/v1/checkout/sessions");
    for request in made.filter(|request| request.method == "POST") {
        let key = request.idempotency_key.as_deref().unwrap();
        let order = key.strip_suffix(":1").unwrap();
        assert!(
            request.body.contains(&format!("client_reference_id={order}&")),
            "{request:?}"
        );
        // Buyers come back to pages of the storefront that is configured, whatever they have sent.
        for (name, page) in [("success_url", "paid"), ("cancel_url", "cancelled")] {
            let back = format!("{}/orders/{order}/{page}", town.base);
            let back: String = form_urlencoded::byte_serialize(back.as_bytes()).collect();
            assert!(request.body.contains(&format!("{name}={back}&")), "{request:?}");
        }
    }
    // Else nothing was judged.
    for place in [
        "POST /v1/customers",
        "POST /v1/checkout/sessions",
        "POST /v1/refunds",
        "GET /v1/payment_intents",
        "GET /v1/refunds",
        "GET /v1/disputes",
    ] {
        assert!(places.contains(place), "{place} was never asked: {places:?}");
    }
    // And it does judge.
    let answer = town
        .client
        .post(format!("{}/v1/checkout/sessions", mock.base))
        .header("content-type", "application/x-www-form-urlencoded")
        .bearer_auth("sk_test_123")
        .body("mode=barter")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn what_the_simulator_answers_and_tells_is_what_stripes_schemas_allow() {
    let town = lived().await;
    // On a new machine it is not there yet, or on its way: `go list` does not wait for that.
    let fetched = Command::new("go")
        .args(["mod", "download", "-json", "github.com/stripe/stripe-mock"])
        .current_dir(judge())
        .output()
        .unwrap();
    let module: Value = serde_json::from_slice(&fetched.stdout).unwrap();
    let module = Path::new(module["Dir"].as_str().unwrap_or_else(|| panic!("{module}")));
    let spec = std::fs::read(module.join("embedded/openapi/spec3.json")).unwrap();
    let spec: Value = serde_json::from_slice(&spec).unwrap();
    let schemas = &spec["components"]["schemas"];
    let answers = town.stripe.answers();
    let events: Vec<_> = town
        .stripe
        .stripe()
        .events()
        .iter()
        .map(|event| event.json.clone())
        .collect();
    let told = events.iter().map(|event| event["data"]["object"].clone());
    let mut judged = std::collections::BTreeSet::new();
    for object in answers.into_iter().chain(events.iter().cloned()).chain(told) {
        let each = if object["object"] == "list" {
            object["data"].as_array().unwrap().clone()
        } else {
            vec![object]
        };
        for object in each {
            let name = object["object"].as_str().unwrap().to_owned();
            let schema = &schemas[&name];
            assert!(schema.is_object(), "there is no schema of {name}");
            if let Err(why) = fits(schemas, schema, &object, &name) {
                panic!("{why}: {object:#}");
            }
            judged.insert(name);
        }
    }
    for name in [
        "checkout.session",
        "payment_intent",
        "charge",
        "refund",
        "dispute",
        "event",
        "customer",
    ] {
        assert!(judged.contains(name), "no {name} was judged: {judged:?}");
    }
}

/// Whether a value fits a schema of OpenAPI 3.0, as far as Stripe's use it.
fn fits(schemas: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("{place}: {why}, and is {value}"));
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fits(schemas, &schemas[name], value, place);
    }
    if value.is_null() {
        return if schema["nullable"] == true {
            Ok(())
        } else {
            wrong("it is not nullable")
        };
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let refusals: Vec<_> = any
            .iter()
            .filter_map(|one| fits(schemas, one, value, place).err())
            .collect();
        return if refusals.len() < any.len() {
            Ok(())
        } else {
            Err(refusals.join("; "))
        };
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return wrong("it is one of few words");
    }
    let fits_type = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    if !fits_type {
        return wrong(&format!("it is of type {}", schema["type"]));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap();
        if value.get(name).is_none() {
            return wrong(&format!("it has {name}"));
        }
    }
    for (number, inner) in value.as_array().into_iter().flatten().enumerate() {
        fits(schemas, &schema["items"], inner, &format!("{place}[{number}]"))?;
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{name}");
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Object(_), _) => fits(schemas, &schema["properties"][name], inner, &place)?,
            (_, Value::Object(_)) => fits(schemas, &schema["additionalProperties"], inner, &place)?,
            // An event's object is of any kind.
            _ if schema["properties"].is_object() => {
                return Err(format!("{place}: Stripe's have no such field"));
            }
            _ => {}
        }
    }
    Ok(())
}
