//! Card numbers, planted wherever somebody can write something: refused or masked, and nowhere to be found afterwards (CHK-01).

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{
    io,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};
use vitrine_shop_tests::town::{CHECKOUT, Town, WEBHOOK_SECRET, until, wants};
use vitrine_stripe::{sim::Act, webhook::signature};

/// Numbers of Stripe's that are nobody's (<https://docs.stripe.com/testing#cards>), as they are and as people write them.
const CARDS: [&str; 4] = [
    "4242424242424242",
    "5555-5555-5555-4444",
    "3782 822463 10005",
    "6011000990139424",
];

/// All that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every row of every table of a schema as text; bytes in hex digits.
async fn dump(pool: &PgPool, schema: &str) -> String {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT table_name FROM information_schema.tables WHERE table_schema = $1")
            .bind(schema)
            .fetch_all(pool)
            .await
            .unwrap();
    assert!(!tables.is_empty());
    let mut all = String::new();
    for table in tables {
        let sql = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM {schema}.{table} t");
        let rows: String = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(pool)
            .await
            .unwrap();
        all += &rows;
        all.push('\n');
    }
    all
}

fn ways_to_write(card: &str) -> [String; 3] {
    let digits: String = card.chars().filter(char::is_ascii_digit).collect();
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    [card.to_owned(), hex(card), digits]
}

/// Writes a number wherever there is room for one.
async fn plant(town: &Town, card: &str, order: &str) {
    let (token, base) = (town.token("alice", &json!({})), &town.base);
    let send = async |request: reqwest::RequestBuilder| request.bearer_auth(&token).send().await.unwrap();
    let post = |path: &str, body: &Value| {
        town.client
            .post(format!("{base}{path}"))
            .header("content-type", "application/json")
            .body(body.to_string())
    };
    // Headers, and what is asked for by a good request.
    let good = post(CHECKOUT, &wants("notes", 1))
        .header("idempotency-key", format!("my card {card}"))
        .header("x-request-id", card)
        .header("user-agent", card)
        .header("traceparent", card);
    let answer = send(good).await;
    assert_eq!(answer.status(), 201);
    assert!(!answer.text().await.unwrap().contains(card));
    // Every field of every body.
    let refunds = format!("/api/v1/marketplace/orders/{order}/refunds");
    for (path, body) in [
        (CHECKOUT, wants(card, 1)),
        (
            CHECKOUT,
            json!({"items": [{"sku": "notes", "quantity": 1}], "currency": card}),
        ),
        (
            CHECKOUT,
            json!({"items": [{"sku": "notes", "quantity": card}], "currency": "EUR"}),
        ),
        (CHECKOUT, json!({"items": [], "currency": "EUR", "card": card})),
        (CHECKOUT, json!({"items": [], "currency": "EUR", card: 1})),
        (CHECKOUT, json!(card)),
        ("/api/v1/marketplace/checkout/confirm", json!({"order": card})),
        (
            refunds.as_str(),
            json!({"reason": format!("it was paid by {card}")}),
        ),
        (
            refunds.as_str(),
            json!({"reason": "r", "units": [{"line": card, "unit": 0}]}),
        ),
        (
            "/api/v1/admin/marketplace/prices",
            json!({"sku": card, "minor": 1, "currency": card, "taxRatePpm": 0, "taxIncluded": false}),
        ),
    ] {
        let answer = send(post(path, &body).header("idempotency-key", "k")).await;
        assert!(
            answer.status().is_client_error(),
            "{path}: {body}: {}",
            answer.status()
        );
        let said = answer.text().await.unwrap();
        assert!(!said.contains(card), "{path}: {body}: {said}");
    }
    // Paths and queries.
    for path in [
        format!("/api/v1/marketplace/orders/{card}"),
        format!("/api/v1/marketplace/orders?before={card}x"),
        format!("/api/v1/marketplace/licenses/{card}"),
        format!("/{card}"),
    ] {
        let answer = send(town.client.get(format!("{base}{path}"))).await;
        assert!(answer.status().is_client_error(), "{path}: {}", answer.status());
        assert!(!answer.text().await.unwrap().contains(card), "{path}");
    }
    // Webhooks: what Stripe has signed is taken, and what is a number in it is masked.
    let of = |id: &str, kind: &str, object: &str| {
        json!({
            "id": id, "object": "event", "type": kind, "created": Timestamp::now().as_second(), "livemode": false,
            "data": {"object": {"id": object, "number": card}}, "card": card
        })
    };
    for event in [
        of(&format!("evt_{card}"), "charge.updated", "ch_1"),
        of("evt_kind", card, "ch_1"),
        of("evt_object", "charge.updated", card),
    ] {
        let body = event.to_string();
        let signed = signature(&[WEBHOOK_SECRET], body.as_bytes(), Timestamp::now().as_second());
        for (header, taken) in [
            (signed, true),
            (format!("t=1,v1={card}"), false),
            (card.to_owned(), false),
        ] {
            let to = town.client.post(format!("{base}/webhooks/stripe"));
            let answer = send(to.header("stripe-signature", header).body(body.clone())).await;
            assert_eq!(answer.status().is_success(), taken, "{body}");
            assert!(!answer.text().await.unwrap().contains(card));
        }
    }
}

#[tokio::test]
async fn a_card_number_is_nowhere_to_be_found_wherever_it_was_planted() {
    let log = Log::default();
    let to_log = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || to_log.clone())
        .init();
    let mut town = Town::new().await;
    let (order, session) = town.orders("alice", "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    town.reaches("alice", &order, "completed").await;
    for card in CARDS {
        plant(&town, card, &order).await;
    }
    until(async || {
        let open: i64 = sqlx::query_scalar("SELECT count(*) FROM shop.inbox WHERE handled_at IS NULL")
            .fetch_one(&town.pool)
            .await
            .unwrap();
        if open == 0 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
    town.ends().await;
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    let kept = [
        ("the shop's database", dump(&town.pool, "shop").await),
        ("Finance's database", dump(&town.books, "ledger").await),
        ("the log", logged),
    ];
    // That something would be found is shown by what has to be there.
    for (place, word) in kept
        .iter()
        .zip([order.as_str(), order.as_str(), "an event was not taken"])
    {
        assert!(place.1.contains(word), "{} has no {word:?}", place.0);
    }
    for card in CARDS {
        for (place, all) in &kept {
            for written in ways_to_write(card) {
                assert!(
                    !all.contains(&written),
                    "{place} holds {written}: {}",
                    around(all, &written)
                );
            }
        }
    }
}

fn around<'a>(all: &'a str, found: &str) -> &'a str {
    let at = all.find(found).unwrap_or_default();
    let from = all[..at].char_indices().rev().nth(100).map_or(0, |(at, _)| at);
    let until = all[at..]
        .char_indices()
        .nth(100)
        .map_or(all.len(), |(after, _)| at + after);
    &all[from..until]
}
