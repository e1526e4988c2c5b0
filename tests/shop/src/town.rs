//! The whole shop in one process, each part behind its own port of loopback: Stripe (the simulator), Finance, the signer, an identity provider,
//! the shop itself with its workers, and two databases in a real Postgres.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use vitrine_api::{
    bucket::Bucket,
    edges::House,
    flows::webhook::Endpoint,
    http::{self, Counter},
    identity::{Identity, Provider},
    lists,
    metrics::Counters,
    outside::{
        self,
        finance::FinanceApi,
        signer::SignerApi,
        stripe::{StripeApi, budget::Class},
    },
    store::postgres::{
        MIGRATIONS, Shop,
        listed::{Catalogue, Listed},
    },
    stripe_signature::Secrets,
    work::{self, Bench},
};
use vitrine_commerce::{licence::Grant, money::Money, note::NamedKey, price::Tax};
use vitrine_finance::{http as finance_http, ledger};
use vitrine_service::{Callers, Crowd, Metrics, Seal, Token, layered};
use vitrine_signer::http as signer_http;
use vitrine_stripe::{
    server::{Server as StripeServer, Webhooks},
    sim::Account,
};

use crate::{
    house::{Keys, seal},
    postgres::{Database, database, server},
    wire,
};

/// Stripe's secret key.
pub const STRIPE_KEY: &str = "sk_test_town";
/// The secret of its webhooks.
pub const WEBHOOK_SECRET: &str = "whsec_town_town_town_town";
/// The one before, which still lives while it is rolled.
pub const OLD_WEBHOOK_SECRET: &str = "whsec_before_before_before";
/// Between the parts of the installation.
pub(crate) const TOKEN: &str = "town-token-town-token-town-token-town-token";
/// Where a buyer begins.
pub const CHECKOUT: &str = "/api/v1/marketplace/checkout";
/// Requests a second that Stripe may be sent here: tests wait for nothing.
pub(crate) const NO_LIMIT: u32 = 1_000_000;
/// Requests of people that are answered at once: more than any test sends.
const AT_ONCE: usize = 1_000;
/// Whom tokens are for.
pub(crate) const AUDIENCE: &str = "vitrine";

/// A town.
pub struct Town {
    /// Where the shop is.
    pub base: String,
    /// Where each of its replicas is, that one first.
    pub replicas: Vec<String>,
    /// For requests to it.
    pub client: reqwest::Client,
    /// Stripe.
    pub stripe: StripeServer,
    /// The shop's store, for what is looked at behind its back.
    pub shop: Shop,
    /// The shop's database, as its owner.
    pub pool: PgPool,
    /// Finance's database, as its owner.
    pub books: PgPool,
    /// The pinned keys, as `vitrine licence verify --keys` reads them.
    pub pinned: String,
    around: Surroundings,
    finance_is_up: watch::Sender<bool>,
    ended: watch::Sender<bool>,
    work: JoinSet<()>,
}

/// What a shop needs around it, Stripe aside.
pub(crate) struct Surroundings {
    pub(crate) servers: JoinSet<()>,
    pub(crate) folder: PathBuf,
    pub(crate) of_shop: Database,
    pub(crate) of_finance: Database,
    pub(crate) finance: String,
    pub(crate) signer: String,
    pub(crate) provider: IdentityProvider,
    pub(crate) finance_key: NamedKey,
    pub(crate) licence_key: NamedKey,
    pub(crate) list_key: NamedKey,
}

