//! What is shown, and what who runs the shop changes: catalogue, prices, lists of a buyer's own.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use sqlx::types::Json;
use uuid::Uuid;
use vitrine_commerce::{
    licence::Grant,
    money::Money,
    note::{self, NamedKey},
    price::Tax,
};

use super::{Result, Shop, database, unreadable};
use crate::seams::StoreError;

/// A product that is sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sold {
    /// Its id.
    pub sku: String,
    /// Its name.
    pub title: String,
    /// Whose goods these are.
    pub seller: String,
    /// Its newest prices, by currency.
    pub prices: Vec<SoldAt>,
}

/// A price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoldAt {
    /// How much.
    pub amount: Money,
    /// The tax on it.
    pub tax: Tax,
}

/// A listing of the cluster, as it is sold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id: `namespace/name`.
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
    /// Whether it may be sold.
    pub published: bool,
}

fn tax(rate_ppm: i32, included: bool) -> Result<Tax> {
    Ok(Tax {
        rate_ppm: u32::try_from(rate_ppm).map_err(unreadable)?,
        included,
    })
}

impl Shop {
    /// All that is sold, by its newest prices.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn sold(&self) -> Result<Vec<Sold>> {
        let rows = sqlx::query!(
            "SELECT DISTINCT ON (p.sku, c.currency) p.sku, p.title, p.seller, c.currency, c.minor, c.tax_rate_ppm, c.tax_included
            FROM shop.products p JOIN shop.prices c USING (sku)
            WHERE p.published ORDER BY p.sku, c.currency, c.version DESC"
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        let mut sold: Vec<Sold> = vec![];
        for row in rows {
            let price = SoldAt {
                amount: Money::new(row.minor, row.currency.parse().map_err(unreadable)?),
                tax: tax(row.tax_rate_ppm, row.tax_included)?,
            };
            match sold.last_mut().filter(|last| last.sku == row.sku) {
                Some(last) => last.prices.push(price),
                None => sold.push(Sold {
                    sku: row.sku,
                    title: row.title,
                    seller: row.seller,
                    prices: vec![price],
                }),
            }
        }
        Ok(sold)
    }

    /// Writes a new price; its id and version.
    ///
    /// # Errors
    /// If there is no such product.
    pub async fn add_price(&self, sku: &str, amount: Money, tax: Tax) -> Result<(Uuid, i32)> {
        let rate = i32::try_from(tax.rate_ppm).map_err(unreadable)?;
        // Under the product's lock: versions are told apart by it.
        let row = sqlx::query!(
            "WITH product AS (SELECT sku FROM shop.products WHERE sku = $1 FOR UPDATE)
            INSERT INTO shop.prices (id, sku, currency, version, minor, tax_rate_ppm, tax_included)
            SELECT gen_random_uuid(), product.sku, $2,
                coalesce((SELECT max(version) FROM shop.prices WHERE sku = $1 AND currency = $2), 0) + 1, $3, $4, $5
            FROM product RETURNING id, version",
            sku,
            amount.currency.code(),
            amount.minor,
            rate,
            tax.included
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        row.map(|row| (row.id, row.version))
            .ok_or_else(|| StoreError::Missing(format!("product {sku}")))
    }

    /// Writes down what a listing says now.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn list(&self, listed: &Listed) -> Result<()> {
        let (uid, generation) = listed.object;
        sqlx::query!(
            "INSERT INTO shop.products (sku, listing_uid, generation, seller, title, versions, grants, published, seen_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now())
            ON CONFLICT (sku) DO UPDATE SET listing_uid = $2, generation = $3, seller = $4, title = $5, versions = $6, grants = $7,
                published = $8, seen_at = now()",
            listed.sku,
            uid,
            generation,
            listed.seller,
            listed.title,
            listed.versions,
            Json(&listed.grant) as Json<&Grant>,
            listed.published
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database)
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

    /// Numbers and ids of an account's orders, the newest first.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn orders_of(&self, account: Uuid, before: Option<i64>, most: i64) -> Result<Vec<(i64, Uuid)>> {
        let rows = sqlx::query!(
            "SELECT number, id FROM shop.orders WHERE account = $1 AND ($2::bigint IS NULL OR number < $2) ORDER BY number DESC LIMIT $3",
            account,
            before,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        Ok(rows.into_iter().map(|row| (row.number, row.id)).collect())
    }

    /// An account's orders in which something was licensed, the newest first.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn licensed_orders(&self, account: Uuid) -> Result<Vec<Uuid>> {
        sqlx::query_scalar!(
            "SELECT id FROM shop.orders o WHERE account = $1
                AND EXISTS (SELECT FROM shop.licences WHERE order_id = o.id AND signature IS NOT NULL)
            ORDER BY number DESC",
            account
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)
    }

