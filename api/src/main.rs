//! Command line of the shop. Parses, sets up, hands over.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use sqlx::postgres::PgPoolOptions;
use vitrine_api::{
    edges::House,
    flows::webhook::Endpoint,
    http::{self, Counter},
    identity::{Identity, Provider},
    lists,
    metrics::Counters,
    outside::{self, finance::FinanceApi, signer::SignerApi, stripe::StripeApi},
    store::postgres::{MIGRATIONS, Shop},
    stripe_signature::Secrets,
    work::{self, Bench},
};
use vitrine_commerce::note::{BadKey, NamedKey};
use vitrine_service::{Addresses, Metrics, NotServed, Readiness, ended, serve, watch_schema};

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
    /// Brings the database's schema up to date; by a role that may.
    Migrate(Database),
    /// Says the OpenAPI document.
    Openapi,
}

#[derive(Args)]
struct Database {
    /// The shop's database, `postgres://…`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: String,
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
    others: Others,
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
    /// The file with the secrets of Stripe's webhooks, one a line: two while one is rolled. None: no webhooks are taken.
    #[arg(long)]
    webhook_secrets: Option<PathBuf>,
    /// Our account, where events of connected ones may come too.
    #[arg(long)]
    stripe_account: Option<String>,
}

#[derive(Args)]
struct Others {
    /// Where Finance is.
    #[arg(long)]
    finance: String,
    /// The file with the token for it.
    #[arg(long)]
    finance_token: PathBuf,
    /// A public key that Finance signs with, as `vitrine-finance key` says it; several while it changes.
    #[arg(long, required = true)]
    finance_key: Vec<String>,
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
    #[error("the OpenAPI document: {0}")]
    Document(#[from] serde_json::Error),
    #[error(transparent)]
    Serve(#[from] NotServed),
}

fn secret(file: &std::path::Path) -> Result<String, Error> {
    let text =
        std::fs::read_to_string(file).map_err(|error| Error::File(file.display().to_string(), error))?;
    Ok(text.trim().to_owned())
}

fn main() -> ExitCode {
    vitrine_service::run(run(Arguments::parse().program))
}

async fn run(program: Program) -> Result<(), Error> {
    match program {
        Program::Openapi => {
            println!("{}", http::openapi().to_pretty_json()?);
            Ok(())
        }
        Program::Migrate(Database { database }) => {
            let pool = PgPoolOptions::new().max_connections(1).connect(&database).await?;
            Ok(MIGRATIONS.run(&pool).await?)
        }
        Program::Serve(arguments) => answer(*arguments).await,
    }
}

async fn answer(arguments: Serve) -> Result<(), Error> {
    const DAY: u32 = 86_400;
    let finance_keys = arguments
        .others
        .finance_key
        .iter()
        .map(|key| NamedKey::read(key))
        .collect::<Result<_, _>>()?;
    let house = House {
        storefront: arguments.storefront.trim_end_matches('/').to_owned(),
        licence_key: NamedKey::read(&arguments.licence_key)?,
        finance_keys,
        revocations: format!("{}/revocations", arguments.public_url.trim_end_matches('/')),
        staleness_seconds: arguments.staleness_days.saturating_mul(DAY),
        grace_seconds: arguments.grace_days.saturating_mul(DAY),
    };
    let pool = PgPoolOptions::new()
        .max_connections(arguments.connections)
        .connect_lazy(&arguments.database.database)?;
    let shop = Shop::new(pool.clone(), house);
    let client = outside::client()?;
    let key = secret(&arguments.stripe.stripe_key)?;
    let endpoint = Endpoint {
        secrets: webhook_secrets(&arguments.stripe)?,
        // Keys say what they are for (<https://docs.stripe.com/keys>).
        livemode: !key.contains("_test_"),
        account: arguments.stripe.stripe_account,
    };
    let stripe = StripeApi::new(client.clone(), arguments.stripe.stripe, key);
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let counters = Counters::new(metrics.registry());
    let bench = Bench {
        shop: shop.clone(),
        stripe: stripe.clone(),
        finance: FinanceApi::new(
            client.clone(),
            arguments.others.finance,
            secret(&arguments.others.finance_token)?,
        ),
        signer: SignerApi::new(
            client.clone(),
            arguments.others.signer,
            secret(&arguments.others.signer_token)?,
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
        identity: Arc::new(Identity::new(provider, client)),
        counters,
    };
    let ended = ended();
    watch_schema(&pool, &MIGRATIONS, &readiness);
    let working = tokio::spawn(work::run(Arc::new(bench), arguments.workers, ended.clone()));
    serve(
        http::routes(counter),
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
