//! A database for each test.

use std::{
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::Mutex;
use vitrine_parts::{OWNER, Server};
use vitrine_service::PLANNED_ONCE;

/// A clock that is set ([`set_clock`]): what leases and waits go by.
pub const SET_CLOCK: &str = "
CREATE TABLE test_clock (at timestamptz NOT NULL); INSERT INTO test_clock VALUES (now());
GRANT SELECT, UPDATE ON test_clock TO vitrine_api;
CREATE OR REPLACE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT at FROM public.test_clock';
";

/// Sets a database's clock, where it is one that is set.
pub async fn set_clock(pool: &PgPool, now: Timestamp) {
    sqlx::query("UPDATE test_clock SET at = $1")
        .bind(now.to_sqlx())
        .execute(pool)
        .await
        .unwrap();
}

/// The server of this process.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start().unwrap())
}

static MADE: AtomicU32 = AtomicU32::new(0);

/// A database with this schema, in a server.
pub async fn database(server: &Server, schema: &Migrator) -> Database {
    // Roles are of the whole server: of two schemas that make them at once, one may not see yet what the other has made (and its Job is tried
    // again).
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let database = make(server, "").await;
    let mut connection = database.connect().await;
    let _alone = ONE_AT_A_TIME.lock().await;
    schema.run(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    database
}

/// A copy of a database to which nobody is connected.
pub async fn copy(server: &Server, template: &Database) -> Database {
    make(server, &format!("TEMPLATE {}", template.name)).await
}

async fn make(server: &Server, like: &str) -> Database {
    let database = Database {
        socket: server.folder().to_owned(),
        name: format!("test{}", MADE.fetch_add(1, Ordering::Relaxed)),
    };
    let postgres = Database {
        name: "postgres".to_owned(),
        ..database.clone()
    };
    let mut connection = postgres.connect().await;
    let sql = format!("CREATE DATABASE {} {like}", database.name);
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
    database
}

/// A database of its own.
#[derive(Clone, Debug)]
pub struct Database {
    socket: PathBuf,
    name: String,
}

impl Database {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is connected to, as the database's owner.
    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket)
            .username(OWNER)
            .database(&self.name)
            .disable_statement_logging()
    }

    /// A connection, as the database's owner.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options()).await.unwrap()
    }

    /// Connections as a role.
    pub async fn pool(&self, role: Option<&str>, most: u32) -> PgPool {
        self.pool_by(self.options(), role, most).await
    }

    /// Connections as a role, by another way.
    pub async fn pool_by(&self, options: PgConnectOptions, role: Option<&str>, most: u32) -> PgPool {
        let role = role.map(|role| format!("SET ROLE {role}"));
        PgPoolOptions::new()
            .max_connections(most)
            .after_connect(move |connection, _| {
                let role = role.clone();
                Box::pin(async move {
                    connection.execute(PLANNED_ONCE).await?;
                    if let Some(role) = role {
                        connection.execute(AssertSqlSafe(role)).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .unwrap()
    }
}
