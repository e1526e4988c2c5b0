//! What Stripe tells, and what others send in its name: over HTTP, to several replicas, often and at once.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use futures::future::join_all;
use jiff::Timestamp;
use serde_json::{Value, json};
use vitrine_parts::soak;
use vitrine_shop_tests::town::{OLD_WEBHOOK_SECRET, Plan, STRIPE_KEY, Town, WEBHOOK_SECRET, until};
use vitrine_stripe::{sim::Act, webhook::signature};

const LARGEST: usize = 256 << 10;

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn event(id: &str, object: &str) -> Value {
    json!({
        "id": id, "object": "event", "type": "payment_intent.succeeded", "created": now(), "livemode": false,
        "data": {"object": {"id": object, "object": "payment_intent"}}
    })
}

async fn send(town: &Town, replica: usize, header: Option<String>, body: impl Into<Vec<u8>>) -> u16 {
    let mut request = town
        .client
        .post(format!("{}/webhooks/stripe", town.replicas[replica]))
        .body(body.into());
    if let Some(header) = header {
        request = request.header("stripe-signature", header);
    }
    request.send().await.unwrap().status().as_u16()
}

async fn kept(town: &Town) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM shop.inbox")
        .fetch_one(&town.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn only_what_stripe_has_signed_now_for_us_is_kept() {
    let mut town = Town::with(1, false).await;
    let body = event("evt_1", "pi_1").to_string();
    let signed = |secrets: &[&str], at: i64| signature(secrets, body.as_bytes(), at);
    let good = signed(&[WEBHOOK_SECRET], now());
    let (at, mac) = good.split_once(",v1=").unwrap();
    let large = |bytes: usize| {
        let mut event = event("evt_large", "pi_1");
        let rest = bytes - event.to_string().len() - r#","padding":"""#.len();
        event["padding"] = json!("x".repeat(rest));
        event.to_string()
    };
    let other = |name: &str, value: Value| {
        let mut event = event("evt_other", "pi_1");
        event[name] = value;
        event.to_string()
    };
    let sign = |body: &str| Some(signature(&[WEBHOOK_SECRET], body.as_bytes(), now()));
    let reencoded = serde_json::to_string_pretty(&event("evt_1", "pi_1")).unwrap();
    let (too_large, drifted) = (large(LARGEST + 1), other("data", json!({"objects": []})));
    let (live, connected) = (
        other("livemode", json!(true)),
        other("account", json!("acct_other")),
    );
    let refused = [
        ("no signature", None, body.clone()),
        (
            "another secret",
            Some(signed(&["whsec_somebody"], now())),
            body.clone(),
        ),
        ("an empty secret", Some(signed(&[""], now())), body.clone()),
        ("no time", Some(format!("v1={mac}")), body.clone()),
        (
            "another time",
            Some(format!("t={},v1={mac}", now() - 1)),
            body.clone(),
        ),
        ("a scheme for tests", Some(format!("{at},v0={mac}")), body.clone()),
        (
            "too old",
            Some(signed(&[WEBHOOK_SECRET], now() - 310)),
            body.clone(),
        ),
        (
            "not yet",
            Some(signed(&[WEBHOOK_SECRET], now() + 310)),
            body.clone(),
        ),
        ("another body", Some(good.clone()), body.replace("pi_1", "pi_2")),
        ("the same, written anew", Some(good.clone()), reencoded),
        ("larger than may be", sign(&too_large), too_large),
        ("drifted", sign(&drifted), drifted),
        ("real money", sign(&live), live),
        ("of another account", sign(&connected), connected),
    ];
    for (what, header, body) in refused {
        assert_eq!(send(&town, 0, header, body).await, 400, "{what}");
    }
    assert_eq!(kept(&town).await, 0);
    let largest = large(LARGEST);
    let unknown = other("type", json!("issuing_card.created"));
    let taken = [
        ("as it is", Some(good.clone()), body.clone()),
        (
            "the old secret, while there are two",
            Some(signed(&[OLD_WEBHOOK_SECRET], now())),
            body.clone(),
        ),
        (
            "the last of several",
            Some(format!("{at},v1={},v1={mac}", "0".repeat(64))),
            body.clone(),
        ),
        (
            "the first of several",
            Some(format!("{at},v1={mac},v1=nothing,v0=0")),
            body.clone(),
        ),
        (
            "almost too old",
            Some(signed(&[WEBHOOK_SECRET], now() - 290)),
            body.clone(),
        ),
        ("as large as may be", sign(&largest), largest),
        ("of a kind that nobody knows", sign(&unknown), unknown),
    ];
    for (what, header, body) in taken {
        assert_eq!(send(&town, 0, header, body).await, 200, "{what}");
    }
    assert_eq!(kept(&town).await, 3);
    // What is of no use is said to be, for handlers that know more.
    until(async || {
        let ignored: i64 = sqlx::query_scalar("SELECT count(*) FROM shop.inbox WHERE ignored")
            .fetch_one(&town.pool)
            .await
            .unwrap();
        if ignored == 3 {
            Ok(())
        } else {
            Err(ignored.to_string())
        }
    })
    .await;
    town.ends().await;
}

#[tokio::test]
async fn without_a_secret_there_is_no_endpoint() {
    let mut town = Town::built(Plan {
        takes_webhooks: false,
        stripe_tells: false,
        ..Plan::default()
    })
    .await;
    let body = event("evt_1", "pi_1").to_string();
    for secret in [WEBHOOK_SECRET, ""] {
        let signed = signature(&[secret], body.as_bytes(), now());
        assert_eq!(send(&town, 0, Some(signed), body.clone()).await, 404);
    }
    assert_eq!(send(&town, 0, None, body).await, 404);
    assert_eq!(kept(&town).await, 0);
    town.ends().await;
}

/// What anybody can send, however much of it, keeps nobody from what Stripe sends (CHK-04).
#[tokio::test]
async fn a_flood_is_turned_away_and_stripe_comes_through_it() {
    const RATE: u32 = 20;
    let mut town = Town::built(Plan {
        stripe_tells: false,
        webhook_rate: RATE,
        ..Plan::default()
    })
    .await;
    let begun = std::time::Instant::now();
    let body = event("evt_1", "pi_1").to_string();
    let flood = join_all((0..200).map(|_| send(&town, 0, None, "x".repeat(1000))));
    // In the middle of it, from the first to the last: none of Stripe's is turned away.
    let stripes = async {
        let mut answers = vec![];
        for _ in 0..20 {
            let signed = signature(&[WEBHOOK_SECRET], body.as_bytes(), now());
            answers.push(send(&town, 0, Some(signed), body.clone()).await);
        }
        answers
    };
    let (flood, stripes) = futures::join!(flood, stripes);
    assert_eq!(stripes, [200; 20]);
    // A full bucket, and what it has got meanwhile.
    let most = f64::from(RATE) * (1.0 + begun.elapsed().as_secs_f64()) + 1.0;
    let of = |status: u16| flood.iter().filter(|answer| **answer == status).count();
    assert_eq!(of(400) + of(429), flood.len(), "{flood:?}");
    assert!((1..=most as usize).contains(&of(400)), "{} of {most}", of(400));
    assert_eq!(kept(&town).await, 1);
    town.ends().await;
}

/// A paid order of one unit, of which nobody was told: its id, and its payment's.
async fn paid(town: &Town, who: &str) -> (String, String) {
    let (order, session) = town.orders(who, "notes", 1).await;
    town.stripe.act(&Act::Pay(session.clone())).unwrap();
    (order, town.payment_of(&session))
}

/// What was done for an order: acknowledgements, signed licences, entries in Finance's books.
async fn effects(town: &Town, order: &str) -> Result<(i64, i64, i64), String> {
    let order: uuid::Uuid = order.parse().unwrap();
    let count = async |pool: &sqlx::PgPool, sql: &'static str| -> i64 {
        sqlx::query_scalar(sql).bind(order).fetch_one(pool).await.unwrap()
    };
    // In this order: what is handled has left its tasks, and what is done has left its effects. Nobody has told of the session, which is
    // looked at after a while.
    let unhandled = count(
        &town.pool,
        "SELECT count(*) FROM shop.inbox WHERE handled_at IS NULL AND $1::uuid IS NOT NULL",
    )
    .await;
    let open = count(
        &town.pool,
        "SELECT count(*) FROM shop.tasks WHERE order_id = $1 AND task NOT LIKE 'look %'",
    )
    .await;
    let all = (
        count(
            &town.pool,
            "SELECT count(*) FROM shop.finance_acks WHERE order_id = $1",
        )
        .await,
        count(
            &town.pool,
            "SELECT count(*) FROM shop.licences WHERE order_id = $1 AND signature IS NOT NULL",
        )
        .await,
        count(
            &town.books,
            "SELECT count(*) FROM ledger.entries WHERE order_id = $1",
        )
        .await,
    );
    let is_over = open == 0 && unhandled == 0 && all.1 > 0;
    if is_over {
        Ok(all)
    } else {
        Err(format!("{all:?}, {open} tasks and {unhandled} events are open"))
    }
}

