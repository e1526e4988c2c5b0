//! Looks after listings: judges each by what the watches know, and writes its status when that says anything new.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Resource, ResourceExt, api::PostParams};
use vitrine_crds::{
    SkuListing, SkuListingStatus, conditions,
    sku_listing::{PUBLISHED, PublishedReason},
};

use super::judge;
use crate::{
    error::{Error, Result},
    preview::{
        Context,
        queue::{GuardedListing, GuardedPolicy},
        watches::{News, well},
    },
    workqueue::{Action, Look, Workqueue},
};

/// Listings that are judged at once. Most are judged without a write.
const LISTINGS: usize = 4;
/// After a failure: whoever waits for it waits to sell.
const AGAIN: Duration = Duration::from_secs(2);

/// What the watches tell, each once the stores know it.
pub struct Sources {
    /// Listings, also those that are gone.
    pub listings: News<GuardedListing>,
    /// The policy.
    pub policies: News<GuardedPolicy>,
}

/// Runs until it is dropped.
pub async fn run(sources: Sources, context: Arc<Context>) {
    let queue = Arc::new(Workqueue::default());
    let looked = context.clone();
    let judging = queue.clone().work(LISTINGS, move |name: &Arc<str>| {
        let known = name
            .split_once('/')
            .and_then(|(namespace, name)| looked.watched.listing(namespace, name));
        let Some(listing) = known else {
            return Look::Rest(Action::await_change());
        };
        let context = looked.clone();
        Look::Step(async move { look_after(&context, listing).await })
    });
    let of_listings = well(sources.listings).for_each(|told: GuardedListing| {
        match &told.0 {
            // Who else is of this SKU may have it from now on, or no longer.
            Ok(changed) => wake(&context, &queue, |listing| {
                listing.uid() == changed.uid() || judge::is_same(listing, changed)
            }),
            Err(_) => {
                let namespace = told.meta().namespace.clone().unwrap_or_default();
                tracing::warn!(namespace, listing = told.name_any(), "a listing cannot be read");
            }
        }
        std::future::ready(())
    });
    let of_policies = well(sources.policies).for_each(|_: GuardedPolicy| {
        wake(&context, &queue, |_| true);
        std::future::ready(())
    });
    futures::join!(judging, of_listings, of_policies);
}

fn wake(context: &Context, queue: &Workqueue, wanted: impl Fn(&SkuListing) -> bool) {
    let all = context.watched.listings.state();
    let all = all.iter().filter_map(|listing| listing.0.as_ref().ok());
    queue.add_each(all.filter(|listing| wanted(listing)).map(|listing| {
        let namespace = listing.namespace().unwrap_or_default();
        format!("{namespace}/{}", listing.name_any()).into()
    }));
}

async fn look_after(context: &Context, listing: SkuListing) -> Action {
    let name = listing.name_any();
    let Err(error) = step(context, listing).await else {
        return Action::await_change();
    };
    // Somebody has changed it, and the watch will tell.
    if error.is_conflict() {
        return Action::await_change();
    }
    context.metrics.failed(&error);
    tracing::warn!(listing = name, %error, "failed to look after a listing");
    Action::requeue(AGAIN)
}

/// Judges a listing, and writes that down.
async fn step(context: &Context, mut listing: SkuListing) -> Result<()> {
    if listing.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let (policy, all) = (context.watched.policy(), context.watched.listings.state());
    let all = all.iter().filter_map(|other| other.0.as_ref().ok());
    let (reason, message) = judge::judge(&listing, policy.as_ref(), all);
    let before = listing.status.take().unwrap_or_default();
    let status = status(
        &before,
        reason,
        &message,
        listing.metadata.generation,
        Timestamp::now(),
    );
    if status == before {
        return Ok(());
    }
    let (namespace, name) = (listing.namespace().unwrap_or_default(), listing.name_any());
    let api: Api<SkuListing> = context.api(&namespace);
    listing.metadata.managed_fields = None;
    listing.status = Some(status);
    let written = api.replace_status(&name, &PostParams::default(), &listing).await;
    written.map(drop).map_err(Error::kube(
        "write the status of",
        "SkuListing",
        format!("{namespace}/{name}"),
    ))
}

fn status(
    before: &SkuListingStatus,
    reason: PublishedReason,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> SkuListingStatus {
    let mut conditions = before.conditions.clone();
    let is_published = reason == PublishedReason::Valid;
    conditions::set(
        &mut conditions,
        PUBLISHED,
        Some(is_published),
        reason,
        message,
        generation,
        &Time(now),
    );
    SkuListingStatus {
        conditions,
        observed_generation: generation,
    }
}
