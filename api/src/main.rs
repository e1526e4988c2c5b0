//! Command line of the shop. Parses, sets up, hands over.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use vitrine_api::{
    books::{self, BooksError},
    bucket::Bucket,
    catalogue::watch::{self, CatalogueError},
    edges::House,
    flows::webhook::Endpoint,
    http::{self, Counter},
    identity::{Identity, Provider},
    lists,
    metrics::{Counters, OfCatalogue},
    outside::{
        self,
        finance::FinanceApi,
        signer::SignerApi,
        stripe::{StripeApi, budget::Class},
    },
    seams::StoreError,
    store::postgres::{Books, MIGRATIONS, Shop, listed},
    stripe_signature::Secrets,
    work::{self, Bench},
};
use vitrine_commerce::{
    finance::Kept,
    note::{BadKey, NamedKey},
};
use vitrine_service::{
    Addresses, Callers, Crowd, Database, Metrics, NotServed, Readiness, ended, serve, watch_schema,
};

#[derive(Parser)]
#[command(
    name = "vitrine-api",
    version,
    about = "The shop: checkout, orders and licences, behind HTTP"
)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers, and works.
    Serve(Box<Serve>),
    /// Follows the cluster's listings, and writes down what is sold. A process of its own, by a role of its own, in the cluster or with a kubeconfig.
    Catalogue(Catalogue),
    /// Brings the database's schema up to date; by a role that may.
    Migrate(Database),
    /// Compares Finance's books with ours, says in what they differ, and ends with 3 if they do.
    Reconcile(Reconcile),
    /// Says every receipt of Finance's with what it is for, one a line: by them, `vitrine-finance replay` gives back what Finance has lost.
    Receipts(Database),
    /// Says the OpenAPI document.
    Openapi,
}

#[derive(Args)]
struct Catalogue {
    #[command(flatten)]
    database: Database,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, default_value = "0.0.0.0:9090")]
    metrics: SocketAddr,
}

#[derive(Args)]
struct Reconcile {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    finance: FinanceSettings,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    addresses: Addresses,
    #[command(flatten)]
    database: Database,
    /// Connections to the database.
    #[arg(long, default_value_t = 20)]
    connections: u32,
    /// Workers: so many events and so many tasks at once.
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Requests of people that are under way at once: more are told to come back. Stripe's events are not among them.
    #[arg(long, default_value_t = 256)]
    at_once: usize,
    /// Where the storefront is: buyers come back to pages below it.
    #[arg(long)]
    storefront: String,
    /// Where this service is, as buyers reach it.
    #[arg(long)]
    public_url: String,
    /// The public key by which licences are to be signed, as `vitrine-signer keys` says it.
    #[arg(long)]
    licence_key: String,
    /// The public key by which revocation lists are to be signed.
    #[arg(long)]
    revocations_key: String,
    /// How old a licence's revocation list may be, in days.
    #[arg(long, default_value_t = 7)]
    staleness_days: u32,
    /// For how many days after that a licence still holds, with a warning.
    #[arg(long, default_value_t = 3)]
    grace_days: u32,
    #[command(flatten)]
    stripe: StripeSettings,
    #[command(flatten)]
    finance: FinanceSettings,
    #[command(flatten)]
    signer: SignerSettings,
    #[command(flatten)]
    people: People,
}

#[derive(Args)]
struct StripeSettings {
    /// Where Stripe's API is.
    #[arg(long, default_value = "https://api.stripe.com")]
    stripe: String,
    /// The file with Stripe's secret key.
    #[arg(long)]
    stripe_key: PathBuf,
    /// Requests a second that this process sends to Stripe at most. Without a word from Stripe an endpoint of an account has 25
    /// (<https://docs.stripe.com/rate-limits>): with several replicas, each has its share.
    #[arg(long, default_value_t = 25)]
    stripe_rate: u32,
    /// The file with the secrets of Stripe's webhooks, one a line: two while one is rolled. None: no webhooks are taken.
    #[arg(long)]
    webhook_secrets: Option<PathBuf>,
    /// Requests a second that are looked at where webhooks come in, of those that cannot be Stripe's: others are turned away unread.
    #[arg(long, default_value_t = 10)]
    webhook_rate: u32,
    /// Our account, where events of connected ones may come too.
    #[arg(long)]
    stripe_account: Option<String>,
}