/// Deposit, reserve and post are acknowledged and written, and one licence is signed.
const ONCE: (i64, i64, i64) = (3, 1, 3);

#[tokio::test]
async fn an_event_that_is_told_fifty_times_to_three_replicas_has_one_effect() {
    let mut town = Town::with(3, false).await;
    let (order, payment) = paid(&town, "alice").await;
    let body = event("evt_1", &payment).to_string();
    let header = Some(signature(&[WEBHOOK_SECRET], body.as_bytes(), now()));
    let sent = (0..50).map(|number| send(&town, number % 3, header.clone(), body.clone()));
    for status in join_all(sent).await {
        assert_eq!(status, 200);
    }
    assert_eq!(until(|| effects(&town, &order)).await, ONCE);
    assert_eq!(kept(&town).await, 1);
    town.ends().await;
}

#[tokio::test]
async fn a_fact_of_which_fifty_events_tell_three_replicas_has_one_effect() {
    let mut town = Town::with(3, false).await;
    let (order, payment) = paid(&town, "alice").await;
    let sent = (0..50).map(|number| {
        let body = event(&format!("evt_{number}"), &payment).to_string();
        let header = Some(signature(&[WEBHOOK_SECRET], body.as_bytes(), now()));
        send(&town, number % 3, header, body)
    });
    for status in join_all(sent).await {
        assert_eq!(status, 200);
    }
    assert_eq!(until(|| effects(&town, &order)).await, ONCE);
    assert_eq!(kept(&town).await, 50);
    town.ends().await;
}

