//! People of a certified OpenID provider: they sign in as they would in a browser, with PKCE, and come in by the token that they get.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::path::Path;

use reqwest::{Client, Method, header};
use serde_json::{Value, json};
use vitrine_parts::{Node, People};
use vitrine_shop_tests::town::{Plan, Town};

async fn asks(town: &Town, token: &str, method: Method, path: &str, body: &Value) -> u16 {
    let answer = town
        .client
        .request(method, format!("{}{path}", town.base))
        .bearer_auth(token)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn people_of_a_certified_provider_come_in_by_the_token_that_they_get() {
    const ORDERS: &str = "/api/v1/marketplace/orders";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../oidc");
    let provider = Node::start(&folder, "provider.mjs").unwrap();
    let issuer = format!("http://{}", provider.port.address);
    let mut town = Town::built(Plan {
        issuer: Some(issuer.clone()),
        ..Plan::default()
    })
    .await;
    let people = People::of(&issuer, Client::builder()).unwrap();
    let alice = people.sign_in("alice").await.unwrap();
    let of = |said: &Value, name: &str| said[name].as_str().unwrap_or_else(|| panic!("{said}")).to_owned();
    let access = of(&alice, "access_token");
    assert_eq!(asks(&town, &access, Method::GET, ORDERS, &json!({})).await, 200);
    // Her id token is for the storefront, and opens nothing here.
    assert_eq!(
        asks(&town, &of(&alice, "id_token"), Method::GET, ORDERS, &json!({})).await,
        401
    );
    // A token of the town's own provider, which is another one.
    let other = town.token("alice", &json!({"iss": issuer}));
    assert_eq!(asks(&town, &other, Method::GET, ORDERS, &json!({})).await, 401);
    // When hers is over, she gets another one; by a refresh token that is for once (RFC 9700, section 4.14.2). Whoever has taken it finds it spent,
    // and with that all that came of it is over.
    let refreshes = async |token: &str| {
        let grant = [("grant_type", "refresh_token"), ("refresh_token", token)];
        people.token(&grant).await.unwrap()
    };
    let first = of(&alice, "refresh_token");
    let again = refreshes(&first).await;
    let (next, second) = (of(&again, "access_token"), of(&again, "refresh_token"));
    assert!(next != access && second != first);
    assert_eq!(asks(&town, &next, Method::GET, ORDERS, &json!({})).await, 200);
    for spent in [&first, &second] {
        assert_eq!(refreshes(spent).await["error"], "invalid_grant");
    }
    // Who runs the shop is who the provider says, with a second factor.
    let price =
        json!({"sku": "notes", "minor": 2500, "currency": "EUR", "taxRatePpm": 190_000, "taxIncluded": true});
    let prices = "/api/v1/admin/marketplace/prices";
    assert_eq!(asks(&town, &next, Method::POST, prices, &price).await, 403);
    let admin = of(&people.sign_in("admin").await.unwrap(), "access_token");
    assert_eq!(asks(&town, &admin, Method::POST, prices, &price).await, 201);
    town.ends().await;
}
