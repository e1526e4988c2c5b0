//! What a shop needs around it when it is a process of its own: proxies that number what has an effect stand before its database, Stripe and Finance.

use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use vitrine_api::store::postgres::Shop;
use vitrine_parts::{OWNER, Port};
use vitrine_stripe::server::Server as StripeServer;

use crate::{
    house::Keys,
    postgres::server,
    town::{
        AUDIENCE, OLD_WEBHOOK_SECRET, STRIPE_KEY, Surroundings, TOKEN, WEBHOOK_SECRET, ask, sell, stripe,
    },
    wire::{self, Numbers},
};

/// Leases are over when a process is started again: the database's clock, which they go by, can be put forward.
const CLOCK: &str = "
CREATE TABLE test_clock (ahead interval NOT NULL); INSERT INTO test_clock VALUES ('0');
GRANT SELECT ON test_clock TO vitrine_api;
CREATE OR REPLACE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now() + ahead FROM public.test_clock';
";

/// All of that.
pub struct Around {
    /// What the shop's process is started with.
    pub arguments: Vec<String>,
    /// Stripe.
    pub stripe: StripeServer,
    /// The shop's database, as its owner.
    pub pool: PgPool,
    /// Finance's database, as its owner.
    pub books: PgPool,
    base: String,
    client: reqwest::Client,
    around: Surroundings,
    _ports: [Port; 2],
}

impl Around {
    /// With the products of [`crate::town`].
    pub async fn new(numbers: &Numbers) -> Self {
        let mut around = Surroundings::new().await;
        around.of_shop.connect().await.execute(CLOCK).await.unwrap();
        let pool = around.of_shop.pool(None, 4).await;
        sell(&Shop::new(pool.clone(), Keys::default().house())).await;
        let ports = [Port::take(), Port::take()];
        let [address, metrics] = ports.each_ref().map(|port| port.address.to_string());
        let base = format!("http://{address}");
        let stripe = stripe(Some(&base)).await;
        let sockets = around.folder.join("sockets");
        std::fs::create_dir_all(&sockets).unwrap();
        let host = wire::postgres(&mut around.servers, &sockets, server().folder(), numbers);
        let to_stripe = wire::http(&mut around.servers, stripe.base(), "Stripe", numbers.clone()).await;
        let to_finance = wire::http(
            &mut around.servers,
            around.finance.clone(),
            "Finance",
            numbers.clone(),
        )
        .await;
        let file = |name: &str, text: &str| {
            let path = around.folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let database = format!(
            "postgres://{OWNER}@localhost/{}?host={}&options=-c%20role%3Dvitrine_api",
            around.of_shop.name(),
            host.display()
        );
        let settings = [
            ("listen", address.clone()),
            ("metrics", metrics),
            ("database", database),
            ("workers", "2".to_owned()),
            ("storefront", base.clone()),
            ("public-url", base.clone()),
            ("licence-key", around.licence_key.to_string()),
            ("revocations-key", around.list_key.to_string()),
            ("stripe", to_stripe),
            ("stripe-key", file("stripe-key", STRIPE_KEY)),
            (
                "webhook-secrets",
                file(
                    "webhook-secrets",
                    &format!("{WEBHOOK_SECRET}\n{OLD_WEBHOOK_SECRET}\n"),
                ),
            ),
            ("finance", to_finance),
            ("finance-token", file("finance-token", TOKEN)),
            ("finance-key", around.finance_key.to_string()),
            ("signer", around.signer.clone()),
            ("signer-token", file("signer-token", TOKEN)),
            ("issuer", around.provider.issuer.clone()),
            ("audience", AUDIENCE.to_owned()),
        ];
        let settings = settings
            .into_iter()
            .map(|(name, value)| format!("--{name}={value}"));
        Self {
            arguments: std::iter::once("serve".to_owned()).chain(settings).collect(),
            stripe,
            books: around.of_finance.pool(None, 4).await,
            pool,
            base,
            client: vitrine_api::outside::client().unwrap(),
            around,
            _ports: ports,
        }
    }

    /// Lets so many seconds pass for leases and for what is tried later.
    pub async fn passes(&self, seconds: i32) {
        let put_forward =
            sqlx::query("UPDATE test_clock SET ahead = ahead + $1 * interval '1 second'").bind(seconds);
        put_forward.execute(&self.pool).await.unwrap();
    }

    /// Asks the shop as a person; `None` if nobody answers.
    pub async fn ask(
        &self,
        subject: &str,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> Option<(u16, Value)> {
        let to = format!("{}{path}", self.base);
        let token = self.around.provider.token(subject, &json!({}));
        ask(&self.client, &to, &token, method, key, body).await.ok()
    }
}
