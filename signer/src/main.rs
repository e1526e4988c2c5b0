//! Command line of the signer. Parses, sets up, hands over.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use vitrine_commerce::note::NamedKey;
use vitrine_service::{
    Addresses, Callers, Database, Metrics, NotServed, Readiness, Seal, Token, ended, serve,
};
use vitrine_signer::http::{Desk, routes};

/// Connections to the database: each signature reads one row.
const CONNECTIONS: u32 = 8;

#[derive(Parser)]
#[command(
    name = "vitrine-signer",
    version,
    about = "Signs licences that Finance has acknowledged, and nothing else"
)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers.
    Serve(Box<Serve>),
    /// Says the public keys, one a line, as `vitrine licence verify --keys` reads them.
    Keys(Keys),
}

#[derive(Args)]
struct Keys {
    /// The file of the key that signs licences: Ed25519, PKCS #8 PEM.
    #[arg(long)]
    licence_key: PathBuf,
    /// The file of the key that signs revocation lists.
    #[arg(long)]
    revocations_key: PathBuf,
    /// What keys' names begin with, like `shop.example`.
    #[arg(long)]
    shop: String,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    addresses: Addresses,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    database: Database,
    /// A public key that Finance signs with, as `vitrine-finance key` says it; several while it changes.
    #[arg(long, required = true)]
    finance_key: Vec<String>,
    /// The file with the token that callers have.
    #[arg(long)]
    token: PathBuf,
}

/// Why the signer has ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Key(#[from] vitrine_service::BadSeal),
    #[error(transparent)]
    FinanceKey(#[from] vitrine_commerce::note::BadKey),
    #[error(transparent)]
    Token(#[from] vitrine_service::BadToken),
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Serve(#[from] NotServed),
}

impl Keys {
    fn seals(&self) -> Result<(Seal, Seal), Error> {
        Ok((
            Seal::open(&self.licence_key, &format!("{}/licence", self.shop))?,
            Seal::open(&self.revocations_key, &format!("{}/revocations", self.shop))?,
        ))
    }
}

fn main() -> ExitCode {
    vitrine_service::run(env!("CARGO_PKG_NAME"), run(Arguments::parse().program))
}

async fn run(program: Program) -> Result<(), Error> {
    match program {
        Program::Keys(keys) => {
            let (licences, revocations) = keys.seals()?;
            println!("licence {}\nrevocations {}", licences.key(), revocations.key());
            Ok(())
        }
        Program::Serve(arguments) => answer(*arguments).await,
    }
}

async fn answer(arguments: Serve) -> Result<(), Error> {
    let (licences, revocations) = arguments.keys.seals()?;
    let finance_keys = arguments
        .finance_key
        .iter()
        .map(|key| NamedKey::read(key))
        .collect::<Result<_, _>>()?;
    let desk = Desk {
        pool: arguments.database.pool(CONNECTIONS)?,
        licences,
        revocations,
        finance_keys,
        token: Arc::new(Token::read(&arguments.token)?),
    };
    let ended = ended();
    serve(
        routes(desk),
        Callers::Ours,
        arguments.addresses,
        Readiness::default(),
        Metrics::new(),
        ended,
    )
    .await?;
    Ok(())
}
