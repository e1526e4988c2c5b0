//! What is shown, and what who runs the shop changes: catalogue, prices, lists of a buyer's own.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use uuid::Uuid;
use vitrine_commerce::{
    money::Money,
    note::{self, NamedKey},
    price::Tax,
};

use super::{Numbered, Result, Shop, database, listed::PriceTag, load, unreadable};
use crate::{edges::Refusal, seams::StoreError};

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
    pub prices: Vec<PriceTag>,
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
            WHERE p.published AND c.by_listing = (p.currencies IS NOT NULL)
                AND (p.currencies IS NULL OR c.currency = ANY(p.currencies)) ORDER BY p.sku, c.currency, c.version DESC"
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        let mut sold: Vec<Sold> = vec![];
        for row in rows {
            let price = PriceTag {
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
    /// If there is no such product, or its listing says what it costs.
    pub async fn add_price(&self, sku: &str, amount: Money, tax: Tax) -> Result<(Uuid, i32)> {
        let rate = i32::try_from(tax.rate_ppm).map_err(unreadable)?;
        let mut transaction = self.begin().await?;
        // Locked first, by a statement of its own: what others have said meanwhile is seen by the next one only.
        let product = sqlx::query!(
            "SELECT currencies IS NOT NULL AS \"is_priced!\" FROM shop.products WHERE sku = $1 FOR UPDATE",
            sku
        )
        .fetch_optional(&mut *transaction)
        .await
        .map_err(database)?;
        let product = product.ok_or_else(|| StoreError::Missing(format!("product {sku}")))?;
        if product.is_priced {
            return Err(Refusal::PricedByListing(sku.to_owned()).into());
        }
        let row = sqlx::query!(
            "INSERT INTO shop.prices (id, sku, currency, version, minor, tax_rate_ppm, tax_included)
            SELECT gen_random_uuid(), $1, $2, coalesce(max(version), 0) + 1, $3, $4, $5
            FROM shop.prices WHERE sku = $1 AND currency = $2 RETURNING id, version",
            sku,
            amount.currency.code(),
            amount.minor,
            rate,
            tax.included
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(database)?;
        transaction.commit().await.map_err(database)?;
        Ok((row.id, row.version))
    }

    /// An order with its number, if it is there.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn numbered(&self, order: Uuid) -> Result<Option<Numbered>> {
        Ok(load::orders(&self.pool, &[order]).await?.pop())
    }

    /// An account's orders, the newest first.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn orders_of(&self, account: Uuid, before: Option<i64>, most: i64) -> Result<Vec<Numbered>> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM shop.orders WHERE account = $1 AND ($2::bigint IS NULL OR number < $2) ORDER BY number DESC LIMIT $3",
            account,
            before,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        self.newest_first(&ids).await
    }

    /// An account's orders in which something was licensed, the newest first.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn licensed_orders(&self, account: Uuid) -> Result<Vec<Numbered>> {
        let ids = sqlx::query_scalar!(
            "SELECT id FROM shop.orders o WHERE account = $1
                AND EXISTS (SELECT FROM shop.licences WHERE order_id = o.id AND signature IS NOT NULL)",
            account
        )
        .fetch_all(&self.pool)
        .await
        .map_err(database)?;
        self.newest_first(&ids).await
    }

    async fn newest_first(&self, ids: &[Uuid]) -> Result<Vec<Numbered>> {
        let mut orders = load::orders(&self.pool, ids).await?;
        orders.sort_by_key(|order| std::cmp::Reverse(order.number));
        Ok(orders)
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
    /// By which key it is to be signed.
    pub key: String,
    /// Whether it is.
    pub is_signed: bool,
}

impl Shop {
    /// What an order comes to.
    ///
    /// # Errors
    /// If there is no such order, or the database does not answer.
    pub async fn total(&self, id: Uuid) -> Result<Money> {
        let row = sqlx::query!("SELECT total, currency FROM shop.orders WHERE id = $1", id)
            .fetch_optional(&self.pool)
            .await
            .map_err(database)?;
        let row = row.ok_or_else(|| StoreError::Missing(format!("order {id}")))?;
        Ok(Money::new(row.total, row.currency.parse().map_err(unreadable)?))
    }

    /// The last revocation list.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn last_list(&self) -> Result<Option<List>> {
        let row = sqlx::query!(
            "SELECT sequence, issued_at AS \"issued_at: jiff_sqlx::Timestamp\", key, signature IS NOT NULL AS \"is_signed!\"
            FROM shop.revocation_lists ORDER BY sequence DESC LIMIT 1"
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(database)?;
        Ok(row.map(|row| List {
            sequence: row.sequence,
            issued_at: row.issued_at.to_jiff(),
            key: row.key,
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
