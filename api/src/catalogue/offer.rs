//! What a listing of the cluster says of a product. Pure.

use uuid::Uuid;
use vitrine_commerce::{
    licence::{Grant, Limits},
    money::{Money, MoneyError},
    price::Tax,
};
use vitrine_crds::{
    SkuListing,
    sku_listing::{LicenceTerms, Price},
};

use crate::store::postgres::listed::{Listed, PriceTag};

/// Why a listing that is published cannot be sold. The operator has judged it before: this is for one whose rules were others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsold {
    /// A currency.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// A number that the schema does not let through.
    #[error("{field} is {value}, which is out of range")]
    Range {
        /// Where it stands.
        field: &'static str,
        /// What.
        value: i64,
    },
    /// The API server has given it no uid.
    #[error("it has no uid")]
    Nameless,
}

/// What a listing is sold as; `None` if it is not sold.
///
/// # Errors
/// If it says what cannot be.
pub fn offer(listing: &SkuListing) -> Result<Option<Listed>, Unsold> {
    let Some(sale) = listing.spec.sale.as_ref().filter(|_| listing.is_published()) else {
        return Ok(None);
    };
    let uid = listing
        .metadata
        .uid
        .as_deref()
        .and_then(|uid| Uuid::parse_str(uid).ok());
    let prices = sale
        .prices
        .as_ref()
        .map(|prices| prices.iter().map(price).collect());
    Ok(Some(Listed {
        sku: format!("{}/{}", listing.spec.seller, listing.spec.sku),
        object: (
            uid.ok_or(Unsold::Nameless)?,
            listing.metadata.generation.unwrap_or_default(),
        ),
        seller: listing.spec.seller.clone(),
        title: sale.title.clone(),
        versions: sale.versions.clone(),
        grant: grant(&sale.licence)?,
        prices: prices.transpose()?,
    }))
}

fn unsigned(field: &'static str, value: i32) -> Result<u32, Unsold> {
    u32::try_from(value).map_err(|_| Unsold::Range {
        field,
        value: value.into(),
    })
}

fn price(price: &Price) -> Result<PriceTag, Unsold> {
    if price.minor < 0 {
        return Err(Unsold::Range {
            field: "minor",
            value: price.minor,
        });
    }
    Ok(PriceTag {
        amount: Money::new(price.minor, price.currency.parse()?),
        tax: Tax {
            rate_ppm: unsigned("taxRatePpm", price.tax_rate_ppm)?,
            included: price.tax_included,
        },
    })
}

fn grant(terms: &LicenceTerms) -> Result<Grant, Unsold> {
    let limit = |field, limit: Option<i32>| limit.map(|limit| unsigned(field, limit)).transpose();
    Ok(Grant {
        // Goods have none yet.
        manifest: None,
        limits: Limits {
            instances: limit("licence.instances", terms.instances)?,
            users: limit("licence.users", terms.users)?,
            domains: terms.domains.iter().cloned().collect(),
        },
        entitlements: terms.entitlements.iter().cloned().collect(),
        days: limit("licence.days", terms.days)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn listing(published: &str, observed: i64, sale: &Value) -> SkuListing {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "SkuListing",
            "metadata": {
                "name": "anything", "namespace": "shop", "uid": "00000000-0000-0000-0000-000000000001", "generation": 3,
            },
            "spec": {
                "sku": "notes", "seller": "acme", "version": "1.4.0", "sale": sale,
                "preview": {
                    "image": format!("mirror.example/notes@sha256:{}", "0".repeat(64)), "port": 8090,
                    "size": {"cpu": "100m", "memory": "64Mi", "ephemeralStorage": "16Mi"},
                },
            },
            "status": {"conditions": [{
                "type": "Published", "status": published, "reason": "Valid", "message": "", "observedGeneration": observed,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_published_is_sold_as_the_listing_says() {
        let sale = json!({
            "title": "Notes", "versions": ">=1, <2",
            "prices": [{"currency": "EUR", "minor": 2000, "taxRatePpm": 190_000, "taxIncluded": true}, {"currency": "JPY", "minor": 3200}],
            "licence": {"days": 365, "instances": 3, "domains": ["b.example", "a.example"], "entitlements": ["updates", "support"]},
        });
        let listed = offer(&listing("True", 3, &sale)).unwrap().unwrap();
        assert_eq!(listed.sku, "acme/notes");
        assert_eq!(listed.object, (Uuid::from_u128(1), 3));
        let prices: Vec<_> = listed
            .prices
            .iter()
            .flatten()
            .map(|tag| (tag.amount.to_string(), tag.tax.rate_ppm))
            .collect();
        assert_eq!(
            prices,
            [("20.00 EUR".to_owned(), 190_000), ("3200 JPY".to_owned(), 0)]
        );
        assert_eq!(listed.grant.limits.instances, Some(3));
        assert_eq!(listed.grant.limits.users, None);
        // Sorted, as a licence has them.
        assert_eq!(listed.grant.limits.domains, ["a.example", "b.example"]);
        assert_eq!(listed.grant.entitlements, ["support", "updates"]);
        assert_eq!(listed.grant.days, Some(365));
    }

    #[test]
    fn what_is_not_published_as_it_is_now_is_not_sold() {
        let sale = json!({"title": "Notes", "versions": ">=1, <2"});
        assert_eq!(offer(&listing("True", 3, &sale)).unwrap().unwrap().prices, None);
        assert_eq!(offer(&listing("False", 3, &sale)), Ok(None));
        // Judged before it was changed.
        assert_eq!(offer(&listing("True", 2, &sale)), Ok(None));
        assert_eq!(offer(&listing("True", 3, &Value::Null)), Ok(None));
    }

    #[test]
    fn what_the_schema_would_not_have_let_through_is_said() {
        let sale = |price: Value| json!({"title": "Notes", "versions": ">=1, <2", "prices": [price]});
        for (price, says) in [
            (
                json!({"currency": "EUR", "minor": -1}),
                "minor is -1, which is out of range",
            ),
            (
                json!({"currency": "EUR", "minor": 1, "taxRatePpm": -5}),
                "taxRatePpm is -5, which is out of range",
            ),
            (
                json!({"currency": "XXQ", "minor": 1}),
                "\"XXQ\" is no ISO 4217 currency with minor units; give a code such as EUR",
            ),
        ] {
            let refused = offer(&listing("True", 3, &sale(price))).unwrap_err();
            assert_eq!(refused.to_string(), says);
        }
    }
}
