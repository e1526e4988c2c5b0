//! A store in Postgres and one in memory, at the same moment, with the same products.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use sqlx::{Executor, PgPool, postgres::PgSslMode};
use tokio::task::JoinSet;
use uuid::Uuid;
use vitrine_api::store::postgres::{MIGRATIONS, Random, Shop};
use vitrine_commerce::{
    money::{Currency, Money},
    price::Tax,
};

use crate::{
    house::Keys,
    model::{Model, epoch},
    postgres::{SET_CLOCK, database, server, set_clock},
    wire::{self, Mutant},
};

/// In what is sold.
pub const CURRENCIES: [&str; 2] = ["EUR", "JPY"];
/// What is sold, …
pub const SKUS: [&str; 3] = ["chart", "gift", "notes"];
/// … and for how much.
const MINORS: [i64; 3] = [1700, 0, 1000];
/// Connections of the store: as many as there are clients at once.
const CONNECTIONS: u32 = 8;

/// Both.
pub struct Pair {
    /// The one in Postgres.
    pub shop: Shop,
    /// The one in memory.
    pub model: Model,
    /// The database, as the shop's own role.
    pub pool: PgPool,
    /// Whose keys both know.
    pub keys: Keys,
    _proxy: JoinSet<()>,
}

/// Random bits that are numbered, in both alike.
fn numbered() -> Random {
    let drawn = AtomicU64::new(0);
    Arc::new(move || u128::from(drawn.fetch_add(1, Ordering::Relaxed) + 1))
}

impl Pair {
    /// Both, with nothing in them but products. Of a mutant the store in Postgres says something else to it than it means to.
    pub async fn new(mutant: Option<Mutant>) -> Self {
        Self::with(mutant, numbered()).await
    }

    /// The same, where all random bits are the same: what several do at once may be in any order.
    pub async fn unordered(mutant: Option<Mutant>) -> Self {
        let pair = Self::with(mutant, Arc::new(|| 7)).await;
        let mut state = pair.model.state();
        (state.random, state.draw) = (7, 0);
        drop(state);
        pair
    }

    async fn with(mutant: Option<Mutant>, random: Random) -> Self {
        let database = database(server(), &MIGRATIONS).await;
        let mut connection = database.connect().await;
        connection.execute(SET_CLOCK).await.unwrap();
        let mut proxy = JoinSet::new();
        let pool = match mutant {
            None => database.pool(Some("vitrine_api"), CONNECTIONS).await,
            Some(mutant) => {
                let folder = server().folder().join(database.name());
                std::fs::create_dir_all(&folder).unwrap();
                let folder = wire::rewriting(&mut proxy, &folder, server().folder(), mutant);
                // The proxy reads what passes, and begins with the first message that is not about TLS.
                let options = database.options().socket(folder).ssl_mode(PgSslMode::Disable);
                database.pool_by(options, Some("vitrine_api"), CONNECTIONS).await
            }
        };
        let keys = Keys::default();
        let pair = Self {
            shop: Shop::new(pool.clone(), keys.house()).with_random(random),
            model: Model::new(keys.house(), epoch()),
            pool,
            keys,
            _proxy: proxy,
        };
        pair.set(epoch()).await;
        for (place, sku) in SKUS.iter().enumerate() {
            sqlx::query("INSERT INTO shop.products VALUES ($1, $2, 1, 'acme', $1, '>=1', '{\"entitlements\":[]}', true, now())")
                .bind(sku)
                .bind(Uuid::from_u128(place as u128))
                .execute(&mut connection)
                .await
                .unwrap();
            for code in CURRENCIES {
                pair.sell(sku, MINORS[place], code).await;
            }
        }
        pair
    }

    async fn sell(&self, sku: &str, minor: i64, code: &str) {
        let currency: Currency = code.parse().unwrap();
        let (amount, tax) = (
            Money::new(minor, currency),
            Tax {
                rate_ppm: 190_000,
                included: code == "EUR",
            },
        );
        let (price, _) = self.shop.add_price(sku, amount, tax).await.unwrap();
        self.model.sell(sku, price, amount, tax);
    }

    /// Sets the clocks of both.
    pub async fn set(&self, now: Timestamp) {
        set_clock(&self.pool, now).await;
        self.model.state().now = now;
    }
}
