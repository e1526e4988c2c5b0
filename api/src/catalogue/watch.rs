//! Writes down what the cluster's listings say, whenever that changes. Watches the cluster, writes the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::StreamExt;
use kube::{
    Api, Client, Config, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use tokio::{sync::watch, time::sleep};
use vitrine_crds::SkuListing;
use vitrine_service::Readiness;

use super::offer::offer;
use crate::{
    metrics::OfCatalogue,
    seams::StoreError,
    store::postgres::listed::{Catalogue, Listed},
};

/// A watch is begun anew after this, so that one whose connection is dead is not waited for for long, …
const WATCH_SECONDS: u32 = 60;
/// … which is noticed after this.
const SILENT: Duration = Duration::from_secs(75);
/// Many listings that change at once are written in one go.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// After a failure of the store.
const AGAIN: Duration = Duration::from_secs(2);
/// Everything is compared with the store this often, whatever was written before.
const WHOLE: Duration = Duration::from_secs(300);
/// What they are called in `/readyz`: what was written, …
const WHAT: &str = "listings";
/// … and what is heard.
const WATCH: &str = "watch";

/// A client of the cluster that the environment names.
///
/// # Errors
/// If it names none.
pub async fn cluster() -> Result<Client, CatalogueError> {
    let mut config = Config::infer().await.map_err(Box::new)?;
    config.read_timeout = Some(SILENT);
    Ok(Client::try_from(config).map_err(Box::new)?)
}

/// Why there is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// No cluster is named.
    #[error("no Kubernetes cluster is configured ({0}); set KUBECONFIG or run inside a pod")]
    Unnamed(#[from] Box<kube::config::InferConfigError>),
    /// It cannot be talked to.
    #[error("the cluster's configuration: {0}")]
    Cluster(#[from] Box<kube::Error>),
}

type Guarded = DeserializeGuard<SkuListing>;

/// Follows the listings until the process is told to end.
pub async fn run(
    client: Client,
    catalogue: Catalogue,
    counted: OfCatalogue,
    readiness: Readiness,
    mut ended: watch::Receiver<bool>,
) {
    readiness.missing(WHAT, "the cluster's listings were not read yet");
    let (store, writer) = reflector::store();
    let (told, news) = watch::channel(());
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let listings = watcher(Api::<Guarded>::all(client), config);
    let follow = listings.default_backoff().reflect(writer).for_each(|event| {
        match event {
            // A list that has begun is no list yet.
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => {
                readiness.present(WATCH);
                told.send_replace(());
            }
            Err(error) => {
                counted.interruptions.inc();
                readiness.missing(WATCH, format!("the cluster's listings are not heard of: {error}"));
                tracing::warn!(%error, "the watch of listings was interrupted");
            }
        }
        std::future::ready(())
    });
    tokio::select! {
        () = follow => {}
        () = keep(&store, news, &catalogue, &counted, &readiness) => {}
        _ = ended.wait_for(|ended| *ended) => {}
    }
}

/// Writes what has changed since it was last written, for ever.
async fn keep(
    store: &Store<Guarded>,
    mut news: watch::Receiver<()>,
    catalogue: &Catalogue,
    counted: &OfCatalogue,
    readiness: &Readiness,
) {
    // Without the first list everything would be withdrawn.
    if store.wait_until_ready().await.is_err() {
        return;
    }
    let mut written = BTreeMap::new();
    loop {
        news.mark_unchanged();
        let sold = sold(store);
        let wait = match write(catalogue, counted, &sold, &mut written).await {
            Ok(()) => {
                readiness.present(WHAT);
                counted
                    .products
                    .set(i64::try_from(sold.len()).unwrap_or(i64::MAX));
                WHOLE
            }
            Err(error) => {
                counted.failures.inc();
                tracing::warn!(%error, "failed to write the catalogue, will try again");
                written.clear();
                AGAIN
            }
        };
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = sleep(wait) => written.clear(),
        }
        sleep(DEBOUNCE).await;
    }
}

/// What is sold, by its id.
fn sold(store: &Store<Guarded>) -> BTreeMap<String, Listed> {
    let mut sold = BTreeMap::new();
    for listing in store.state() {
        let listing = match &listing.0 {
            Ok(listing) => listing,
            Err(invalid) => {
                tracing::warn!(
                    listing = listing.name_any(),
                    error = invalid.error,
                    "a listing cannot be read"
                );
                continue;
            }
        };
        match offer(listing) {
            Ok(Some(listed)) => {
                sold.insert(listed.sku.clone(), listed);
            }
            Ok(None) => {}
            Err(error) => {
                let meta = &listing.metadata;
                let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
                tracing::warn!(namespace, listing = name, %error, "a listing that is published cannot be sold");
            }
        }
    }
    sold
}

async fn write(
    catalogue: &Catalogue,
    counted: &OfCatalogue,
    sold: &BTreeMap<String, Listed>,
    written: &mut BTreeMap<String, Listed>,
) -> Result<(), StoreError> {
    // First: what was another listing's is not sold as that one's any more.
    let names: BTreeSet<_> = sold.keys().collect();
    if written.is_empty() || written.keys().collect::<BTreeSet<_>>() != names {
        let names: Vec<_> = names.into_iter().cloned().collect();
        let withdrawn = catalogue.withdraw_others(&names).await?;
        if withdrawn > 0 {
            tracing::info!(withdrawn, "products are no longer sold");
        }
    }
    for (sku, listed) in sold {
        if written.get(sku) == Some(listed) {
            continue;
        }
        match catalogue.list(listed).await {
            Ok(true) => tracing::info!(sku, generation = listed.object.1, "a product is sold"),
            Ok(false) => {}
            // One that the schema does not take keeps no other from being sold.
            Err(error @ StoreError::Broken(_)) => {
                counted.failures.inc();
                tracing::error!(sku, %error, "a listing that is published cannot be sold");
            }
            Err(error) => return Err(error),
        }
    }
    written.clone_from(sold);
    Ok(())
}
