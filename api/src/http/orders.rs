//! A buyer's orders.

use std::collections::BTreeSet;

use axum::{extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use vitrine_commerce::facts::UnitId;
use vitrine_service::{Json, Path, Problem, Query, Text};

use super::{
    Counter,
    checkout::{CheckoutView, no_card_numbers, sent_to_pay},
    problems,
    views::{AmountView, OrderView, UnitRef},
};
use crate::{
    edges::refund,
    flows::checkout as flow,
    idempotency::Key,
    identity::Person,
    seams::{By, Store},
};

/// Orders in one answer, if nothing else is asked, and at most.
const PAGE: i64 = 20;
const LARGEST_PAGE: i64 = 100;
/// In characters.
const LONGEST_REASON: usize = 200;

/// Which orders.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct Page {
    /// Those before the one with this number; `next` of the page before.
    before: Option<i64>,
    /// So many, 20 if it is not said, at most 100.
    limit: Option<i64>,
}

/// A page of orders, the newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OrdersView {
    /// The orders.
    orders: Vec<OrderView>,
    /// What asks for the next page; nothing on the last one.
    next: Option<i64>,
}

/// The caller's orders.
#[utoipa::path(
    get, path = "/api/v1/marketplace/orders", tag = "orders", security(("oidc" = [])), params(Page),
    responses((status = 200, body = OrdersView), (status = "4XX", description = "A problem"))
)]
pub(super) async fn list(
    State(counter): State<Counter>,
    person: Person,
    Query(page): Query<Page>,
) -> Result<Json<OrdersView>, Problem> {
    let account = person.account(&counter.shop).await?;
    let limit = page.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let found = counter
        .shop
        .orders_of(account, page.before, limit)
        .await
        .map_err(|error| problems::store(&error))?;
    let next = found
        .last()
        .map(|last| last.number)
        .filter(|_| i64::try_from(found.len()) == Ok(limit));
    let orders = found.iter().map(OrderView::of).collect();
    Ok(Json(OrdersView { orders, next }))
}

/// One of the caller's orders.
#[utoipa::path(
    get, path = "/api/v1/marketplace/orders/{id}", tag = "orders", security(("oidc" = [])), params(("id" = Uuid, Path)),
    responses((status = 200, body = OrderView), (status = "4XX", description = "A problem"))
)]
pub(super) async fn read(
    State(counter): State<Counter>,
    person: Person,
    Path(id): Path<Uuid>,
) -> Result<Json<OrderView>, Problem> {
    let found = person.order(&counter.shop, id).await?;
    Ok(Json(OrderView::of(&found)))
}

/// Where an order is paid now: its session may be over.
#[utoipa::path(
    post, path = "/api/v1/marketplace/orders/{id}/checkout", tag = "orders", security(("oidc" = [])), params(("id" = Uuid, Path)),
    responses((status = 200, body = CheckoutView), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn pay(
    State(counter): State<Counter>,
    person: Person,
    Path(id): Path<Uuid>,
) -> Result<Json<CheckoutView>, Problem> {
    let order = person.order(&counter.shop, id).await?.order;
    let actor = format!("account:{}", order.buyer.account);
    let destination = flow::begin(&counter.shop, &counter.stripe, id, &actor)
        .await
        .map_err(|error| problems::checkout(&error))?;
    sent_to_pay(id, order.sum.total, destination).map(Json)
}

/// What is to be refunded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefundRequest {
    /// Which units; all that are left without.
    #[serde(default)]
    units: Vec<UnitRef>,
    /// Why.
    #[schema(value_type = String)]
    reason: Text,
}

/// A refund that is on its way.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RefundView {
    /// Its id.
    refund: Uuid,
    /// How much.
    amount: AmountView,
}

/// Gives money back. What it was paid for is suspended at once, and revoked when the money is gone.
#[utoipa::path(
    post, path = "/api/v1/marketplace/orders/{id}/refunds", tag = "orders", security(("oidc" = [])),
    params(("id" = Uuid, Path), ("Idempotency-Key" = String, Header, description = "Any text of yours, 1 to 255 characters")),
    request_body = RefundRequest,
    responses((status = 202, body = RefundView), (status = "4XX", description = "A problem"), (status = "5XX", description = "A problem"))
)]
pub(super) async fn refund(
    State(counter): State<Counter>,
    person: Person,
    Path(id): Path<Uuid>,
    key: Key,
    Json(request): Json<RefundRequest>,
) -> Result<(StatusCode, Json<RefundView>), Problem> {
    let order = person.order(&counter.shop, id).await?.order;
    let reason = request.reason.0;
    no_card_numbers([reason.as_str()])?;
    if reason.trim().is_empty() || reason.chars().count() > LONGEST_REASON {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "reason-length",
            "a reason has 1 to 200 characters",
        ));
    }
    let refund_id = key.id(order.buyer.account, &format!("refund {id}"));
    let named: BTreeSet<UnitId> = request.units.into_iter().map(UnitId::from).collect();
    let actor = format!("account:{}", order.buyer.account);
    let amount = counter
        .shop
        .change(id, By::Somebody(&actor), |order, at| {
            let units = if named.is_empty() {
                refund::left(order)
            } else {
                named.clone()
            };
            refund::ask(order, refund_id, &units, &reason, at)
        })
        .await
        .map_err(|error| problems::store(&error))?;
    let view = RefundView {
        refund: refund_id,
        amount: amount.into(),
    };
    Ok((StatusCode::ACCEPTED, Json(view)))
}
