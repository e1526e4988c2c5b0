//! The demo's second half: what was tried is bought, paid, acknowledged by Finance, licensed, verified without a network, given back and refused.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use vitrine_crds::SkuListing;
use vitrine_devcluster::progress::Progress;
use vitrine_kit::{
    Error, Result, images,
    market::{self, Images, Market, Ports, Secrets, buyer::Buyer},
};
use vitrine_parts::Port;

use super::{
    cluster::{Ground, Relay},
    stages::Stages,
};

/// So many stages it has.
pub const STAGES: usize = 7;
/// Who buys.
const BUYER: &str = "alice";
/// Far longer than anything here takes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(120);
/// It takes less than a second by Stripe's webhooks. Without them the shop finds out by itself once a minute: then something is wrong.
const LICENSED: Duration = Duration::from_secs(40);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// A listing of the demo, with how it is sold.
pub fn sold(mut listing: SkuListing) -> Result<SkuListing> {
    let sale = json!({
        "title": "PocketBase", "versions": "^1", "licence": {"days": 365, "instances": 3},
        "prices": [{"currency": "EUR", "minor": 2000, "taxRatePpm": 190_000, "taxIncluded": true}],
    });
    let sale = serde_json::from_value(sale).map_err(|error| Error::Other(error.to_string()))?;
    listing.spec.sale = Some(sale);
    Ok(listing)
}

/// The shop as it stands when the story is over.
pub struct Shop {
    ports: Ports,
    buyer: Buyer,
    _relays: Vec<Relay>,
}

/// Installs the shop into the cluster of the preview and buys there what a listing sells.
///
/// # Errors
/// Those of the first stage that fails.
pub async fn tell(
    stages: &mut Stages,
    ground: &Ground,
    client: &Client,
    images: &Images,
    listing: &SkuListing,
    folder: &Path,
) -> Result<Shop> {
    let sku = format!("{}/{}", listing.spec.seller, listing.spec.sku);
    let ports = Ports {
        shop: Port::for_good().port(),
        pages: Port::for_good().port(),
        identity: Port::for_good().port(),
    };
    let secrets = Secrets::make(folder)?;
    let pinned = written(folder, "keys.txt", &secrets.pinned)?;
    let target = ground.target();
    let market = Market {
        target: &target,
        folder,
        images,
        ports,
        network: ground.network(client).await?,
        secrets: &secrets,
    };
    let relays = stages
        .run(
            "install the shop, beside a Postgres and an identity provider",
            async |progress| install(ground, client, &market, progress).await,
        )
        .await?;
    let buyer = stages
        .run("the listing is published, and sold", async |_| {
            let buyer = Buyer::signs_in(&ports, BUYER).await?;
            until_sold(&buyer, &sku).await?;
            Ok(buyer)
        })
        .await?;
    let order = stages
        .run("order, and pay on the page where people pay", async |_| {
            let (order, page) = buyer.orders(&sku, "demo").await?;
            buyer.pays(&page).await?;
            Ok(order)
        })
        .await?;
    let seen = stages
        .run("Finance acknowledges it, a licence is signed", async |_| {
            buyer.until(&order, "completed", LICENSED).await
        })
        .await?;
    let licence = written(folder, "licence.txt", &buyer.licence().await?)?;
    println!("\n{}", receipt(&seen));
    let verify = Verify {
        licence: &licence,
        pinned: &pinned,
        folder,
    };
    stages
        .run("verify the licence without a network", async |_| {
            let said = verify.with(&revocations(&buyer).await?)?;
            if said.holds {
                println!("\n{}", said.text);
                return Ok(());
            }
            Err(Error::Other(format!("the licence does not hold: {}", said.text)))
        })
        .await?;
    stages
        .run("give it back: the licence is refused", async |_| {
            buyer.gives_back(&order, "demo-refund").await?;
            buyer.until(&order, "refunded", PATIENCE).await?;
            let begun = Instant::now();
            loop {
                let said = verify.with(&revocations(&buyer).await?)?;
                if !said.holds && said.text.contains("revoked") {
                    println!("\n{}", said.text);
                    return Ok(());
                }
                late(begun, "a revocation list with the licence", &said.text)?;
                sleep(LOOK).await;
            }
        })
        .await?;
    stages
        .run("Finance's books and the shop's are equal", async |progress| {
            println!("\n{}", market.reconcile(progress)?.trim());
            Ok(())
        })
        .await?;
    Ok(Shop {
        ports,
        buyer,
        _relays: relays,
    })
}

