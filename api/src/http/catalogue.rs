//! What is sold.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vitrine_service::{Json, Problem};

use super::{Counter, problems, views::AmountView};

/// A product that is sold.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProductView {
    /// Its id.
    sku: String,
    /// Its name.
    title: String,
    /// Whose goods these are.
    seller: String,
    /// What it costs, by currency.
    prices: Vec<PriceView>,
}

/// A price.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PriceView {
    /// How much.
    amount: AmountView,
    /// Whether tax is in it.
    tax_included: bool,
}

/// All products that are sold.
#[utoipa::path(
    get, path = "/api/v1/marketplace/products", tag = "catalogue",
    responses((status = 200, body = [ProductView]), (status = "5XX", description = "A problem"))
)]
pub(super) async fn list(State(counter): State<Counter>) -> Result<Json<Vec<ProductView>>, Problem> {
    let sold = counter
        .shop
        .sold()
        .await
        .map_err(|error| problems::store(&error))?;
    let views = sold.into_iter().map(|product| ProductView {
        sku: product.sku,
        title: product.title,
        seller: product.seller,
        prices: product
            .prices
            .into_iter()
            .map(|price| PriceView {
                amount: price.amount.into(),
                tax_included: price.tax.included,
            })
            .collect(),
    });
    Ok(Json(views.collect()))
}
