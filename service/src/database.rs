//! Where a service's database is, on its command line. Connects to it.

use clap::Args;
use sqlx::{PgPool, postgres::PgPoolOptions};

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

    /// So many connections at most, each made when it is needed.
    ///
    /// # Errors
    /// If the address is none.
    pub fn pool(&self, connections: u32) -> Result<PgPool, sqlx::Error> {
        let many = PgPoolOptions::new().max_connections(connections);
        many.connect_lazy(&self.database)
    }
}
