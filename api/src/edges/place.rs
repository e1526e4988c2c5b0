//! A new order, from what is wanted and what the catalogue says. Pure.

use std::collections::BTreeMap;

use uuid::Uuid;
use vitrine_commerce::{
    licence::Grant,
    money::{Currency, Money},
    price::{Tax, Wanted, price},
};

use super::{
    At, Refusal,
    attempt::{self, Begun},
};
use crate::order::{Buyer, Line, News, Order};

/// So many of one product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// A product as it is sold now, by its newest price in a currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which.
    pub sku: String,
    /// Its name, for people.
    pub title: String,
    /// Whose goods these are.
    pub seller: String,
    /// Which versions a licence is for.
    pub versions: String,
    /// What a licence says.
    pub grant: Grant,
    /// The row of the price.
    pub price: Uuid,
    /// What one costs.
    pub amount: Money,
    /// The tax on it.
    pub tax: Tax,
}

/// A new order. Its items' ids follow from its own.
///
/// # Errors
/// If something is not sold, or the price cannot be reckoned.
pub fn place(
    id: Uuid,
    buyer: Buyer,
    currency: Currency,
    wants: &[Want],
    offers: &BTreeMap<String, Offer>,
) -> Result<Order, Refusal> {
    let sold: Vec<_> = wants
        .iter()
        .map(|want| {
            let offer = offers
                .get(&want.sku)
                .filter(|offer| offer.amount.currency == currency);
            offer
                .map(|offer| (want, offer))
                .ok_or_else(|| Refusal::NotSold(want.sku.clone(), currency.code().to_owned()))
        })
        .collect::<Result<_, _>>()?;
    let wanted: Vec<_> = sold
        .iter()
        .map(|(want, offer)| Wanted {
            price: offer.amount,
            quantity: want.quantity,
            tax: offer.tax,
        })
        .collect();
    let priced = price(currency, &wanted, Money::zero(currency))?;
    let lines = (0_u32..)
        .zip(sold)
        .zip(priced.lines)
        .map(|((number, (want, offer)), amounts)| Line {
            item: Uuid::new_v5(&id, &number.to_be_bytes()),
            sku: offer.sku.clone(),
            title: offer.title.clone(),
            seller: offer.seller.clone(),
            versions: offer.versions.clone(),
            price: offer.price,
            quantity: want.quantity,
            amounts,
            grant: offer.grant.clone(),
        });
    Ok(Order::new(id, buyer, priced.sum, lines.collect()))
}

/// It has come to be, and its first attempt to pay is begun with it: whoever orders is sent to pay.
///
/// # Errors
/// If it cannot be written down.
pub fn placed(order: &mut Order, at: &At<'_>) -> Result<Begun, Refusal> {
    let body =
        serde_json::to_value(order.sum).map_err(|error| Refusal::Json("an order", error.to_string()))?;
    order.news.push(News {
        kind: "order.placed",
        actor: at.actor.to_owned(),
        body,
    });
    attempt::begin(order, at)
}
