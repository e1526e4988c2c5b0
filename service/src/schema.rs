//! Whether the database's schema is what this program needs: ready only then (CIC-15). Reads the database, every few seconds.

use std::time::Duration;

use sqlx::{PgPool, migrate::Migrator};
use vitrine_program::Readiness;

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// What it is called in `/readyz`.
const WHAT: &str = "schema";

/// Looks for as long as the process lives, and says in `/readyz` what is behind.
pub fn watch_schema(pool: &PgPool, needed: &'static Migrator, readiness: &Readiness) {
    readiness.missing(WHAT, "not looked at yet");
    let (pool, readiness) = (pool.clone(), readiness.clone());
    tokio::spawn(async move {
        loop {
            match behind(&pool, needed).await {
                Ok(None) => readiness.present(WHAT),
                Ok(Some(version)) => {
                    readiness.missing(WHAT, format!("step {version} is missing; run the migration"))
                }
                Err(error) => readiness.missing(WHAT, format!("the database does not answer: {error}")),
            }
            tokio::time::sleep(PERIOD).await;
        }
    });
}

/// The first step that was not taken. Steps that this program does not know are a later one's, which expands before it contracts.
async fn behind(pool: &PgPool, needed: &Migrator) -> Result<Option<i64>, sqlx::Error> {
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(pool)
        .await?;
    let taken: Vec<i64> = if is_there {
        sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
            .fetch_all(pool)
            .await?
    } else {
        vec![]
    };
    let missing = needed
        .iter()
        .map(|step| step.version)
        .find(|version| !taken.contains(version));
    Ok(missing)
}
