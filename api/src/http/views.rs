//! What is told of orders and licences. Pure.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use vitrine_commerce::{
    facts::{self, OrderStatus, PaymentState, Projection, UnitId, UnitStatus},
    money::Money,
};

use crate::store::postgres::Numbered;

/// An amount: minor units of an ISO 4217 currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AmountView {
    /// Minor units: 1999 is 19.99 EUR, and 1999 JPY.
    pub minor: i64,
    /// ISO 4217.
    #[schema(example = "EUR")]
    pub currency: String,
}

impl From<Money> for AmountView {
    fn from(money: Money) -> Self {
        Self {
            minor: money.minor,
            currency: money.currency.code().to_owned(),
        }
    }
}

/// One unit of an order: what is licensed one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnitRef {
    /// Which line, from 0.
    pub line: u32,
    /// Which unit of it, from 0.
    pub unit: u32,
}

impl From<UnitRef> for UnitId {
    fn from(unit: UnitRef) -> Self {
        Self {
            line: unit.line,
            unit: unit.unit,
        }
    }
}

/// A unit, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct UnitView {
    /// Which line, from 0.
    pub line: u32,
    /// Which unit of it, from 0.
    pub unit: u32,
    /// `waiting`, `licensed`, `awaiting_recipient`, `delivering`, `delivered`, `suspended`, `revoked` or `refused`.
    #[schema(value_type = String, example = "licensed")]
    pub status: UnitStatus,
    /// Its licence's key, once it is signed.
    pub licence: Option<String>,
}

/// A line of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LineView {
    /// What is bought.
    pub sku: String,
    /// Its name.
    pub title: String,
    /// How many.
    pub quantity: u32,
    /// Without tax, before the discount.
    pub subtotal: AmountView,
    /// What is taken off.
    pub discount: AmountView,
    /// The tax.
    pub tax: AmountView,
    /// What is paid.
    pub total: AmountView,
}

/// An order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// Its id.
    pub id: Uuid,
    /// Its number, as buyers and the shop's people name it: unique, and higher for each that is placed.
    pub number: i64,
    /// `pending`, `completed`, `refunded` or `failed`.
    #[schema(value_type = String, example = "completed")]
    pub status: Projection,
    /// The same more closely: `pending`, `awaiting_funds`, `awaiting_finance`, `licensing`, `completed`, `suspended`, `partly_refunded`,
    /// `refunded`, `failed` or `held`.
    #[schema(value_type = String, example = "completed")]
    pub stage: OrderStatus,
    /// What a person of the shop has to decide before it goes on.
    pub held: Vec<String>,
    /// What is bought.
    pub lines: Vec<LineView>,
    /// Its units.
    pub units: Vec<UnitView>,
    /// Without tax, before the discount.
    pub subtotal: AmountView,
    /// What is taken off.
    pub discount: AmountView,
    /// The tax.
    pub tax: AmountView,
    /// What is paid.
    pub total: AmountView,
    /// How it was paid.
    pub payment: Option<PaymentView>,
}

/// The payment that pays an order (CHK-31).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentView {
    /// By what.
    pub method: Option<String>,
    /// Stripe's id.
    pub payment_intent_id: String,
    /// `pending`, `processing`, `failed` or `succeeded`.
    #[schema(value_type = String)]
    pub payment_status: PaymentState,
    /// When, by the provider's clock.
    pub paid_at: Option<String>,
}

impl OrderView {
    /// Of an order and its number.
    pub fn of(Numbered { number, order }: &Numbered) -> Self {
        let known = order.facts();
        let units = order.units().map(|(unit, _)| UnitView {
            line: unit.line,
            unit: unit.unit,
            status: facts::unit_status(&known, unit),
            licence: order
                .licences
                .get(&unit)
                .filter(|licence| licence.signature.is_some())
                .map(|licence| licence.lookup.to_string()),
        });
        let payment = order.accepted.as_ref().and_then(|id| {
            let payment = order.payments.get(id)?;
            Some(PaymentView {
                method: payment.method.clone(),
                payment_intent_id: id.clone(),
                payment_status: payment.said.state,
                paid_at: payment.paid_at.map(|at| at.to_string()),
            })
        });
        Self {
            id: order.id,
            number: *number,
            status: facts::projection(&known),
            stage: facts::status(&known),
            held: facts::holds(&known)
                .iter()
                .map(|hold| format!("{hold:?}"))
                .collect(),
            lines: order
                .lines
                .iter()
                .map(|line| LineView {
                    sku: line.sku.clone(),
                    title: line.title.clone(),
                    quantity: line.quantity,
                    subtotal: line.amounts.subtotal.into(),
                    discount: line.amounts.discount.into(),
                    tax: line.amounts.tax.into(),
                    total: line.amounts.total.into(),
                })
                .collect(),
            units: units.collect(),
            subtotal: order.sum.subtotal.into(),
            discount: order.sum.discount.into(),
            tax: order.sum.tax.into(),
            total: order.sum.total.into(),
            payment,
        }
    }
}
