//! What listings say, as it is sold: prices with versions, what is withdrawn, and who may say what something costs.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use vitrine_api::{
    seams::StoreError,
    store::postgres::{
        MIGRATIONS,
        listed::{Catalogue, Listed, PriceTag},
    },
};
use vitrine_commerce::{licence::Grant, money::Money, price::Tax};
use vitrine_parts::OWNER;
use vitrine_service::Database;
use vitrine_shop_tests::{
    postgres::{database, server},
    town::{CHECKOUT, Town, wants, within},
};

const SKU: &str = "acme/notes";

fn tag(minor: i64, currency: &str) -> PriceTag {
    PriceTag {
        amount: Money::new(minor, currency.parse().unwrap()),
        tax: Tax {
            rate_ppm: 190_000,
            included: true,
        },
    }
}

fn listed(uid: u128, generation: i64, prices: &[PriceTag]) -> Listed {
    Listed {
        sku: SKU.to_owned(),
        object: (Uuid::from_u128(uid), generation),
        seller: "acme".to_owned(),
        title: "Notes".to_owned(),
        versions: ">=1, <2".to_owned(),
        grant: Grant::default(),
        prices: Some(prices.to_vec()),
    }
}

/// A shop, and its catalogue by the role that it has.
async fn shop() -> (Town, Catalogue) {
    let town = Town::new().await;
    let pool = town.pool_of("vitrine_catalogue").await;
    (town, Catalogue::new(pool))
}

/// What is sold, as buyers see it: minor units by product and currency.
async fn sold(town: &Town) -> Value {
    let (status, products) = town
        .ask("alice", "GET", "/api/v1/marketplace/products", None, None)
        .await;
    assert_eq!(status, 200);
    let product = |product: &Value| {
        let prices = product["prices"].as_array().unwrap().iter();
        let prices = prices.map(|price| {
            let currency = price["amount"]["currency"].as_str().unwrap().to_owned();
            (currency, price["amount"]["minor"].clone())
        });
        (
            product["sku"].as_str().unwrap().to_owned(),
            Value::Object(prices.collect()),
        )
    };
    Value::Object(products.as_array().unwrap().iter().map(product).collect())
}

