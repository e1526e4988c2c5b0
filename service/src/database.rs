//! Where a service's database is, on its command line. Connects to it.

use clap::Args;
use sqlx::{Executor, PgPool, postgres::PgPoolOptions};

/// What a connection is told before anything else. What a service does often it finds by a key, so that one plan is good for all: left
/// to itself, Postgres planned the larger ones anew each time, which was a quarter of what the whole shop took of the processors under load. And the
/// plan is one by the key also where it was made while a table was small.
pub const PLANNED_ONCE: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off";

/// A service's own database.
#[derive(Args, Clone)]
pub struct Database {
    /// The database, `postgres://…`, by the role that this is for.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: String,
}

impl Database {
    /// One connection, for a command that ends.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn alone(&self) -> Result<PgPool, sqlx::Error> {
        let one = PgPoolOptions::new().max_connections(1);
        one.connect(&self.database).await
    }

    /// One connection, for the only process at a time that has this key: where another one has it there is none.
    ///
    /// # Errors
    /// If the address is none.
    pub fn only(&self, key: i64) -> Result<PgPool, sqlx::Error> {
        let one = PgPoolOptions::new().max_connections(1);
        let locked = one.after_connect(move |connection, _| {
            Box::pin(async move {
                // Of the session: it ends with the connection, however the process ends.
                let locked = sqlx::query_scalar::<_, bool>("SELECT pg_try_advisory_lock($1)").bind(key);
                if locked.fetch_one(connection).await? {
                    Ok(())
                } else {
                    Err(sqlx::Error::Protocol("another process does this".to_owned()))
                }
            })
        });
        locked.connect_lazy(&self.database)
    }

    /// So many connections at most, each made when it is needed.
    ///
    /// # Errors
    /// If the address is none.
    pub fn pool(&self, connections: u32) -> Result<PgPool, sqlx::Error> {
        let many = PgPoolOptions::new().max_connections(connections);
        let many = many.after_connect(|connection, _| {
            Box::pin(async move { connection.execute(PLANNED_ONCE).await.map(drop) })
        });
        many.connect_lazy(&self.database)
    }
}
