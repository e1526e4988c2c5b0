//! Orders in Postgres: an edge is one transaction, in which the order's row is locked, all of it read, and what has changed written.

mod books;
pub mod listed;
mod load;
pub mod shown;
mod write;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff_sqlx::ToSqlx;
use sqlx::{PgConnection, PgExecutor, PgPool, Postgres, Transaction, migrate::Migrator};
use tokio::sync::Notify;
use uuid::Uuid;
use vitrine_commerce::{money::Money, price::Tax};

use crate::{
    edges::{
        self, At, House, Refusal,
        attempt::Begun,
        place::{self, Offer},
    },
    order::{Buyer, News, Order, Task, account_id},
    seams::{By, Claim, Event, Job, Placing, Store, StoreError},
};

/// The schema, in steps; a later version of this program adds some, and never changes one.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// By which set of handlers events are handled: a set that knows more kinds has a higher number, and looks again at what was ignored before.
const HANDLERS: i32 = 1;

/// A store in Postgres.
#[derive(Clone)]
pub struct Shop {
    pool: PgPool,
    house: Arc<House>,
    random: Random,
    /// That there is something to do.
    news: Arc<Notify>,
}

/// Where random bits come from.
pub type Random = Arc<dyn Fn() -> u128 + Send + Sync>;

type Result<T> = std::result::Result<T, StoreError>;

/// An order with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// As buyers and the shop's people name it.
    pub number: i64,
    /// The order.
    pub order: Order,
}

pub use books::{Books, Held};

impl Shop {
    /// A store in this database.
    pub fn new(pool: PgPool, house: House) -> Self {
        Self {
            pool,
            house: Arc::new(house),
            random: Arc::new(rand::random),
            news: Arc::default(),
        }
    }

    /// The same with other random bits: a test knows them.
    #[must_use]
    pub fn with_random(mut self, random: Random) -> Self {
        self.random = random;
        self
    }

    /// Until this process has made something to do. Another one may have as well: nobody tells of that.
    pub async fn work(&self) {
        self.news.notified().await;
    }

    fn at<'a>(&'a self, now: jiff_sqlx::Timestamp, actor: &'a str) -> At<'a> {
        At {
            house: &self.house,
            now: now.to_jiff(),
            actor,
            random: (self.random)(),
        }
    }

    async fn begin(&self) -> Result<Transaction<'static, Postgres>> {
        self.pool.begin().await.map_err(database)
    }
}

/// What went wrong: whether it is for the schema, or something that may be tried again.
fn database(error: sqlx::Error) -> StoreError {
    /// Data that a column cannot hold, and integrity constraints, which our triggers say too (PostgreSQL, appendix A, classes 22 and 23).
    const UNSOUND: [&str; 2] = ["22", "23"];
    let is_unsound = |code: &str| UNSOUND.iter().any(|class| code.starts_with(class));
    match &error {
        sqlx::Error::Database(said) if said.code().is_some_and(|code| is_unsound(&code)) => {
            StoreError::Broken(said.to_string())
        }
        sqlx::Error::ColumnDecode { .. } => unreadable(error),
        _ => StoreError::Unknown(error.to_string()),
    }
}

/// Something in the database that this version cannot read.
fn unreadable(what: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!(
        "it holds something that this version cannot read: {what}"
    ))
}

/// As an interval is reckoned from.
fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

impl Store for Shop {
    async fn account(&self, issuer: &str, subject: &str) -> Result<Uuid> {
        let id = account_id(issuer, subject);
        let is_known = sqlx::query_scalar!("SELECT id FROM shop.accounts WHERE id = $1", id)
            .fetch_optional(&self.pool)
            .await
            .map_err(database)?;
        if is_known.is_none() {
            sqlx::query!(
                "INSERT INTO shop.accounts (id, issuer, subject) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                id,
                issuer,
                subject
            )
            .execute(&self.pool)
            .await
            .map_err(database)?;
        }
        Ok(id)
    }

