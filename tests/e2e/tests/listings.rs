//! From `kubectl apply` to the shop: a listing is published when it is sound, within the envelope and first of its SKU; and what is published is
//! what the shop sells, by the process that follows the listings.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    fs::File,
    process::{Command, Stdio},
};

use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use vitrine_crds::{SkuListing, conditions, sku_listing::PUBLISHED};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE},
    operator::{Operator, Options, Post},
};
use vitrine_kit::{http, images, objects};
use vitrine_parts::{Port, Running, Server};

/// The listing of these tests.
const NOTES: &str = "notes";
/// Where the shop keeps what it sells.
const SHOP: &str = "shop";

fn notes() -> SkuListing {
    let mut notes = objects::stub(NOTES, "");
    let sale = json!({
        "title": "Notes", "versions": ">=1, <2", "licence": {"days": 365, "instances": 3},
        "prices": [{"currency": "EUR", "minor": 2000, "taxRatePpm": 190_000, "taxIncluded": true}],
    });
    notes.spec.sale = Some(serde_json::from_value(sale).unwrap());
    notes
}

/// The condition Published of what the listing says now: status, reason, message.
async fn published(api: &Api<SkuListing>, reason: &str) -> (String, String) {
    eventually(&format!("{NOTES} is {reason}"), PATIENCE, async || {
        let listing = api.get(NOTES).await.map_err(|error| error.to_string())?;
        let status = listing.status.clone().unwrap_or_default();
        let it = conditions::find(&status.conditions, PUBLISHED).ok_or("there is no condition")?;
        if it.reason == reason && it.observed_generation == listing.metadata.generation {
            assert_eq!(status.observed_generation, listing.metadata.generation);
            return Ok((it.status.clone(), it.message.clone()));
        }
        Err(format!("{it:?}"))
    })
    .await
}

async fn change(api: &Api<SkuListing>, spec: Value) {
    let patch = Patch::Merge(json!({ "spec": spec }));
    api.patch(NOTES, &PatchParams::default(), &patch).await.unwrap();
}

/// A shop's database, and the process that follows the cluster's listings.
struct Follower {
    database: Server,
    port: Port,
    _process: Running,
}

impl Follower {
    async fn start(post: &Post) -> Self {
        let database = Server::start().unwrap();
        database
            .psql("postgres", &["--command", &format!("CREATE DATABASE {SHOP}")])
            .unwrap();
        let program = images::program_of("vitrine-api");
        let url = database.url(SHOP);
        let migrated = Command::new(&program)
            .args(["migrate", "--database", &url])
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        assert!(
            migrated.status.success(),
            "{}",
            String::from_utf8_lossy(&migrated.stderr)
        );
        let (port, log) = (Port::take(), post.folder.join("catalogue.log"));
        let process = Command::new(&program)
            .args(["catalogue", "--metrics", &port.address.to_string()])
            .args([
                "--database",
                &format!("{url}&options=-c%20role%3Dvitrine_catalogue"),
            ])
            .env("KUBECONFIG", &post.kubeconfig)
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let follower = Self {
            database,
            port,
            _process: Running(process),
        };
        eventually("the listings are followed", PATIENCE, async || {
            let answer = http::get(follower.port.address, "localhost", "/readyz").await;
            match answer {
                Ok(answer) if answer.status == 200 => Ok(()),
                other => Err(format!(
                    "{other:?}\n{}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                )),
            }
        })
        .await;
        follower
    }

    /// Waits until the shop sells this and no more: product, listing, and what it costs.
    async fn sells(&self, wanted: &[(&str, &SkuListing, &str)]) {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(sku, listing, costs)| {
                format!(
                    "{sku}|{}|{}|{costs}",
                    listing.uid().unwrap(),
                    listing.metadata.generation.unwrap()
                )
            })
            .collect();
        // As the shop reads it (`api/src/store/postgres/shown.rs`).
        let sql = "SELECT sku, listing_uid, generation, (SELECT string_agg(currency || ' ' || minor, ', ' ORDER BY currency) FROM (
                SELECT DISTINCT ON (currency) * FROM shop.prices WHERE sku = p.sku AND by_listing = (p.currencies IS NOT NULL)
                    AND (p.currencies IS NULL OR currency = ANY(p.currencies)) ORDER BY currency, version DESC
            ) newest)
            FROM shop.products p WHERE published ORDER BY sku";
        eventually("the shop sells what is published", PATIENCE, async || {
            let sold = self.database.psql(SHOP, &["--command", sql]).unwrap();
            (sold == wanted.join("\n"))
                .then_some(())
                .ok_or_else(|| format!("{sold}, and not {wanted:?}"))
        })
        .await;
    }
}

