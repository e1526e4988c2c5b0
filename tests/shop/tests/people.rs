//! People of a certified OpenID provider: they sign in as they would in a browser, with PKCE, and come in by the token that they get.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::{collections::BTreeMap, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::{Client, Method, Response, Url, header, redirect};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vitrine_parts::Node;
use vitrine_shop_tests::town::{Plan, Town};

/// Where the storefront has people come back to (`tests/oidc/provider.mjs`).
const BACK: &str = "http://127.0.0.1/signed-in";
/// What a person's storefront keeps until they are back (RFC 7636, section 4.1).
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters-as-it-has-to-be";

/// A browser, as far as this needs one: it keeps cookies and follows redirects.
struct Browser {
    client: Client,
    cookies: BTreeMap<String, String>,
}

/// Where a request has ended.
enum Page {
    /// A page of the provider's, at this address.
    Shown(Url, String),
    /// Back at the storefront, with this query.
    Back(BTreeMap<String, String>),
}

impl Browser {
    fn new() -> Self {
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .build()
            .unwrap();
        Self {
            client,
            cookies: BTreeMap::new(),
        }
    }

    fn keep(&mut self, answer: &Response) {
        for cookie in answer.headers().get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
    }

    async fn goes(&mut self, method: Method, address: Url, form: &[(&str, &str)]) -> Page {
        let (mut method, mut address, mut form) = (method, address, form);
        for _ in 0..10 {
            let cookies: Vec<_> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let mut request = self
                .client
                .request(method.clone(), address.clone())
                .header(header::COOKIE, cookies.join("; "));
            if method == Method::POST {
                request = request.header(header::CONTENT_TYPE, FORM).body(encoded(form));
            }
            let answer = request.send().await.unwrap();
            self.keep(&answer);
            if !answer.status().is_redirection() {
                return Page::Shown(address, answer.text().await.unwrap());
            }
            let to = answer.headers()[header::LOCATION].to_str().unwrap();
            let to = address.join(to).unwrap();
            if to.as_str().starts_with(BACK) {
                return Page::Back(to.query_pairs().into_owned().collect());
            }
            (method, address, form) = (Method::GET, to, &[]);
        }
        panic!("it goes round in circles, last at {address}");
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

fn encoded(form: &[(&str, &str)]) -> String {
    let mut encoder = form_urlencoded::Serializer::new(String::new());
    encoder.extend_pairs(form).finish()
}

/// Has somebody sign in; what the storefront gets by the code that they bring back.
async fn signs_in(issuer: &str, name: &str) -> Value {
    let mut browser = Browser::new();
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let query = [
        ("client_id", "storefront"),
        ("response_type", "code"),
        ("redirect_uri", BACK),
        ("scope", "openid offline_access"),
        ("prompt", "consent"),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ];
    let begin = Url::parse_with_params(&format!("{issuer}/auth"), query).unwrap();
    let mut page = browser.goes(Method::GET, begin, &[]).await;
    let code = loop {
        page = match page {
            Page::Back(query) => break query.get("code").unwrap_or_else(|| panic!("{query:?}")).clone(),
            Page::Shown(at, text) if text.contains("name=\"login\"") => {
                let form = [("prompt", "login"), ("login", name), ("password", "any")];
                browser.goes(Method::POST, at, &form).await
            }
            Page::Shown(at, text) if text.contains("value=\"consent\"") => {
                browser.goes(Method::POST, at, &[("prompt", "consent")]).await
            }
            Page::Shown(at, text) => panic!("{at}: {text}"),
        };
    };
    token(
        issuer,
        &[
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", BACK),
            ("code_verifier", VERIFIER),
        ],
    )
    .await
}

async fn token(issuer: &str, form: &[(&str, &str)]) -> Value {
    let form = [form, &[("client_id", "storefront")]].concat();
    let answer = Client::new()
        .post(format!("{issuer}/token"))
        .header(header::CONTENT_TYPE, FORM)
        .body(encoded(&form))
        .send()
        .await
        .unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

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
    let alice = signs_in(&issuer, "alice").await;
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
    // When hers is over, she gets another one; the first time only.
    let refresh = of(&alice, "refresh_token");
    let again = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh.as_str()),
    ];
    let next = of(&token(&issuer, &again).await, "access_token");
    assert!(next != access);
    assert_eq!(asks(&town, &next, Method::GET, ORDERS, &json!({})).await, 200);
    // Who runs the shop is who the provider says, with a second factor.
    let price =
        json!({"sku": "notes", "minor": 2500, "currency": "EUR", "taxRatePpm": 190_000, "taxIncluded": true});
    let prices = "/api/v1/admin/marketplace/prices";
    assert_eq!(asks(&town, &next, Method::POST, prices, &price).await, 403);
    let admin = of(&signs_in(&issuer, "admin").await, "access_token");
    assert_eq!(asks(&town, &admin, Method::POST, prices, &price).await, 201);
    town.ends().await;
}