    async fn place(&self, placing: &Placing) -> Result<Option<Begun>> {
        let mut transaction = self.begin().await?;
        let known = known_of(&mut *transaction, placing).await?;
        if let Some(request) = known.request_sha256 {
            return same(placing, &request);
        }
        let offers = offers(&mut transaction, placing).await?;
        let mut order = place::place(placing.id, known.buyer, placing.currency, &placing.wants, &offers)?;
        let actor = format!("account:{}", placing.account);
        let at = self.at(known.now, &actor);
        let begun = edges::take(&mut order, &at, place::placed)?;
        if !write::new(&mut transaction, &order, &placing.request_sha256).await? {
            // Asked for twice at once: the other one's is there now.
            transaction.rollback().await.map_err(database)?;
            let known = known_of(&self.pool, placing).await?;
            return same(placing, &known.request_sha256.unwrap_or_default());
        }
        transaction.commit().await.map_err(database)?;
        Ok(Some(begun))
    }

    async fn order(&self, id: Uuid) -> Result<Order> {
        load::order(&self.pool, id).await
    }

    async fn change<T: Send>(
        &self,
        id: Uuid,
        by: By<'_>,
        edge: impl FnOnce(&mut Order, &At<'_>) -> std::result::Result<T, Refusal> + Send,
    ) -> Result<T> {
        let mut transaction = self.begin().await?;
        // The order first, by everybody: who holds it waits for nobody.
        let locked = sqlx::query_scalar!(
            "SELECT shop.now() AS \"now!: jiff_sqlx::Timestamp\" FROM shop.orders WHERE id = $1 FOR UPDATE",
            id
        )
        .fetch_optional(&mut *transaction)
        .await
        .map_err(database)?;
        let at = locked.ok_or_else(|| StoreError::Missing(format!("order {id}")))?;
        still_ours(&mut transaction, by).await?;
        let before = load::order(&mut *transaction, id).await?;
        let mut after = before.clone();
        let actor = by.actor();
        let at = self.at(at, &actor);
        let answer = edges::take(&mut after, &at, edge)?;
        write::changes(&mut transaction, &before, &after).await?;
        transaction.commit().await.map_err(database)?;
        if after.tasks.difference(&before.tasks).next().is_some() {
            self.news.notify_one();
        }
        Ok(answer)
    }

    async fn order_of(&self, object: &str) -> Result<Option<Uuid>> {
        sqlx::query_scalar!(
            "SELECT order_id AS \"id!\" FROM shop.attempts WHERE session = $1
            UNION ALL SELECT order_id FROM shop.payments WHERE id = $1
            UNION ALL SELECT order_id FROM shop.refunds WHERE stripe_id = $1
            UNION ALL SELECT order_id FROM shop.disputes WHERE id = $1
            LIMIT 1",
            object
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)
    }

    async fn receive(&self, told: &[(Event, String)]) -> Result<u64> {
        let of = |part: fn(&Event) -> &str| -> Vec<String> {
            told.iter().map(|(event, _)| part(event).to_owned()).collect()
        };
        let created: Vec<jiff_sqlx::Timestamp> =
            told.iter().map(|(event, _)| event.created.to_sqlx()).collect();
        let digests: Vec<_> = told.iter().map(|(_, sha256)| sha256.clone()).collect();
        let inserted = sqlx::query!(
            "INSERT INTO shop.inbox (event_id, type, object_id, created, sha256)
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[]) ON CONFLICT DO NOTHING",
            &of(|event| &event.id),
            &of(|event| &event.kind),
            &of(|event| &event.object),
            created.as_slice() as &[jiff_sqlx::Timestamp],
            &digests
        )
        .execute(&self.pool)
        .await
        .map_err(database)?;
        self.news.notify_one();
        Ok(inserted.rows_affected())
    }

