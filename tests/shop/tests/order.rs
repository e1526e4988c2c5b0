//! One order, for ever: paid, acknowledged by Finance, licensed, verified without a network, refunded, refused.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use vitrine_commerce::licence::{Asked, Code, Remembered, Trust, verify};
use vitrine_shop_tests::town::{CHECKOUT, IdentityProvider, Town, ask, session_of, until, wants, within};
use vitrine_stripe::sim::Act;

fn judged(town: &Town, licence: &str, revocations: &[u8]) -> Code {
    let trust = Trust::read(&town.pinned).unwrap();
    let asked = Asked {
        revocations: Some(revocations),
        now: Timestamp::now(),
        remembered: Remembered::default(),
        account: None,
        sku: Some("notes"),
        version: None,
    };
    verify(licence.as_bytes(), &trust, &asked).code
}

#[tokio::test]
async fn an_order_is_paid_licensed_verified_refunded_and_refused() {
    let mut town = Town::new().await;
    let (status, made) = town
        .ask("alice", "POST", CHECKOUT, Some("k1"), Some(wants("notes", 2)))
        .await;
    assert_eq!(
        (status, &made["total"]),
        (201, &json!({"minor": 4000, "currency": "EUR"})),
        "{made}"
    );
    // Asked again it is the same order, and the same session.
    assert_eq!(
        town.ask("alice", "POST", CHECKOUT, Some("k1"), Some(wants("notes", 2)))
            .await,
        (201, made.clone())
    );
    let (status, other) = town
        .ask("alice", "POST", CHECKOUT, Some("k1"), Some(wants("notes", 1)))
        .await;
    assert_eq!((status, &other["code"]), (422, &json!("key-reused")), "{other}");
    let order = made["order"].as_str().unwrap();
    // Coming back without having paid grants nothing.
    let confirm = json!({"order": order});
    let (status, seen) = town
        .ask(
            "alice",
            "POST",
            "/api/v1/marketplace/checkout/confirm",
            None,
            Some(confirm.clone()),
        )
        .await;
    assert_eq!((status, &seen["stage"]), (200, &json!("pending")), "{seen}");
    let session = session_of(&made);
    town.stripe.act(&Act::Decline(session.clone())).unwrap();
    town.stripe.act(&Act::Pay(session)).unwrap();
    let done = town.reaches("alice", order, "completed").await;
    assert_eq!(done["payment"]["paymentStatus"], "succeeded");
    // Each step is written down before the next one (FIN-01): paid, acknowledged by Finance, licensed.
    let steps: Vec<String> = sqlx::query_scalar(
        "SELECT coalesce(body ->> 'to', kind) FROM shop.audit WHERE aggregate = $1::uuid AND kind IN ('order.placed', 'order.status') ORDER BY number",
    )
    .bind(order)
    .fetch_all(&town.pool)
    .await
    .unwrap();
    assert_eq!(
        steps,
        ["order.placed", "awaiting_finance", "licensing", "completed"],
        "the audit log of {order}"
    );
    // What buyers and the shop's people name it by (CHK-14): the next one's is another.
    let (later, _) = town.orders("bob", "notes", 1).await;
    let path = format!("/api/v1/marketplace/orders/{later}");
    let (_, later) = town.ask("bob", "GET", &path, None, None).await;
    let (_, all) = town
        .ask("alice", "GET", "/api/v1/marketplace/orders", None, None)
        .await;
    assert_eq!(all["orders"][0]["number"], done["number"]);
    assert!(later["number"].as_i64() > done["number"].as_i64(), "{later}");
    // Another's order is not there.
    let (status, _) = town
        .ask(
            "mallory",
            "GET",
            &format!("/api/v1/marketplace/orders/{order}"),
            None,
            None,
        )
        .await;
    assert_eq!(status, 404);
    let (_, licences) = town
        .ask("alice", "GET", "/api/v1/marketplace/licenses", None, None)
        .await;
    let licences: Vec<_> = licences
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["document"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(licences.len(), 2);
    let before = town.revocations().await;
    assert!(
        licences
            .iter()
            .all(|licence| judged(&town, licence, &before) == Code::Valid)
    );
    let refund = json!({"units": [{"line": 0, "unit": 1}], "reason": "withdrawn"});
    let path = format!("/api/v1/marketplace/orders/{order}/refunds");
    let (status, asked) = town
        .ask("alice", "POST", &path, Some("r1"), Some(refund.clone()))
        .await;
    assert_eq!(
        (status, &asked["amount"]["minor"]),
        (202, &json!(2000)),
        "{asked}"
    );
    assert_eq!(
        town.ask("alice", "POST", &path, Some("r1"), Some(refund.clone()))
            .await,
        (202, asked)
    );
    town.reaches("alice", order, "partly_refunded").await;
    let (status, twice) = town.ask("alice", "POST", &path, Some("r2"), Some(refund)).await;
    assert_eq!(
        (status, &twice["code"]),
        (409, &json!("unit-refunded")),
        "{twice}"
    );
    let codes = until(async || {
        let now = town.revocations().await;
        let codes: Vec<_> = licences
            .iter()
            .map(|licence| judged(&town, licence, &now))
            .collect();
        if codes.contains(&Code::Revoked) {
            Ok(codes)
        } else {
            Err(format!("{codes:?}"))
        }
    })
    .await;
    assert_eq!(
        codes.iter().filter(|code| **code == Code::Valid).count(),
        1,
        "{codes:?}"
    );
    // Finance has it all, and it adds up.
    let kinds: Vec<String> = until(async || {
        let kinds: Vec<String> = sqlx::query_scalar("SELECT kind FROM ledger.entries ORDER BY kind")
            .fetch_all(&town.books)
            .await
            .unwrap();
        if kinds.len() == 5 {
            Ok(kinds)
        } else {
            Err(format!("{kinds:?}"))
        }
    })
    .await;
    assert_eq!(kinds, ["deposit", "post", "post", "refund", "reserve"]);
    let cash: i64 =
        sqlx::query_scalar("SELECT sum(minor)::bigint FROM ledger.postings WHERE account = 'cash'")
            .fetch_one(&town.books)
            .await
            .unwrap();
    assert_eq!(cash, 2000);
    town.ends().await;
}

#[tokio::test]
async fn nobody_sends_buyers_elsewhere_than_to_the_storefront() {
    let mut town = Town::new().await;
    for name in [
        "successUrl",
        "success_url",
        "cancelUrl",
        "cancel_url",
        "returnUrl",
        "redirect",
    ] {
        let mut wanted = wants("notes", 1);
        wanted[name] = json!("https://elsewhere.example/");
        let (status, said) = town
            .ask("alice", "POST", CHECKOUT, Some("k1"), Some(wanted))
            .await;
        assert_eq!((status, &said["code"]), (422, &json!("body-unsound")), "{said}");
    }
    // Headers from which a host may be made say nothing either.
    let answer = town
        .client
        .post(format!("{}{CHECKOUT}", town.base))
        .bearer_auth(town.token("alice", &json!({})))
        .header("idempotency-key", "k2")
        .header("content-type", "application/json")
        .header("x-forwarded-host", "elsewhere.example")
        .header("forwarded", "host=elsewhere.example")
        .header("origin", "https://elsewhere.example")
        .header("referer", "https://elsewhere.example/")
        .body(wants("notes", 1).to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 201);
    let asked = town.stripe.asked();
    let session = asked
        .iter()
        .find(|request| request.path == "/v1/checkout/sessions")
        .unwrap();
    assert!(!session.body.contains("elsewhere"), "{session:?}");
    town.ends().await;
}

#[tokio::test]
async fn what_costs_nothing_is_licensed_without_stripe() {
    let mut town = Town::new().await;
    let (status, made) = town
        .ask("alice", "POST", CHECKOUT, Some("k1"), Some(wants("gift", 1)))
        .await;
    assert_eq!((status, &made["url"]), (201, &Value::Null), "{made}");
    town.reaches("alice", made["order"].as_str().unwrap(), "completed")
        .await;
    assert!(town.stripe.stripe().events().is_empty());
    town.ends().await;
}

#[tokio::test]
async fn nobody_comes_in_without_a_token_of_the_provider() {
    let mut town = Town::new().await;
    let ask = async |token: &str| {
        let answer = town
            .client
            .get(format!("{}/api/v1/marketplace/orders", town.base))
            .bearer_auth(token)
            .send()
            .await
            .unwrap();
        answer.status().as_u16()
    };
    assert_eq!(ask(&town.token("alice", &json!({}))).await, 200);
    let now = Timestamp::now().as_second();
    for changed in [
        json!({"iss": "https://elsewhere.example"}),
        json!({"aud": "another"}),
        json!({"exp": now - 60}),
        json!({"nbf": now + 600}),
        json!({"sub": null}),
    ] {
        assert_eq!(ask(&town.token("alice", &changed)).await, 401, "{changed}");
    }
    let good = town.token("alice", &json!({}));
    let (signed, _) = good.rsplit_once('.').unwrap();
    assert_eq!(ask(&format!("{signed}.AAAA")).await, 401);
    assert_eq!(ask("").await, 401);
    // The rest of the token as it was, and no signature (RFC 8725, section 2.1).
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", signed.split('.').nth(1).unwrap());
    assert_eq!(ask(&unsigned).await, 401);
    // The provider has another key: known as soon as it may be asked again, which nobody who sends tokens can have done more often.
    let (second, stranger) = (10, 11);
    let provider = town.provider();
    let by = |key: u8| provider.token_by(key, "alice", &json!({}));
    let comes_to = async |key: u8, status: u16| {
        let seen = within(Duration::from_secs(20), async || match ask(&by(key)).await {
            seen if seen == status => Ok(()),
            seen => Err(seen.to_string()),
        });
        assert_eq!(seen.await, Ok(()), "key {key}");
    };
    provider.publish(&[IdentityProvider::FIRST, second]);
    comes_to(second, 200).await;
    assert_eq!(ask(&good).await, 200);
    // One that it has no more is none for long: a token by a stranger's has the keys asked for.
    provider.publish(&[second]);
    let gone = within(Duration::from_secs(20), async || {
        assert_eq!(ask(&by(stranger)).await, 401);
        match ask(&good).await {
            401 => Ok(()),
            seen => Err(seen.to_string()),
        }
    });
    assert_eq!(gone.await, Ok(()));
    assert_eq!(ask(&by(second)).await, 200);
    town.ends().await;
}

/// Whoever orders from two tabs at once is one customer of Stripe's (CHK-20).
#[tokio::test]
async fn a_buyer_who_orders_many_times_at_once_is_one_customer() {
    let mut town = Town::with(3, true).await;
    let orders = (0..12).map(|number| {
        let (client, token) = (town.client.clone(), town.token("bob", &json!({})));
        let to = format!("{}{CHECKOUT}", town.replicas[number % town.replicas.len()]);
        async move {
            let key = format!("k{number}");
            let asked = ask(&client, &to, &token, "POST", Some(&key), Some(wants("notes", 1)));
            asked.await.unwrap()
        }
    });
    for (status, made) in futures::future::join_all(orders).await {
        assert_eq!(status, 201, "{made}");
    }
    {
        let stripe = town.stripe.stripe();
        let made = stripe
            .events()
            .iter()
            .filter(|event| event.kind == "customer.created");
        assert_eq!(made.count(), 1);
        let customers = stripe.sessions().map(|session| session.customer.clone());
        let customers: std::collections::BTreeSet<_> = customers.collect();
        assert_eq!((stripe.sessions().count(), customers.len()), (12, 1));
    }
    town.ends().await;
}