#[tokio::test]
async fn a_buyer_who_comes_back_races_the_webhook_and_one_of_them_is_enough() {
    let races = if soak() { 1_000 } else { 20 };
    let mut town = Town::with(2, false).await;
    for race in 0..races {
        let who = format!("buyer{race}");
        let (order, payment) = paid(&town, &who).await;
        let body = event(&format!("evt_{race}"), &payment).to_string();
        let header = Some(signature(&[WEBHOOK_SECRET], body.as_bytes(), now()));
        let confirm = town.ask(
            &who,
            "POST",
            "/api/v1/marketplace/checkout/confirm",
            None,
            Some(json!({"order": order})),
        );
        let (told, (confirmed, seen)) = tokio::join!(send(&town, 1, header, body), confirm);
        assert_eq!((told, confirmed), (200, 200), "race {race}: {seen}");
        assert_eq!(until(|| effects(&town, &order)).await, ONCE, "race {race}");
    }
    town.ends().await;
}

/// Stripe tells that a session is completed; in its own words of it, or in somebody's.
fn completed(id: &str, session: &str, said: &str) -> Value {
    json!({
        "id": id, "object": "event", "type": "checkout.session.completed", "created": now(), "livemode": false,
        "data": {"object": {
            "id": session, "object": "checkout.session", "status": "complete", "payment_status": said, "mode": "payment"
        }}
    })
}

/// Tells of something, and waits until that is handled.
async fn tell(town: &Town, event: &Value) {
    let body = event.to_string();
    let header = signature(&[WEBHOOK_SECRET], body.as_bytes(), now());
    assert_eq!(send(town, 0, Some(header), body).await, 200, "{event}");
    until(async || {
        let open = "SELECT event_id FROM shop.inbox WHERE handled_at IS NULL";
        let open: Vec<String> = sqlx::query_scalar(open).fetch_all(&town.pool).await.unwrap();
        if open.is_empty() {
            Ok(())
        } else {
            Err(format!("{open:?} are not handled"))
        }
    })
    .await;
}

async fn stage(town: &Town, who: &str, order: &str) -> Value {
    let path = format!("/api/v1/marketplace/orders/{order}");
    town.ask(who, "GET", &path, None, None).await.1["stage"].clone()
}