    async fn claim_event(&self, lease: Duration) -> Result<Option<Claim<Event>>> {
        let claimed = sqlx::query!(
            "UPDATE shop.inbox SET fence = fence + 1, tries = tries + 1, leased_until = shop.now() + $1 * interval '1 second'
            WHERE event_id = (
                SELECT event_id FROM shop.inbox
                WHERE handled_at IS NULL AND next_try_at <= shop.now() AND (leased_until IS NULL OR leased_until <= shop.now())
                ORDER BY next_try_at, event_id LIMIT 1 FOR UPDATE SKIP LOCKED
            )
            RETURNING event_id, type AS kind, object_id, created AS \"created: jiff_sqlx::Timestamp\", fence, tries",
            seconds(lease)
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        Ok(claimed.map(|row| Claim {
            what: Event {
                id: row.event_id,
                kind: row.kind,
                object: row.object_id,
                created: row.created.to_jiff(),
            },
            fence: row.fence,
            tries: tried_before(row.tries),
        }))
    }

    async fn claim_job(&self, lease: Duration) -> Result<Option<Claim<Job>>> {
        let claimed = sqlx::query!(
            "UPDATE shop.tasks SET fence = nextval('shop.fences'), tries = tries + 1, leased_until = shop.now() + $1 * interval '1 second'
            WHERE (order_id, task) = (
                SELECT order_id, task FROM shop.tasks
                WHERE next_try_at <= shop.now() AND (leased_until IS NULL OR leased_until <= shop.now())
                    -- A ledger that has lost something is given nothing, and nothing is given away by it.
                    AND ((SELECT is_whole FROM shop.ledger) OR task !~ '^(book|license) ')
                ORDER BY next_try_at, order_id, task LIMIT 1 FOR UPDATE SKIP LOCKED
            )
            RETURNING order_id, task, fence, tries",
            seconds(lease)
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        let Some(row) = claimed else {
            return Ok(None);
        };
        let task: Task = row.task.parse().map_err(unreadable)?;
        Ok(Some(Claim {
            what: Job {
                order: row.order_id,
                task,
            },
            fence: row.fence,
            tries: tried_before(row.tries),
        }))
    }

    async fn put_off_event(&self, claim: &Claim<Event>, wait: Duration) -> Result<()> {
        let put_off = sqlx::query!(
            "UPDATE shop.inbox SET leased_until = NULL, next_try_at = shop.now() + $3 * interval '1 second'
            WHERE event_id = $1 AND fence = $2 AND handled_at IS NULL",
            claim.what.id,
            claim.fence,
            seconds(wait)
        )
        .execute(&self.pool)
        .await
        .map_err(database)?;
        ours(put_off.rows_affected(), &claim.what.id)
    }

    async fn put_off_job(&self, claim: &Claim<Job>, wait: Duration) -> Result<()> {
        // Done, or another's by now: there is nothing to put off.
        sqlx::query!(
            "UPDATE shop.tasks SET leased_until = NULL, next_try_at = shop.now() + $4 * interval '1 second'
            WHERE order_id = $1 AND task = $2 AND fence = $3",
            claim.what.order,
            claim.what.task.to_string(),
            claim.fence,
            seconds(wait)
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database)
    }

    async fn ignore(&self, claim: &Claim<Event>) -> Result<()> {
        let mut transaction = self.begin().await?;
        handled(&mut transaction, claim, true).await?;
        transaction.commit().await.map_err(database)
    }
}

/// How often it was tried before this time.
fn tried_before(tries: i32) -> u32 {
    u32::try_from(tries).unwrap_or_default().saturating_sub(1)
}

/// What is known before an order is placed.
struct Known {
    now: jiff_sqlx::Timestamp,
    buyer: Buyer,
    /// The hash of the request that made the order, if it is there.
    request_sha256: Option<String>,
}

async fn known_of(executor: impl PgExecutor<'_>, placing: &Placing) -> Result<Known> {
    let row = sqlx::query!(
        "SELECT shop.now() AS \"now!: jiff_sqlx::Timestamp\", issuer, subject, stripe_customer,
            (SELECT request_sha256 FROM shop.orders WHERE id = $2) AS request_sha256
        FROM shop.accounts WHERE id = $1",
        placing.account,
        placing.id
    )
    .fetch_optional(executor)
    .await
    .map_err(database)?;
    let row = row.ok_or_else(|| StoreError::Missing(format!("account {}", placing.account)))?;
    Ok(Known {
        now: row.now,
        buyer: Buyer {
            account: placing.account,
            issuer: row.issuer,
            subject: row.subject,
            customer: row.stripe_customer,
        },
        request_sha256: row.request_sha256,
    })
}

fn same(placing: &Placing, known: &str) -> Result<Option<Begun>> {
    if known == placing.request_sha256 {
        Ok(None)
    } else {
        Err(StoreError::Reused(format!("order {}", placing.id)))
    }
}

fn ours(rows: u64, what: &str) -> Result<()> {
    match rows {
        0 => Err(StoreError::Fenced(what.to_owned())),
        _ => Ok(()),
    }
}

/// Whether nobody else has claimed what this is done for. Nobody can until this transaction is over, with which an event is handled.
async fn still_ours(connection: &mut PgConnection, by: By<'_>) -> Result<()> {
    match by {
        By::Somebody(_) => Ok(()),
        By::Event(claim) => handled(connection, claim, false).await,
        By::Job(claim) => {
            let task = claim.what.task.to_string();
            let found = sqlx::query_scalar!(
                "SELECT fence FROM shop.tasks WHERE order_id = $1 AND task = $2 AND fence = $3 FOR UPDATE",
                claim.what.order,
                task,
                claim.fence
            )
            .fetch_optional(connection)
            .await;
            found.map_err(database)?.map(drop).ok_or(StoreError::Fenced(task))
        }
    }
}

async fn handled(connection: &mut PgConnection, claim: &Claim<Event>, ignored: bool) -> Result<()> {
    let handled = sqlx::query!(
        "UPDATE shop.inbox SET handled_at = shop.now(), handled_by = $3, ignored = $4, leased_until = NULL
        WHERE event_id = $1 AND fence = $2 AND handled_at IS NULL",
        claim.what.id,
        claim.fence,
        HANDLERS,
        ignored
    )
    .execute(connection)
    .await
    .map_err(database)?;
    ours(handled.rows_affected(), &claim.what.id)
}

/// What of the wanted is sold, by its newest price; held until the order is written, so that nothing is sold that was withdrawn before.
async fn offers(connection: &mut PgConnection, placing: &Placing) -> Result<BTreeMap<String, Offer>> {
    let skus: Vec<_> = placing.wants.iter().map(|want| want.sku.clone()).collect();
    // Locked first: a price that comes with a new word of the listing is seen then.
    sqlx::query!(
        "SELECT sku FROM shop.products WHERE sku = ANY($1) FOR SHARE",
        &skus
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(database)?;
    let rows = sqlx::query!(
        "SELECT p.sku, p.title, p.seller, p.versions, p.grants, c.id AS price, c.minor, c.tax_rate_ppm, c.tax_included
        FROM shop.products p
        JOIN LATERAL (
            SELECT * FROM shop.prices
            WHERE sku = p.sku AND currency = $2 AND by_listing = (p.currencies IS NOT NULL) ORDER BY version DESC LIMIT 1
        ) c ON true
        WHERE p.sku = ANY($1) AND p.published AND (p.currencies IS NULL OR $2 = ANY(p.currencies))",
        &skus,
        placing.currency.code()
    )
    .fetch_all(connection)
    .await
    .map_err(database)?;
    let offers = rows.into_iter().map(|row| {
        let offer = Offer {
            title: row.title,
            seller: row.seller,
            versions: row.versions,
            grant: serde_json::from_value(row.grants).map_err(unreadable)?,
            price: row.price,
            amount: Money::new(row.minor, placing.currency),
            tax: Tax {
                rate_ppm: u32::try_from(row.tax_rate_ppm).map_err(unreadable)?,
                included: row.tax_included,
            },
            sku: row.sku.clone(),
        };
        Ok((row.sku, offer))
    });
    offers.collect()
}

/// Writes what has happened to an order, numbered under its lock, and has others told of it.
async fn news(connection: &mut PgConnection, order: Uuid, news: &[News]) -> Result<()> {
    if news.is_empty() {
        return Ok(());
    }
    let actors: Vec<_> = news.iter().map(|one| one.actor.clone()).collect();
    let kinds: Vec<_> = news.iter().map(|one| one.kind.to_owned()).collect();
    let bodies: Vec<_> = news.iter().map(|one| one.body.clone()).collect();
    sqlx::query!(
        "WITH said AS (
            INSERT INTO shop.audit (aggregate, number, at, actor, kind, body)
            SELECT $1, (SELECT coalesce(max(number), 0) FROM shop.audit WHERE aggregate = $1) + one.place, shop.now(), one.actor, one.kind, one.body
            FROM unnest($2::text[], $3::text[], $4::jsonb[]) WITH ORDINALITY AS one (actor, kind, body, place)
            RETURNING aggregate, number
        )
        INSERT INTO shop.outbox SELECT aggregate, number FROM said",
        order,
        &actors,
        &kinds,
        &bodies
    )
    .execute(connection)
    .await
    .map(drop)
    .map_err(database)
}