#[derive(Args)]
struct FinanceSettings {
    /// Where Finance is.
    #[arg(long)]
    finance: String,
    /// The file with the token for it.
    #[arg(long)]
    finance_token: PathBuf,
    /// A public key that Finance signs with, as `vitrine-finance key` says it; several while it changes.
    #[arg(long, required = true)]
    finance_key: Vec<String>,
}

impl FinanceSettings {
    fn keys(&self) -> Result<Vec<NamedKey>, BadKey> {
        self.finance_key.iter().map(|key| NamedKey::read(key)).collect()
    }

    fn api(&self, client: reqwest::Client) -> Result<FinanceApi, Error> {
        let token = secret(&self.finance_token)?;
        Ok(FinanceApi::new(client, self.finance.clone(), token))
    }
}

#[derive(Args)]
struct SignerSettings {
    /// Where the signer is.
    #[arg(long)]
    signer: String,
    /// The file with the token for it.
    #[arg(long)]
    signer_token: PathBuf,
}

#[derive(Args)]
struct People {
    /// The identity provider's issuer.
    #[arg(long)]
    issuer: String,
    /// Whom tokens must be for.
    #[arg(long)]
    audience: String,
    /// The group of those who run the shop.
    #[arg(long, default_value = "vitrine:admins")]
    admins: String,
    /// What `acr` says of who used a second factor.
    #[arg(long, default_value = "urn:vitrine:loa:2")]
    second_factor: String,
}

/// How `reconcile` ends where the books differ: asking again does not help, as it does where somebody has not answered.
const DIFFER: u8 = 3;
/// By it there is one process at a time that writes down listings: made at random, once.
const CATALOGUE: i64 = 0x1d7a_93c4_5b0e_82f6;

