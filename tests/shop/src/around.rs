//! What a shop needs around it when it is a process of its own. Proxies that number what has an effect may stand before its database, Stripe and
//! Finance.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use vitrine_parts::{OWNER, Port};
use vitrine_stripe::server::Server as StripeServer;

use crate::{
    postgres::server,
    town::{
        AUDIENCE, NO_LIMIT, OLD_WEBHOOK_SECRET, STRIPE_KEY, Surroundings, TOKEN, WEBHOOK_SECRET, ask, sell,
        stripe,
    },
    wire::{self, Numbers},
};

/// Leases are over when a process is started again: the database's clock, which they go by, can be put forward.
pub const CLOCK: &str = "
CREATE TABLE test_clock (ahead interval NOT NULL); INSERT INTO test_clock VALUES ('0');
GRANT SELECT ON test_clock TO vitrine_api;
CREATE OR REPLACE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now() + ahead FROM public.test_clock';
";

/// The shop's program, as it is built now. `folder` is the integration test's `CARGO_TARGET_TMPDIR`.
///
/// # Panics
/// If it cannot be built.
pub fn program(folder: &str) -> PathBuf {
    let target = Path::new(folder).parent().unwrap();
    // Of the whole workspace: with the features with which everything is compiled already.
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--workspace", "--bin=vitrine-api"]);
    let built = build.arg("--target-dir").arg(target).output().unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    target.join("debug/vitrine-api")
}

/// Starts the shop's process; what it says is nobody's business but for errors.
///
/// # Panics
/// If it cannot be started.
pub fn spawn(program: &Path, arguments: &[String]) -> Child {
    spawn_with(program, arguments, &[])
}

/// The same with variables.
///
/// # Panics
/// If it cannot be started.
pub fn spawn_with(program: &Path, arguments: &[String], variables: &[(&str, &str)]) -> Child {
    Command::new(program)
        .args(arguments)
        .env("RUST_LOG", "error")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

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
    /// Where the shop's process listens.
    pub base: String,
    /// Where it says how it is.
    pub watched: String,
    client: reqwest::Client,
    around: Surroundings,
    _ports: [Port; 2],
}

impl Around {
    /// With the products of [`crate::town`], and with proxies that number what has an effect.
    pub async fn numbered(numbers: &Numbers) -> Self {
        Self::with(Some(numbers), true, 2).await
    }

    /// With nothing in between, so many workers, and a Stripe that tells of nothing: a load does.
    pub async fn direct(workers: usize) -> Self {
        Self::with(None, false, workers).await
    }

    async fn with(numbers: Option<&Numbers>, stripe_tells: bool, workers: usize) -> Self {
        let mut around = Surroundings::new().await;
        if numbers.is_some() {
            around.of_shop.connect().await.execute(CLOCK).await.unwrap();
        }
        let pool = around.of_shop.pool(None, 4).await;
        sell(&pool).await;
        let ports = [Port::take(), Port::take()];
        let [address, metrics] = ports.each_ref().map(|port| port.address.to_string());
        let base = format!("http://{address}");
        let stripe = stripe(stripe_tells.then_some(base.as_str())).await;
        let (host, to_stripe, to_finance) = match numbers {
            None => (
                server().folder().to_owned(),
                stripe.base(),
                around.finance.clone(),
            ),
            Some(numbers) => {
                let sockets = around.folder.join("sockets");
                std::fs::create_dir_all(&sockets).unwrap();
                let (servers, finance) = (&mut around.servers, around.finance.clone());
                (
                    wire::postgres(servers, &sockets, server().folder(), numbers),
                    wire::http(servers, stripe.base(), "Stripe", numbers.clone()).await,
                    wire::http(servers, finance, "Finance", numbers.clone()).await,
                )
            }
        };
        let file = |name: &str, text: &str| {
            let path = around.folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        // The proxy reads what passes, and begins with the first message that is not about TLS.
        let database = format!(
            "postgres://{OWNER}@localhost/{}?host={}&sslmode=disable&options=-c%20role%3Dvitrine_api",
            around.of_shop.name(),
            host.display()
        );
        let settings = [
            ("listen", address.clone()),
            ("metrics", metrics.clone()),
            ("database", database),
            ("workers", workers.to_string()),
            // What a load waits for is to be seen, and not turned away.
            ("at-once", NO_LIMIT.to_string()),
            ("storefront", base.clone()),
            ("public-url", base.clone()),
            ("licence-key", around.licence_key.to_string()),
            ("revocations-key", around.list_key.to_string()),
            ("stripe", to_stripe),
            ("stripe-rate", NO_LIMIT.to_string()),
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
            watched: format!("http://{metrics}"),
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

    /// A token of a person.
    pub fn token(&self, subject: &str) -> String {
        self.around.provider.token(subject, &json!({}))
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
        let token = self.token(subject);
        ask(&self.client, &to, &token, method, key, body).await.ok()
    }
}