async fn versions(town: &Town) -> Vec<(String, i32, i64)> {
    sqlx::query_as("SELECT currency, version, minor FROM shop.prices WHERE sku = $1 ORDER BY 1, 2")
        .bind(SKU)
        .fetch_all(&town.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_price_that_changes_is_a_new_version_and_orders_keep_theirs() {
    let (town, catalogue) = shop().await;
    let both = [tag(2000, "EUR"), tag(3200, "JPY")];
    catalogue.list(&listed(9, 1, &both)).await.unwrap();
    assert_eq!(sold(&town).await[SKU], json!({"EUR": 2000, "JPY": 3200}));
    let order = async |key: &str, currency: &str| {
        let mut wanted = wants(SKU, 1);
        wanted["currency"] = json!(currency);
        town.ask("alice", "POST", CHECKOUT, Some(key), Some(wanted)).await
    };
    let (status, before) = order("before", "EUR").await;
    assert_eq!((status, &before["total"]["minor"]), (201, &json!(2000)));

    // Dearer, and not in yen any more. Said twice, it is one version.
    for _ in 0..2 {
        catalogue.list(&listed(9, 2, &[tag(2500, "EUR")])).await.unwrap();
    }
    // Somebody who has not seen that yet.
    catalogue.list(&listed(9, 1, &both)).await.unwrap();
    assert_eq!(sold(&town).await[SKU], json!({"EUR": 2500}));
    let all = [("EUR", 1, 2000), ("EUR", 2, 2500), ("JPY", 1, 3200)];
    assert_eq!(
        versions(&town).await,
        all.map(|(currency, version, minor)| (currency.to_owned(), version, minor))
    );
    let (status, problem) = order("yen", "JPY").await;
    assert_eq!((status, &problem["code"]), (422, &json!("not-sold")), "{problem}");
    let (status, after) = order("after", "EUR").await;
    assert_eq!((status, &after["total"]["minor"]), (201, &json!(2500)));
    let path = format!("/api/v1/marketplace/orders/{}", before["order"].as_str().unwrap());
    let (_, kept) = town.ask("alice", "GET", &path, None, None).await;
    assert_eq!(kept["total"]["minor"], 2000, "{kept}");
}

#[tokio::test]
async fn what_the_schema_does_not_take_is_told_from_a_database_that_is_away() {
    let (_town, catalogue) = shop().await;
    let refused = catalogue
        .list(&Listed {
            title: "a\u{0}b".to_owned(),
            ..listed(9, 1, &[])
        })
        .await;
    assert!(matches!(refused, Err(StoreError::Broken(_))), "{refused:?}");
}

#[tokio::test]
async fn what_is_withdrawn_is_not_sold_and_a_new_listing_of_it_is() {
    let (town, catalogue) = shop().await;
    catalogue.list(&listed(9, 7, &[tag(2000, "EUR")])).await.unwrap();
    assert_eq!(catalogue.withdraw_others(&["notes".to_owned()]).await.unwrap(), 2);
    assert_eq!(sold(&town).await, json!({"notes": {"EUR": 2000}}));
    let wanted = Some(wants(SKU, 1));
    let (status, problem) = town.ask("alice", "POST", CHECKOUT, Some("k"), wanted).await;
    assert_eq!((status, &problem["code"]), (422, &json!("not-sold")), "{problem}");
    // Another object: its generations begin anew.
    catalogue.list(&listed(10, 1, &[tag(2000, "EUR")])).await.unwrap();
    assert_eq!(sold(&town).await[SKU], json!({"EUR": 2000}));
    assert_eq!(versions(&town).await.len(), 1);
}

#[tokio::test]
async fn a_listing_that_says_what_it_costs_is_the_only_one_that_does() {
    let (town, catalogue) = shop().await;
    catalogue.list(&listed(9, 1, &[tag(2000, "EUR")])).await.unwrap();
    let price = |sku: &str| json!({"sku": sku, "minor": 900, "currency": "EUR", "taxRatePpm": 190_000, "taxIncluded": true});
    let says = async |sku: &str| {
        town.ask_as_admin("/api/v1/admin/marketplace/prices", price(sku))
            .await
    };
    let (status, problem) = says(SKU).await;
    assert_eq!(
        (status, &problem["code"]),
        (409, &json!("priced-by-listing")),
        "{problem}"
    );
    assert_eq!(says("acme/nothing").await.0, 404);
    catalogue
        .list(&Listed {
            prices: None,
            ..listed(9, 2, &[])
        })
        .await
        .unwrap();
    // What the listing once said is no price of the shop's.
    assert_eq!(sold(&town).await.get(SKU), None);
    assert_eq!(says(SKU).await.0, 201);
    assert_eq!(sold(&town).await[SKU], json!({"EUR": 900}));
}

/// As a service is told where its database is.
#[derive(Parser)]
struct Service {
    #[command(flatten)]
    database: Database,
}

/// Two that follow the listings would withdraw what the other one has just found: the second one waits for the first to end, however that ends.
#[tokio::test]
async fn what_only_one_process_may_do_another_one_does_when_it_has_ended() {
    let database = database(server(), &MIGRATIONS).await;
    let url = format!(
        "postgres://{OWNER}@localhost/{}?host={}&sslmode=disable",
        database.name(),
        server().folder().display()
    );
    let only = |key: i64| {
        Service::parse_from(["service", "--database", &url])
            .database
            .only(key)
            .unwrap()
    };
    let works = async |pool: &PgPool| {
        let asked = sqlx::query("SELECT").execute(pool);
        match tokio::time::timeout(Duration::from_millis(500), asked).await {
            Ok(Ok(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    let (first, second, other) = (only(1), only(1), only(2));
    assert_eq!(works(&first).await, Ok(()));
    assert_eq!(works(&other).await, Ok(()));
    works(&second).await.unwrap_err();
    // Not by a word of its own: its connection is gone.
    let ends = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1";
    let mut administrator = database.connect().await;
    sqlx::query(ends).execute(&mut administrator).await.unwrap();
    assert_eq!(
        within(Duration::from_secs(10), async || works(&second).await).await,
        Ok(())
    );
    works(&first).await.unwrap_err();
}