async fn made(client: &Client, namespace: &str) -> (Api<SkuListing>, SkuListing) {
    let api = Api::namespaced(client.clone(), namespace);
    let made = api.create(&PostParams::default(), &notes()).await.unwrap();
    (api, made)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sound_is_published_and_what_is_published_is_sold() {
    const SKU: &str = "acme/notes";
    let house = House::take("listings", 1, "24h").await;
    let operator = Operator::ready(&house.post, &Options::alone("listings"), None).await;
    let follower = Follower::start(&house.post).await;
    follower.sells(&[]).await;

    let (api, listing) = made(&house.client, &house.shop).await;
    let (status, message) = published(&api, "Valid").await;
    assert_eq!(status, "True");
    assert!(message.contains("nobody has looked for a signature"), "{message}");
    follower.sells(&[(SKU, &listing, "EUR 2000")]).await;

    // Cheaper, and in francs too.
    let prices = json!([{"currency": "EUR", "minor": 1500}, {"currency": "CHF", "minor": 1600}]);
    change(&api, json!({"sale": {"prices": prices}})).await;
    published(&api, "Valid").await;
    let cheaper = api.get(NOTES).await.unwrap();
    follower.sells(&[(SKU, &cheaper, "CHF 1600, EUR 1500")]).await;

    // A currency that is none, a version that its buyers could not use: what the schema cannot see.
    let prices = json!([{"currency": "EUX", "minor": 1500}]);
    change(&api, json!({"sale": {"prices": prices}})).await;
    let (status, message) = published(&api, "SaleUnsound").await;
    assert_eq!(status, "False");
    assert!(message.contains("\"EUX\" is no ISO 4217 currency"), "{message}");
    follower.sells(&[]).await;
    change(&api, json!({"sale": {"prices": null}, "version": "3.0.0"})).await;
    published(&api, "SaleUnsound").await;
    change(&api, json!({"version": "1.0.1"})).await;
    published(&api, "Valid").await;
    let unpriced = api.get(NOTES).await.unwrap();
    follower.sells(&[(SKU, &unpriced, "")]).await;

    // The platform allows less than its preview needs, and more again.
    let small = json!({"size": {"max": {"cpu": "5m", "memory": "1Gi", "ephemeralStorage": "1Gi"}}});
    house.policy(small).await;
    let (_, message) = published(&api, "OutsideEnvelope").await;
    assert_eq!(
        message,
        "SkuListing spec.preview.size.cpu asks for 10m, allowed is at most 5m"
    );
    follower.sells(&[]).await;
    house.policy(json!({})).await;
    published(&api, "Valid").await;
    follower.sells(&[(SKU, &unpriced, "")]).await;

    // Somebody else would sell it too: who sells it already does, until that is gone.
    objects::shop(&house.client, "listings-too").await.unwrap();
    let (late_api, late) = made(&house.client, "listings-too").await;
    let (_, message) = published(&late_api, "SkuTaken").await;
    assert!(message.starts_with("listings/notes sells SKU"), "{message}");
    follower.sells(&[(SKU, &unpriced, "")]).await;
    api.delete(NOTES, &DeleteParams::default()).await.unwrap();
    published(&late_api, "Valid").await;
    follower.sells(&[(SKU, &late, "EUR 2000")]).await;

    // Without a way to sell it, it is one to try.
    change(&late_api, json!({"sale": null})).await;
    published(&late_api, "NotForSale").await;
    follower.sells(&[]).await;
    late_api.delete(NOTES, &DeleteParams::default()).await.unwrap();
    assert!(operator.runs(), "{}", operator.last_words());
}
