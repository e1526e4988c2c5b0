//! Command line of Finance. Parses, sets up, hands over.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Args, Parser, Subcommand};
use vitrine_finance::{
    http::{Finance, routes},
    ledger::{Ledger, MIGRATIONS},
    replay::{ReplayError, replay},
};
use vitrine_service::{
    Addresses, Callers, Database, Metrics, NotServed, Readiness, Seal, Token, ended, serve, watch_schema,
};

/// Connections to the database: one writes, others read.
const CONNECTIONS: u32 = 8;

#[derive(Parser)]
#[command(name = "vitrine-finance", version, about = "The shop's books, behind HTTP")]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Answers.
    Serve(Serve),
    /// Brings the database's schema up to date.
    Migrate(Database),
    /// Gives the ledger back what it has lost, from what `vitrine-api receipts` says, at standard input.
    Replay(Replay),
    /// Says the public key by which receipts are verified.
    Key(Key),
}

#[derive(Args)]
struct Key {
    /// The file of the key that signs receipts: Ed25519, PKCS #8 PEM.
    #[arg(long)]
    key: PathBuf,
    /// Its name in receipts, like `shop.example/finance`.
    #[arg(long)]
    key_name: String,
}

#[derive(Args)]
struct Replay {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    key: Key,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    addresses: Addresses,
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    key: Key,
    /// The file with the token that callers have.
    #[arg(long)]
    token: PathBuf,
}

/// Why Finance has ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Key(#[from] vitrine_service::BadSeal),
    #[error(transparent)]
    Token(#[from] vitrine_service::BadToken),
    #[error("the database: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database's schema: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Serve(#[from] NotServed),
}

fn main() -> ExitCode {
    vitrine_service::run(env!("CARGO_PKG_NAME"), run(Arguments::parse().program))
}

async fn run(program: Program) -> Result<(), Error> {
    match program {
        Program::Key(key) => {
            println!("{}", Seal::open(&key.key, &key.key_name)?.key());
            Ok(())
        }
        Program::Migrate(database) => Ok(MIGRATIONS.run(&database.alone().await?).await?),
        Program::Replay(Replay { database, key }) => {
            let seal = Seal::open(&key.key, &key.key_name)?;
            let pool = database.alone().await?;
            let given_back = replay(&pool, seal.key(), std::io::stdin().lock()).await?;
            println!("{given_back} entries were given back");
            Ok(())
        }
        Program::Serve(arguments) => answer(arguments).await,
    }
}

async fn answer(arguments: Serve) -> Result<(), Error> {
    let seal = Seal::open(&arguments.key.key, &arguments.key.key_name)?;
    let token = Arc::new(Token::read(&arguments.token)?);
    let pool = arguments.database.pool(CONNECTIONS)?;
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let ended = ended();
    watch_schema(&pool, &MIGRATIONS, &readiness);
    let (ledger, writer) = Ledger::new(pool.clone(), seal);
    let writing = tokio::spawn(writer.run());
    let finance = Finance { ledger, pool, token };
    serve(
        routes(finance),
        Callers::Ours,
        arguments.addresses,
        readiness,
        metrics,
        ended,
    )
    .await?;
    // All who could ask are gone: it ends once it has written what they asked for.
    let _ = writing.await;
    Ok(())
}