impl Shop {
    /// What a person can do there now.
    pub fn hints(&self) -> String {
        let (shop, token) = (self.ports.public_url(), self.buyer.token());
        format!(
            "The shop, as {BUYER} for five minutes:\n  export TOKEN={token}\n  \
             curl -H \"Authorization: Bearer $TOKEN\" {shop}/api/v1/marketplace/orders\n  \
             curl -H \"Authorization: Bearer $TOKEN\" -H 'Idempotency-Key: mine' -H 'Content-Type: application/json' \\\n    \
             -d '{{\"items\": [{{\"sku\": \"acme/pocketbase\", \"quantity\": 1}}], \"currency\": \"EUR\"}}' {shop}/api/v1/marketplace/checkout\n  \
             and open the url that it says in a browser, to pay\n"
        )
    }
}

async fn install(
    ground: &Ground,
    client: &Client,
    market: &Market<'_>,
    progress: &dyn Progress,
) -> Result<Vec<Relay>> {
    // Of an earlier demo: what was random then is not known any more.
    market::remove(market.target, progress)?;
    for image in market.images.all() {
        ground.load(image)?;
    }
    market.surround(client, progress).await?;
    market.install(progress)?;
    let mut relays = vec![];
    for lead in market.ports.leads() {
        relays.push(ground.relay(&lead, client, progress).await?);
    }
    Ok(relays)
}

fn late(begun: Instant, what: &str, last: &str) -> Result<()> {
    if begun.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(Error::Late {
        what: what.to_owned(),
        seconds: PATIENCE.as_secs(),
        last: last.to_owned(),
    })
}

async fn until_sold(buyer: &Buyer, sku: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let products = buyer.products().await?;
        let mut all = products.as_array().into_iter().flatten();
        if all.any(|product| product["sku"] == sku) {
            return Ok(());
        }
        late(begun, &format!("{sku} is sold"), &products.to_string())?;
        sleep(LOOK).await;
    }
}

async fn revocations(buyer: &Buyer) -> Result<String> {
    let begun = Instant::now();
    loop {
        if let Some(list) = buyer.revocations().await? {
            return Ok(list);
        }
        late(begun, "a revocation list", "there is none")?;
        sleep(LOOK).await;
    }
}

fn written(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|source| Error::File {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// What is known of an order that was paid.
fn receipt(order: &Value) -> String {
    let text = serde_yaml::to_string(order).unwrap_or_default();
    let lines = text.lines().map(|line| format!("  {line}\n"));
    format!("order:\n{}", lines.collect::<String>())
}

/// A licence that is verified by `vitrine licence verify`.
struct Verify<'a> {
    licence: &'a Path,
    pinned: &'a Path,
    folder: &'a Path,
}

/// What it said.
struct Said {
    holds: bool,
    text: String,
}

impl Verify<'_> {
    /// With a revocation list that was fetched before, in a network namespace that has no network.
    fn with(&self, revocations: &str) -> Result<Said> {
        let list = written(self.folder, "revocations.txt", revocations)?;
        let output = Command::new("unshare")
            .arg("--net")
            .arg(images::program_of("vitrine"))
            .args(["licence", "verify"])
            .arg(self.licence)
            .arg("--keys")
            .arg(self.pinned)
            .arg("--revocations")
            .arg(list)
            .output()
            .map_err(|source| Error::File {
                path: "unshare".into(),
                source,
            })?;
        let text =
            [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
        Ok(Said {
            holds: output.status.success(),
            text: text.join("\n").trim().to_owned(),
        })
    }
}
