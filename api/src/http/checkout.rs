//! Buying: an order is made, and its buyer sent to pay.

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use vitrine_commerce::{money::Money, pan};
use vitrine_service::{Json, Problem, Text};

use super::{
    Counter, problems,
    views::{AmountView, OrderView},
};
use crate::{
    edges::place::Want,
    flows::checkout::{self, Destination},
    idempotency::Key,
    identity::Person,
    seams::Placing,
};

/// Lines of an order at most.
const MOST_LINES: usize = 50;

/// What is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CheckoutRequest {
    /// What, and how many of it.
    items: Vec<Item>,
    /// In which currency, ISO 4217.
    #[schema(example = "EUR")]
    currency: String,
}

/// So many of one product.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    /// Which.
    #[schema(value_type = String)]
    sku: Text,
    /// How many, 1 to 1000.
    quantity: u32,
}

/// An order, and where it is paid.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct CheckoutView {
    /// The order.
    order: Uuid,
    /// What has to be paid.
    total: AmountView,
    /// Where the buyer goes to pay; nothing where there is nothing to pay.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Makes an order, and says where it is paid. The same `Idempotency-Key` with the same request is the same order.
#[utoipa::path(
    post, path = "/api/v1/marketplace/checkout", tag = "orders", security(("oidc" = [])),
    params(("Idempotency-Key" = String, Header, description = "Any text of yours, 1 to 255 characters")),
    request_body = CheckoutRequest,
    responses((status = 201, body = CheckoutView), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn checkout(
    State(counter): State<Counter>,
    person: Person,
    key: Key,
    Json(request): Json<CheckoutRequest>,
) -> Result<(StatusCode, Json<CheckoutView>), Problem> {
    if request.items.is_empty() || request.items.len() > MOST_LINES {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "items-count",
            "an order has 1 to 50 lines",
        ));
    }
    let texts = request
        .items
        .iter()
        .map(|item| item.sku.0.as_str())
        .chain([request.currency.as_str()]);
    no_card_numbers(texts)?;
    let currency = request
        .currency
        .parse()
        .map_err(|error: vitrine_commerce::money::MoneyError| {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "currency-unknown",
                "there is no such currency",
            )
            .detail(error)
        })?;
    let account = person.account(&counter.shop).await?;
    let wants: Vec<_> = request
        .items
        .into_iter()
        .map(|item| Want {
            sku: item.sku.0,
            quantity: item.quantity,
        })
        .collect();
    let said = wants
        .iter()
        .map(|want| format!("{}\n{}\n", want.sku, want.quantity))
        .collect::<String>();
    let placing = Placing {
        id: key.id(account, "order"),
        account,
        currency,
        request_sha256: vitrine_commerce::sha256(format!("{currency}\n{said}")),
        wants,
    };
    let actor = format!("account:{account}");
    let destination = checkout::place(&counter.shop, &counter.stripe, &placing, &actor)
        .await
        .map_err(|error| problems::checkout(&error))?;
    counter.counters.orders.inc();
    let total = counter.shop.total(placing.id).await;
    let total = total.map_err(|error| problems::store(&error))?;
    sent_to_pay(placing.id, total, destination).map(|view| (StatusCode::CREATED, Json(view)))
}

/// Where an order is paid now.
pub(super) fn sent_to_pay(
    order: Uuid,
    total: Money,
    destination: Destination,
) -> Result<CheckoutView, Problem> {
    let url = match destination {
        Destination::Pay(session) => Some(session.url),
        Destination::Paid => None,
        Destination::Closed => {
            return Err(
                Problem::new(StatusCode::CONFLICT, "order-closed", "the order was given up")
                    .detail("make another one"),
            );
        }
    };
    Ok(CheckoutView {
        order,
        total: total.into(),
        url,
    })
}

/// Card numbers are for Stripe's page: what has one in it is refused before it is written anywhere (CHK-01).
pub(super) fn no_card_numbers<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<(), Problem> {
    if texts.into_iter().any(pan::is_in) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "card-number",
            "this looks like a card's number",
        )
        .detail("it was not kept; cards are given to Stripe's page only"));
    }
    Ok(())
}

/// Whose payment is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfirmRequest {
    /// The order.
    order: Uuid,
}

/// The buyer is back, and says that they have paid. That grants nothing: Stripe is asked.
#[utoipa::path(
    post, path = "/api/v1/marketplace/checkout/confirm", tag = "orders", security(("oidc" = [])),
    request_body = ConfirmRequest,
    responses((status = 200, body = OrderView), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn confirm(
    State(counter): State<Counter>,
    person: Person,
    Json(request): Json<ConfirmRequest>,
) -> Result<Json<OrderView>, Problem> {
    let order = person.order(&counter.shop, request.order).await?.order;
    let actor = format!("account:{}", order.buyer.account);
    checkout::confirm(&counter.shop, &counter.stripe, order.id, &actor)
        .await
        .map_err(|error| problems::checkout(&error))?;
    let seen = person.order(&counter.shop, order.id).await?;
    Ok(Json(OrderView::of(&seen)))
}