    /// The order of a licence, by what a person types.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn order_of_licence(&self, lookup: &str) -> Result<Option<Uuid>> {
        sqlx::query_scalar!("SELECT order_id FROM shop.licences WHERE lookup = $1", lookup)
            .fetch_optional(&self.pool)
            .await
            .map_err(database)
    }

    /// The newest revocation list that is signed.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn newest_revocations(&self) -> Result<Option<Vec<u8>>> {
        let row = sqlx::query!(
            "SELECT payload, key, signature FROM shop.revocation_lists WHERE signature IS NOT NULL ORDER BY sequence DESC LIMIT 1"
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        let Some((row, signature)) =
            row.and_then(|mut row| row.signature.take().map(|signature| (row, signature)))
        else {
            return Ok(None);
        };
        let key = NamedKey::read(&row.key).map_err(unreadable)?;
        let signature = signature.as_slice().try_into().map_err(unreadable)?;
        Ok(Some(note::signed(&row.payload, &key, signature)))
    }
}

/// A revocation list, without its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// Its number.
    pub sequence: i64,
    /// When it was made.
    pub issued_at: Timestamp,
    /// Whether it is signed.
    pub is_signed: bool,
}

impl Shop {
    /// The last revocation list.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn last_list(&self) -> Result<Option<List>> {
        let row = sqlx::query!(
            "SELECT sequence, issued_at AS \"issued_at: jiff_sqlx::Timestamp\", signature IS NOT NULL AS \"is_signed!\"
            FROM shop.revocation_lists ORDER BY sequence DESC LIMIT 1"
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        Ok(row.map(|row| List {
            sequence: row.sequence,
            issued_at: row.issued_at.to_jiff(),
            is_signed: row.is_signed,
        }))
    }

    /// When a licence was last revoked, or given back.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn revoked_changed(&self) -> Result<Option<Timestamp>> {
        let at =
            sqlx::query_scalar!("SELECT max(changed_at) AS \"at: jiff_sqlx::Timestamp\" FROM shop.revoked")
                .fetch_one(&self.pool)
                .await
                .map_err(database)?;
        Ok(at.map(|at| at.to_jiff()))
    }

    /// All licences that are revoked.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn revoked(&self) -> Result<Vec<Uuid>> {
        sqlx::query_scalar!("SELECT licence FROM shop.revoked WHERE is_revoked")
            .fetch_all(&self.pool)
            .await
            .map_err(database)
    }

    /// Writes a list that is to be signed, unless there is one with this number.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn add_list(
        &self,
        sequence: i64,
        issued_at: Timestamp,
        expires_at: Timestamp,
        text: &[u8],
        key: &str,
    ) -> Result<()> {
        sqlx::query!(
            "INSERT INTO shop.revocation_lists (sequence, issued_at, expires_at, payload, key) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            sequence,
            issued_at.to_sqlx() as jiff_sqlx::Timestamp,
            expires_at.to_sqlx() as jiff_sqlx::Timestamp,
            text,
            key
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database)
    }

    /// A list was signed.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn list_signed(&self, sequence: i64, signature: &[u8; 64]) -> Result<()> {
        sqlx::query!(
            "UPDATE shop.revocation_lists SET signature = $2 WHERE sequence = $1 AND signature IS NULL",
            sequence,
            signature.as_slice()
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(database)
    }
}
