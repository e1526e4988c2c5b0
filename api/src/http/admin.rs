//! What who runs the shop can do.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use vitrine_commerce::{
    money::{Money, MoneyError},
    price::Tax,
};
use vitrine_service::{Json, Problem, Text};

use super::{Counter, problems};
use crate::identity::Admin;

/// What something costs from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PriceRequest {
    /// What.
    #[schema(value_type = String)]
    sku: Text,
    /// Minor units, not negative.
    minor: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    currency: String,
    /// Millionths: 190000 is 19 %.
    tax_rate_ppm: u32,
    /// Whether tax is in it.
    tax_included: bool,
}

/// A price as it was written.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PriceMade {
    /// Its id.
    price: Uuid,
    /// Its version, from 1.
    version: i32,
}

/// A new price. Orders that were made before keep theirs.
#[utoipa::path(
    post, path = "/api/v1/admin/marketplace/prices", tag = "admin", security(("oidc" = [])), request_body = PriceRequest,
    responses((status = 201, body = PriceMade), (status = "4XX", description = "A problem"))
)]
pub(super) async fn price(
    State(counter): State<Counter>,
    _: Admin,
    Json(request): Json<PriceRequest>,
) -> Result<(StatusCode, Json<PriceMade>), Problem> {
    let unsound = |detail: String| {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "price-unsound",
            "a price cannot be so",
        )
        .detail(detail)
    };
    let currency = request
        .currency
        .parse()
        .map_err(|error: MoneyError| unsound(error.to_string()))?;
    if request.minor < 0 || request.tax_rate_ppm > 1_000_000 {
        return Err(unsound(
            "it is negative, or taxed at more than all of it".to_owned(),
        ));
    }
    let tax = Tax {
        rate_ppm: request.tax_rate_ppm,
        included: request.tax_included,
    };
    let made = counter
        .shop
        .add_price(&request.sku.0, Money::new(request.minor, currency), tax)
        .await;
    let (price, version) = made.map_err(|error| problems::store(&error))?;
    Ok((StatusCode::CREATED, Json(PriceMade { price, version })))
}