/// What a completed session grants is what Stripe has of it when it is asked, and nothing of what the event says (CHK-06); and what money grants that
/// comes later (CHK-07).
#[tokio::test]
async fn a_completed_session_grants_what_stripe_says_of_it_and_no_more() {
    let mut town = Town::with(1, false).await;
    let licences = async |order: &str| -> i64 {
        let count = "SELECT count(*) FROM shop.licences WHERE order_id = $1::text::uuid";
        let count = sqlx::query_scalar(count).bind(order);
        count.fetch_one(&town.pool).await.unwrap()
    };
    // Nobody has paid, whatever the event says.
    let (order, session) = town.orders("alice", "notes", 1).await;
    tell(&town, &completed("evt_unpaid", &session, "paid")).await;
    assert_eq!(stage(&town, "alice", &order).await, "pending");
    assert_eq!(licences(&order).await, 0);
    // The money is on its way: it has not come, and then it has.
    let (late, session) = town.orders("bob", "notes", 1).await;
    town.stripe.act(&Act::PayLater(session.clone())).unwrap();
    tell(&town, &completed("evt_late", &session, "paid")).await;
    assert_eq!(stage(&town, "bob", &late).await, "awaiting_funds");
    assert_eq!(licences(&late).await, 0);
    town.stripe.act(&Act::Arrive(session.clone())).unwrap();
    let mut arrived = completed("evt_arrived", &session, "unpaid");
    arrived["type"] = json!("checkout.session.async_payment_succeeded");
    tell(&town, &arrived).await;
    assert_eq!(until(|| effects(&town, &late)).await, ONCE);
    // It does not come: the order can be paid otherwise.
    let (bounced, session) = town.orders("carol", "notes", 1).await;
    town.stripe.act(&Act::PayLater(session.clone())).unwrap();
    tell(&town, &completed("evt_waits", &session, "unpaid")).await;
    assert_eq!(stage(&town, "carol", &bounced).await, "awaiting_funds");
    town.stripe.act(&Act::Bounce(session.clone())).unwrap();
    let mut failed = completed("evt_bounced", &session, "paid");
    failed["type"] = json!("checkout.session.async_payment_failed");
    tell(&town, &failed).await;
    assert_eq!(stage(&town, "carol", &bounced).await, "pending");
    assert_eq!(licences(&bounced).await, 0);
    // Paid; and told again when all of it went back.
    let (paid, session) = town.orders("dan", "notes", 1).await;
    town.stripe.act(&Act::Pay(session.clone())).unwrap();
    tell(&town, &completed("evt_paid", &session, "unpaid")).await;
    assert_eq!(until(|| effects(&town, &paid)).await, ONCE);
    let refund = json!({"units": [{"line": 0, "unit": 0}], "reason": "withdrawn"});
    let path = format!("/api/v1/marketplace/orders/{paid}/refunds");
    let (status, asked) = town.ask("dan", "POST", &path, Some("r"), Some(refund)).await;
    assert_eq!(status, 202, "{asked}");
    town.reaches("dan", &paid, "refunded").await;
    tell(&town, &completed("evt_paid_again", &session, "paid")).await;
    assert_eq!(stage(&town, "dan", &paid).await, "refunded");
    assert_eq!(licences(&paid).await, 1);
    // Of another shop that has the same account, and of nobody.
    let of_others = [
        ("mode", "payment"),
        ("success_url", "https://other.example/"),
        ("line_items[0][quantity]", "1"),
        ("line_items[0][price_data][currency]", "eur"),
        ("line_items[0][price_data][unit_amount]", "2000"),
        ("line_items[0][price_data][product_data][name]", "Another shop's"),
        ("metadata[order]", "0b8b7e0e-0000-4000-8000-000000000000"),
    ];
    let of_others = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(of_others)
        .finish();
    let made = town
        .client
        .post(format!("{}/v1/checkout/sessions", town.stripe.base()))
        .bearer_auth(STRIPE_KEY)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(of_others)
        .send()
        .await
        .unwrap();
    let made: Value = serde_json::from_slice(&made.bytes().await.unwrap()).unwrap();
    let session = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    town.stripe.act(&Act::Pay(session.clone())).unwrap();
    tell(&town, &completed("evt_other", &session, "paid")).await;
    tell(&town, &completed("evt_nobody", "cs_test_nobody", "paid")).await;
    let ignored: Vec<String> =
        sqlx::query_scalar("SELECT event_id FROM shop.inbox WHERE ignored ORDER BY event_id")
            .fetch_all(&town.pool)
            .await
            .unwrap();
    assert_eq!(ignored, ["evt_nobody", "evt_other"]);
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM shop.orders")
        .fetch_one(&town.pool)
        .await
        .unwrap();
    assert_eq!(orders, 4);
    town.ends().await;
}