/// Why the shop has ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("failed to read {0}: {1}")]
    File(String, std::io::Error),
    #[error("{0} holds no secret that could be used")]
    Secrets(String),
    #[error(transparent)]
    Key(#[from] BadKey),
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database's schema: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    #[error("TLS: {0}")]
    Tls(#[from] reqwest::Error),
    #[error("failed to write JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Books(#[from] BooksError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Serve(#[from] NotServed),
}

fn secret(file: &std::path::Path) -> Result<String, Error> {
    let text =
        std::fs::read_to_string(file).map_err(|error| Error::File(file.display().to_string(), error))?;
    Ok(text.trim().to_owned())
}

fn main() -> ExitCode {
    vitrine_service::run(env!("CARGO_PKG_NAME"), run(Arguments::parse().program))
}

async fn run(program: Program) -> Result<ExitCode, Error> {
    match program {
        Program::Openapi => println!("{}", http::openapi().to_pretty_json()?),
        Program::Catalogue(arguments) => follow(&arguments).await?,
        Program::Migrate(database) => MIGRATIONS.run(&database.alone().await?).await?,
        Program::Reconcile(arguments) => return reconcile(&arguments).await,
        Program::Receipts(database) => receipts(&database).await?,
        Program::Serve(arguments) => answer(*arguments).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn follow(arguments: &Catalogue) -> Result<(), Error> {
    // One that falls behind would withdraw what another one has just found.
    let pool = arguments.database.only(CATALOGUE)?;
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let counted = OfCatalogue::new(metrics.registry());
    watch_schema(&pool, &MIGRATIONS, &readiness);
    let client = watch::cluster().await?;
    let watching = vitrine_service::watching(arguments.metrics, readiness.clone(), metrics);
    let following = watch::run(client, listed::Catalogue::new(pool), counted, readiness, ended());
    tokio::select! {
        watched = watching => Ok(watched?),
        () = following => Ok(()),
    }
}

async fn reconcile(arguments: &Reconcile) -> Result<ExitCode, Error> {
    let books = Books::new(arguments.database.alone().await?);
    let finance = arguments.finance.api(outside::client()?)?;
    let report = books::compare(&books, &finance, &arguments.finance.keys()?).await?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    if report.differing == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    tracing::error!(places = report.differing, "the books differ");
    Ok(ExitCode::from(DIFFER))
}

async fn receipts(database: &Database) -> Result<(), Error> {
    let books = Books::new(database.alone().await?);
    let mut after = 0;
    loop {
        let page = books.held_after(after, books::PAGE.into()).await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = last.sequence;
        for held in page {
            println!("{}", serde_json::to_string(&Kept::from(held))?);
        }
    }
}

async fn answer(arguments: Serve) -> Result<(), Error> {
    const DAY: u32 = 86_400;
    let house = House {
        storefront: arguments.storefront.trim_end_matches('/').to_owned(),
        licence_key: NamedKey::read(&arguments.licence_key)?,
        finance_keys: arguments.finance.keys()?,
        revocations: format!("{}/revocations", arguments.public_url.trim_end_matches('/')),
        staleness_seconds: arguments.staleness_days.saturating_mul(DAY),
        grace_seconds: arguments.grace_days.saturating_mul(DAY),
    };
    let pool = arguments.database.pool(arguments.connections)?;
    let shop = Shop::new(pool.clone(), house);
    let client = outside::client()?;
    let key = secret(&arguments.stripe.stripe_key)?;
    let endpoint = Endpoint {
        secrets: webhook_secrets(&arguments.stripe)?,
        // Keys say what they are for (<https://docs.stripe.com/keys>).
        livemode: !key.contains("_test_"),
        account: arguments.stripe.stripe_account,
    };
    let webhook_rate = arguments.stripe.webhook_rate;
    let stripe = StripeApi::new(
        client.clone(),
        arguments.stripe.stripe,
        key,
        arguments.stripe.stripe_rate,
    );
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let counters = Counters::new(metrics.registry());
    let bench = Bench {
        shop: shop.clone(),
        stripe: stripe.of(Class::Worker),
        finance: arguments.finance.api(client.clone())?,
        signer: SignerApi::new(
            client.clone(),
            arguments.signer.signer,
            secret(&arguments.signer.signer_token)?,
        ),
        counters: counters.clone(),
        lists: lists::Settings {
            key: NamedKey::read(&arguments.revocations_key)?,
        },
    };
    let provider = Provider {
        issuer: arguments.people.issuer,
        audience: arguments.people.audience,
        admins: arguments.people.admins,
        second_factor: arguments.people.second_factor,
    };
    let counter = Counter {
        shop,
        stripe,
        endpoint: Arc::new(endpoint),
        events: Arc::new(Bucket::new(webhook_rate)),
        identity: Arc::new(Identity::new(provider, client)),
        crowd: Crowd::of(arguments.at_once),
        counters,
    };
    let ended = ended();
    watch_schema(&pool, &MIGRATIONS, &readiness);
    let working = tokio::spawn(work::run(Arc::new(bench), arguments.workers, ended.clone()));
    serve(
        http::routes(counter),
        Callers::Anybody,
        arguments.addresses,
        readiness,
        metrics,
        ended,
    )
    .await?;
    // What has begun is finished.
    let _ = working.await;
    Ok(())
}

fn webhook_secrets(settings: &StripeSettings) -> Result<Option<Secrets>, Error> {
    let Some(file) = &settings.webhook_secrets else {
        return Ok(None);
    };
    let text = secret(file)?;
    let secrets = Secrets::new(text.lines().map(|line| line.trim().to_owned()));
    secrets
        .map(Some)
        .ok_or_else(|| Error::Secrets(file.display().to_string()))
}
