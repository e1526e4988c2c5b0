//! Products as the cluster's listings say them, and their prices. Written by whoever follows the listings.

use sqlx::{PgPool, types::Json};
use uuid::Uuid;
use vitrine_commerce::{licence::Grant, money::Money, price::Tax};

use super::{Result, database, unreadable};

/// A price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriceTag {
    /// How much.
    pub amount: Money,
    /// The tax on it.
    pub tax: Tax,
}

/// A listing of the cluster, as it is sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id for ever: `seller/sku`.
    pub sku: String,
    /// The object's uid and generation.
    pub object: (Uuid, i64),
    /// Whose goods these are.
    pub seller: String,
    /// Its name.
    pub title: String,
    /// Which versions a licence is for.
    pub versions: String,
    /// What a licence says.
    pub grant: Grant,
    /// What it costs, a price a currency; `None` if who runs the shop says that.
    pub prices: Option<Vec<PriceTag>>,
}

/// The products of a shop.
#[derive(Clone)]
pub struct Catalogue {
    pool: PgPool,
}

impl Catalogue {
    /// Of the shop in this database.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Writes down what a listing says now, and says whether that was news; not what it said before another one had seen it. A price that is another one than before is a new
    /// version: orders keep theirs.
    ///
    /// # Errors
    /// If the database does not answer, or refuses.
    pub async fn list(&self, listed: &Listed) -> Result<bool> {
        let (uid, generation) = listed.object;
        let currencies: Option<Vec<String>> = listed.prices.as_ref().map(|prices| {
            let codes = prices.iter().map(|tag| tag.amount.currency.code().to_owned());
            codes.collect()
        });
        let mut transaction = self.pool.begin().await.map_err(database)?;
        let written = sqlx::query!(
            "INSERT INTO shop.products (sku, listing_uid, generation, seller, title, versions, grants, published, seen_at, currencies)
            VALUES ($1, $2, $3, $4, $5, $6, $7, true, now(), $8)
            ON CONFLICT (sku) DO UPDATE SET listing_uid = $2, generation = $3, seller = $4, title = $5, versions = $6, grants = $7,
                published = true, seen_at = now(), currencies = $8
            WHERE shop.products.listing_uid <> $2 OR shop.products.generation < $3
                OR shop.products.generation = $3 AND NOT shop.products.published",
            listed.sku,
            uid,
            generation,
            listed.seller,
            listed.title,
            listed.versions,
            Json(&listed.grant) as Json<&Grant>,
            currencies.as_deref()
        )
        .execute(&mut *transaction)
        .await
        .map_err(database)?;
        if written.rows_affected() == 0 {
            return Ok(false);
        }
        for tag in listed.prices.iter().flatten() {
            let rate = i32::try_from(tag.tax.rate_ppm).map_err(unreadable)?;
            // Under the product's lock: versions are told apart by it.
            sqlx::query!(
                "INSERT INTO shop.prices (id, sku, currency, version, minor, tax_rate_ppm, tax_included, by_listing)
                SELECT gen_random_uuid(), $1, $2, coalesce(newest.version, 0) + 1, $3, $4, $5, true
                FROM (VALUES (1)) one LEFT JOIN LATERAL (
                    SELECT * FROM shop.prices WHERE sku = $1 AND currency = $2 ORDER BY version DESC LIMIT 1
                ) newest ON true
                WHERE (newest.minor, newest.tax_rate_ppm, newest.tax_included, newest.by_listing) IS DISTINCT FROM ($3, $4, $5, true)",
                listed.sku,
                tag.amount.currency.code(),
                tag.amount.minor,
                rate,
                tag.tax.included
            )
            .execute(&mut *transaction)
            .await
            .map_err(database)?;
        }
        transaction.commit().await.map_err(database)?;
        Ok(true)
    }

    /// Withdraws all that is not among these.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn withdraw_others(&self, skus: &[String]) -> Result<u64> {
        let withdrawn = sqlx::query!(
            "UPDATE shop.products SET published = false WHERE published AND NOT sku = ANY($1)",
            skus
        )
        .execute(&self.pool)
        .await
        .map_err(database)?;
        Ok(withdrawn.rows_affected())
    }
}