impl Surroundings {
    pub(crate) async fn new() -> Self {
        let mut servers = JoinSet::new();
        let folder = std::env::temp_dir().join(format!("vitrine-town-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("token"), TOKEN).unwrap();
        let token = Arc::new(Token::read(&folder.join("token")).unwrap());
        let of_shop = database(server(), &MIGRATIONS).await;
        let of_finance = database(server(), &ledger::MIGRATIONS).await;
        let (finance_seal, licence_seal, list_seal) = (
            seal("shop.example/finance", 1),
            seal("shop.example/licence", 2),
            seal("shop.example/revocations", 3),
        );
        let finance = finance(&mut servers, &of_finance, finance_seal.clone(), token.clone()).await;
        let desk = signer_http::Desk {
            pool: of_shop.pool(Some("vitrine_signer"), 4).await,
            licences: licence_seal.clone(),
            revocations: list_seal.clone(),
            finance_keys: vec![finance_seal.key().clone()],
            token,
        };
        let signer = serve(&mut servers, signer_http::routes(desk)).await;
        let provider = IdentityProvider::start(&mut servers).await;
        Self {
            servers,
            folder,
            of_shop,
            of_finance,
            finance,
            signer,
            provider,
            finance_key: finance_seal.key().clone(),
            licence_key: licence_seal.key().clone(),
            list_key: list_seal.key().clone(),
        }
    }

    /// The pinned keys, as `vitrine licence verify --keys` reads them.
    fn pinned(&self) -> String {
        format!("licence {}\nrevocations {}\n", self.licence_key, self.list_key)
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Two products: `notes` for 20 EUR, tax included, and `gift` for nothing. By the database's owner.
pub async fn sell(pool: &PgPool) {
    let catalogue = Catalogue::new(pool.clone());
    let shop = Shop::new(pool.clone(), Keys::default().house());
    for (sku, minor, uid) in [("notes", 2000, 0), ("gift", 0, 1)] {
        let listed = Listed {
            sku: sku.to_owned(),
            object: (uuid::Uuid::from_u128(uid), 1),
            seller: "acme".to_owned(),
            title: sku.to_owned(),
            versions: ">=1, <2".to_owned(),
            grant: Grant::default(),
            prices: None,
        };
        catalogue.list(&listed).await.unwrap();
        let tax = Tax {
            rate_ppm: 190_000,
            included: true,
        };
        shop.add_price(sku, Money::new(minor, "EUR".parse().unwrap()), tax)
            .await
            .unwrap();
    }
}

/// Signs tokens, by keys that are known by their numbers.
pub struct IdentityProvider {
    /// What it says that its keys are.
    published: Arc<Mutex<Vec<u8>>>,
    /// Its address.
    pub issuer: String,
}

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

impl IdentityProvider {
    /// Its first key.
    pub const FIRST: u8 = 9;

    async fn start(servers: &mut JoinSet<()>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = format!("http://{}", listener.local_addr().unwrap());
        let published = Arc::new(Mutex::new(vec![Self::FIRST]));
        let told = published.clone();
        let discovery = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/jwks")});
        let keys = move || {
            let keys = told.lock().unwrap().clone().into_iter().map(|number| {
                let x = URL_SAFE_NO_PAD.encode(key(number).verifying_key().as_bytes());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": number.to_string(), "alg": "EdDSA", "use": "sig"})
            });
            Json(json!({"keys": keys.collect::<Vec<_>>()}))
        };
        let routes = Router::new()
            .route(
                "/.well-known/openid-configuration",
                get(async move || Json(discovery)),
            )
            .route("/jwks", get(async move || keys()));
        servers.spawn(async move { axum::serve(listener, routes).await.unwrap() });
        Self { published, issuer }
    }

    /// Has other keys from now on.
    pub fn publish(&self, keys: &[u8]) {
        *self.published.lock().unwrap() = keys.to_vec();
    }

    /// A token of a person, with these claims changed.
    pub fn token(&self, subject: &str, changed: &Value) -> String {
        self.token_by(Self::FIRST, subject, changed)
    }

    /// The same by another key, whether or not it is known.
    pub fn token_by(&self, number: u8, subject: &str, changed: &Value) -> String {
        let now = jiff::Timestamp::now().as_second();
        let mut claims =
            json!({"iss": self.issuer, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 600});
        for (name, value) in changed.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(number.to_string());
        let der = key(number).to_pkcs8_der().unwrap();
        encode(&header, &claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
    }
}

async fn serve(servers: &mut JoinSet<()>, routes: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let routes = layered(routes, Callers::Ours, Metrics::new());
    servers.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    base
}

impl Town {
    /// A town with one replica of the shop, which Stripe tells of what happens. Two products are sold: `notes` for 20 EUR, tax included, and `gift`
    /// for nothing.
    pub async fn new() -> Self {
        Self::with(1, true).await
    }

    /// The same with so many replicas; and Stripe may tell of nothing, so that a test does.
    pub async fn with(replicas: usize, stripe_tells: bool) -> Self {
        Self::built(Plan {
            replicas,
            stripe_tells,
            ..Plan::default()
        })
        .await
    }

    /// One as it is planned.
    pub async fn built(plan: Plan) -> Self {
        let mut around = Surroundings::new().await;
        // The shop's ports first: Stripe has to know where its events go, and the shop where Stripe is.
        let mut listeners = vec![];
        for _ in 0..plan.replicas {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let bases: Vec<_> = listeners
            .iter()
            .map(|listener| format!("http://{}", listener.local_addr().unwrap()))
            .collect();
        let stripe = stripe(plan.stripe_tells.then_some(bases[0].as_str())).await;
        let house = House {
            storefront: bases[0].clone(),
            licence_key: around.licence_key.clone(),
            finance_keys: vec![around.finance_key.clone()],
            revocations: format!("{}/revocations", bases[0]),
            staleness_seconds: 604_800,
            grace_seconds: 259_200,
        };
        let client = outside::client().unwrap();
        let (finance, finance_is_up) = wire::switched(&mut around.servers, around.finance.clone()).await;
        let (ended, told) = watch::channel(false);
        let (mut work, mut shops) = (JoinSet::new(), vec![]);
        for listener in listeners {
            let replica = Replica {
                shop: Shop::new(around.of_shop.pool(Some("vitrine_api"), 12).await, house.clone()),
                client: client.clone(),
                stripe: stripe.base(),
                finance: finance.clone(),
                signer: around.signer.clone(),
                issuer: plan
                    .issuer
                    .clone()
                    .unwrap_or_else(|| around.provider.issuer.clone()),
                takes_webhooks: plan.takes_webhooks,
                webhook_rate: plan.webhook_rate,
                stripe_rate: plan.stripe_rate,
                list_key: around.list_key.clone(),
            };
            shops.push(replica.shop.clone());
            let metrics = Metrics::new();
            let (counter, bench) = replica.parts(&metrics);
            let routes = layered(http::routes(counter), Callers::Anybody, metrics);
            around
                .servers
                .spawn(async move { axum::serve(listener, routes).await.unwrap() });
            work.spawn(work::run(Arc::new(bench), 2, told.clone()));
        }
        let town = Self {
            base: bases[0].clone(),
            replicas: bases,
            client,
            stripe,
            shop: shops[0].clone(),
            pool: around.of_shop.pool(None, 4).await,
            books: around.of_finance.pool(None, 4).await,
            pinned: around.pinned(),
            around,
            finance_is_up,
            ended,
            work,
        };
        sell(&town.pool).await;
        town
    }

    /// Takes Finance away from the shop, or gives it back.
    pub fn finance_is_up(&self, is_up: bool) {
        self.finance_is_up.send_replace(is_up);
    }

    /// Finance, as the shop asks it, and the key that it signs with.
    pub fn finance(&self) -> (FinanceApi, NamedKey) {
        let finance = FinanceApi::new(self.client.clone(), self.around.finance.clone(), TOKEN.to_owned());
        (finance, self.around.finance_key.clone())
    }

    /// Asks the signer to sign a licence; status and body.
    pub async fn signs(&self, licence: uuid::Uuid) -> (u16, Value) {
        let to = format!("{}/licences/{licence}/signature", self.around.signer);
        ask(&self.client, &to, TOKEN, "POST", None, None).await.unwrap()
    }

    /// Who signs people's tokens.
    pub fn provider(&self) -> &IdentityProvider {
        &self.around.provider
    }

    /// A token of a person, with these claims changed.
    pub fn token(&self, subject: &str, changed: &Value) -> String {
        self.around.provider.token(subject, changed)
    }

    /// Asks the shop as a person; status and body.
    pub async fn ask(
        &self,
        subject: &str,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> (u16, Value) {
        let (to, token) = (format!("{}{path}", self.base), self.token(subject, &json!({})));
        ask(&self.client, &to, &token, method, key, body).await.unwrap()
    }

    /// Has somebody who runs the shop ask for something to be made; status and body.
    pub async fn ask_as_admin(&self, path: &str, body: Value) -> (u16, Value) {
        let runs_it = json!({"groups": ["vitrine:admins"], "amr": ["mfa"]});
        let (to, token) = (format!("{}{path}", self.base), self.token("admin", &runs_it));
        ask(&self.client, &to, &token, "POST", None, Some(body))
            .await
            .unwrap()
    }

    /// Connections to the shop's database, by a role.
    pub async fn pool_of(&self, role: &str) -> PgPool {
        self.around.of_shop.pool(Some(role), 2).await
    }

    /// Has a person order so many of a product; the order, and the session that it is paid at.
    pub async fn orders(&self, subject: &str, sku: &str, quantity: u32) -> (String, String) {
        let wanted = Some(wants(sku, quantity));
        let (status, made) = self.ask(subject, "POST", CHECKOUT, Some("k"), wanted).await;
        assert_eq!(status, 201, "{made}");
        (made["order"].as_str().unwrap().to_owned(), session_of(&made))
    }

    /// The payment of a session that was paid.
    pub fn payment_of(&self, session: &str) -> String {
        let stripe = self.stripe.stripe();
        let session = stripe.session(session).unwrap();
        session.payment_intent.clone().unwrap()
    }

    /// The list of revoked licences, once there is one.
    pub async fn revocations(&self) -> Vec<u8> {
        until(async || {
            let answer = self
                .client
                .get(format!("{}/revocations", self.base))
                .send()
                .await
                .unwrap();
            if answer.status().is_success() {
                Ok(answer.bytes().await.unwrap().into())
            } else {
                Err(answer.status().to_string())
            }
        })
        .await
    }

    /// Waits until a person's order is so far.
    pub async fn reaches(&self, subject: &str, order: &str, stage: &str) -> Value {
        let path = format!("/api/v1/marketplace/orders/{order}");
        until(async || {
            let (_, seen) = self.ask(subject, "GET", &path, None, None).await;
            if seen["stage"] == stage {
                Ok(seen)
            } else {
                Err(seen.to_string())
            }
        })
        .await
    }

    /// Ends its workers, as processes that are told to end.
    pub async fn ends(&mut self) {
        let _ = self.ended.send(true);
        while let Some(worked) = self.work.join_next().await {
            worked.unwrap();
        }
    }
}

/// How a town is built.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Replicas of the shop.
    pub replicas: usize,
    /// Whether Stripe tells the first of them of what happens.
    pub stripe_tells: bool,
    /// Whose tokens are taken; the town's own provider's without.
    pub issuer: Option<String>,
    /// Whether there is a secret by which webhooks are taken.
    pub takes_webhooks: bool,
    /// Requests a second that each replica looks at there, of those that cannot be Stripe's.
    pub webhook_rate: u32,
    /// Requests a second that each replica sends to Stripe.
    pub stripe_rate: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            replicas: 1,
            stripe_tells: true,
            issuer: None,
            takes_webhooks: true,
            webhook_rate: NO_LIMIT,
            stripe_rate: NO_LIMIT,
        }
    }
}

/// What a replica of the shop is made of.
struct Replica {
    shop: Shop,
    client: reqwest::Client,
    stripe: String,
    finance: String,
    signer: String,
    issuer: String,
    takes_webhooks: bool,
    webhook_rate: u32,
    stripe_rate: u32,
    list_key: NamedKey,
}

impl Replica {
    fn parts(self, metrics: &Metrics) -> (Counter, Bench) {
        let counters = Counters::new(metrics.registry());
        let stripe = StripeApi::new(
            self.client.clone(),
            self.stripe,
            STRIPE_KEY.to_owned(),
            self.stripe_rate,
        );
        let bench = Bench {
            shop: self.shop.clone(),
            stripe: stripe.of(Class::Worker),
            finance: FinanceApi::new(self.client.clone(), self.finance, TOKEN.to_owned()),
            signer: SignerApi::new(self.client.clone(), self.signer, TOKEN.to_owned()),
            counters: counters.clone(),
            lists: lists::Settings { key: self.list_key },
        };
        let provider = Provider {
            issuer: self.issuer,
            audience: AUDIENCE.to_owned(),
            admins: "vitrine:admins".to_owned(),
            second_factor: "urn:vitrine:loa:2".to_owned(),
        };
        let secrets = self
            .takes_webhooks
            .then_some([WEBHOOK_SECRET, OLD_WEBHOOK_SECRET].map(str::to_owned));
        let counter = Counter {
            shop: self.shop,
            stripe,
            endpoint: Arc::new(Endpoint {
                secrets: secrets.and_then(Secrets::new),
                livemode: false,
                account: None,
            }),
            events: Arc::new(Bucket::new(self.webhook_rate)),
            identity: Arc::new(Identity::new(provider, self.client)),
            crowd: Crowd::of(AT_ONCE),
            counters,
        };
        (counter, bench)
    }
}

async fn finance(servers: &mut JoinSet<()>, database: &Database, seal: Seal, token: Arc<Token>) -> String {
    let pool = database.pool(None, 4).await;
    let (ledger, writer) = ledger::Ledger::new(pool.clone(), seal);
    servers.spawn(writer.run());
    serve(
        servers,
        finance_http::routes(finance_http::Finance { ledger, pool, token }),
    )
    .await
}

pub(crate) async fn stripe(told: Option<&str>) -> StripeServer {
    let account = Account {
        key: STRIPE_KEY.to_owned(),
        livemode: false,
        refunds_wait: false,
        pages: String::new(),
    };
    let webhooks = told.map(|shop| Webhooks {
        url: format!("{shop}/webhooks/stripe"),
        secrets: vec![WEBHOOK_SECRET.to_owned()],
    });
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    StripeServer::start(any, account, webhooks).await.unwrap()
}

/// Asks somebody something; status and body.
///
/// # Errors
/// If nobody answers.
pub async fn ask(
    client: &reqwest::Client,
    to: &str,
    token: &str,
    method: &str,
    key: Option<&str>,
    body: Option<Value>,
) -> reqwest::Result<(u16, Value)> {
    let mut request = client.request(method.parse().unwrap(), to).bearer_auth(token);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    if let Some(body) = body {
        request = request
            .header("content-type", "application/json")
            .body(body.to_string());
    }
    let answer = request.send().await?;
    let (status, body) = (answer.status().as_u16(), answer.bytes().await?);
    let text = || json!(String::from_utf8_lossy(&body));
    Ok((status, serde_json::from_slice(&body).unwrap_or_else(|_| text())))
}

/// What buys so many of one product.
pub fn wants(sku: &str, quantity: u32) -> Value {
    json!({"items": [{"sku": sku, "quantity": quantity}], "currency": "EUR"})
}

/// The session that a buyer was sent to, by what the checkout has answered.
pub fn session_of(made: &Value) -> String {
    let url = made["url"].as_str().unwrap();
    url.rsplit('/').next().unwrap().to_owned()
}

/// Waits until something is so.
///
/// # Panics
/// If it is not so within ten seconds, with what was seen last.
pub async fn until<T, F: Future<Output = Result<T, String>>>(so: impl FnMut() -> F) -> T {
    const PATIENCE: Duration = Duration::from_secs(10);
    let seen = within(PATIENCE, so).await;
    seen.unwrap_or_else(|seen| panic!("not within {PATIENCE:?}: {seen}"))
}

/// Waits for so long until something is so.
///
/// # Errors
/// What was seen last, if it is not.
pub async fn within<T, F: Future<Output = Result<T, String>>>(
    patience: Duration,
    mut so: impl FnMut() -> F,
) -> Result<T, String> {
    let begun = std::time::Instant::now();
    loop {
        match so().await {
            Err(_) if begun.elapsed() <= patience => tokio::time::sleep(Duration::from_millis(20)).await,
            seen => return seen,
        }
    }
}
