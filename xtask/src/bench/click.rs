//! From the click on "try it" to the first byte of a real product through the gateway, warm and cold; and whether isolation held each time.

use std::time::{Duration, Instant};

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use vitrine_crds::{POLICY_NAME, Phase, PreviewPolicy, PreviewPool, PreviewSandbox, SkuListing};
use vitrine_devcluster::progress;
use vitrine_kit::{Error, Result, http, images, install, objects};

use super::ground::{Ground, SHOP, median};

const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// The name of the pool.
const POOL: &str = "pool";
/// Ready at once; a product takes half a core while it starts, and there are two.
const WARM: i32 = 1;
/// What the unconfined prober says of a target that answers.
const UP: &str = "up";
/// How what the probe saw of a target begins, if that did not answer.
const SHUT: &str = "shut";

/// How a preview comes to its cell.
#[derive(Clone, Copy)]
enum Way {
    Warm,
    Reuse,
    Fresh,
}

impl Way {
    const ALL: [Self; 3] = [Self::Warm, Self::Reuse, Self::Fresh];

    const fn words(self) -> &'static str {
        match self {
            Self::Warm => "warm, from a pool",
            Self::Reuse => "cold, in a cell that is used again",
            Self::Fresh => "cold, in a namespace that is made for it",
        }
    }

    const fn mode(self) -> &'static str {
        match self {
            Self::Warm | Self::Reuse => "Reuse",
            Self::Fresh => "Fresh",
        }
    }
}

/// One click, in seconds from it.
struct Click {
    ready: f64,
    first_byte: f64,
}

/// Clicks `count` times each way; the result is a report in Markdown.
pub async fn measure(count: usize) -> Result<String> {
    let ground = Ground::up().await?;
    let product = images::pocketbase(&*progress::for_stderr(true))?;
    ground.cluster.import_image(&product)?;
    let listings: Api<SkuListing> = Api::namespaced(ground.client.clone(), SHOP);
    listings
        .create(&PostParams::default(), &objects::pocketbase(&product))
        .await
        .map_err(Error::kube("create the listing"))?;
    let gateway = install::service_address(&ground.client, install::NAMESPACE, "vitrine-gateway").await?;
    let port = ground.cluster.forward(0, gateway)?;

    let mut text = format!(
        "{count} clicks each way on PocketBase, one after the other\n\n\
         | from the click, s | Ready: min | median | max | first byte: min | median | max |\n|---|--:|--:|--:|--:|--:|--:|\n"
    );
    for way in Way::ALL {
        prepare(&ground, way).await?;
        // What is first of its kind makes what later ones find: a cell, and what the node keeps.
        click(&ground, port, "first", way).await?;
        let mut clicks = vec![];
        for number in 0..count {
            clicks.push(click(&ground, port, &format!("click-{number}"), way).await?);
            eprintln!("{}: {} of {count}", way.words(), clicks.len());
        }
        let figures = |of: fn(&Click) -> f64| {
            let all: Vec<f64> = clicks.iter().map(of).collect();
            let (min, max) = all
                .iter()
                .fold((f64::MAX, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
            format!("{min:.3} | {:.3} | {max:.3}", median(&all))
        };
        text += &format!(
            "| {} | {} | {} |\n",
            way.words(),
            figures(|click| click.ready),
            figures(|click| click.first_byte)
        );
    }
    ground.cluster.unforward(port)?;
    Ok(
        text + "\nEach was isolated: every target that is required was shut to the very pod that served, and up outside.\n"
    )
}

/// Has what a way needs, and nothing else.
async fn prepare(ground: &Ground, way: Way) -> Result<()> {
    let policies: Api<PreviewPolicy> = Api::all(ground.client.clone());
    let mode = Patch::Merge(json!({"spec": {"cells": {"mode": way.mode()}}}));
    policies
        .patch(POLICY_NAME, &PatchParams::default(), &mode)
        .await
        .map_err(Error::kube("change the policy"))?;
    let pools: Api<PreviewPool> = Api::namespaced(ground.client.clone(), SHOP);
    if matches!(way, Way::Warm) {
        let pool: PreviewPool = made(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": POOL},
            "spec": {"listingRef": {"name": "pocketbase"}, "replicas": WARM}
        }))?;
        pools
            .create(&PostParams::default(), &pool)
            .await
            .map_err(Error::kube("create a pool"))?;
        return Ok(());
    }
    let gone = pools.delete(POOL, &DeleteParams::default()).await;
    match gone {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(Error::kube("delete the pool")(error)),
    }
    // Its pods would have their share of two cores.
    soon("the pool's cells are gone", async || {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(ground.client.clone());
        let params = kube::api::ListParams::default().labels("vitrine.dev/pool");
        let left = pods
            .list_metadata(&params)
            .await
            .map_err(Error::kube("list pods"))?;
        Ok(left.items.is_empty())
    })
    .await
}

fn made<T: serde::de::DeserializeOwned>(object: Value) -> Result<T> {
    serde_json::from_value(object).map_err(|e| Error::Other(e.to_string()))
}

/// Waits until something is so.
async fn soon(what: &str, so: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !so().await? {
        if begun.elapsed() > PATIENCE {
            return Err(Error::Late {
                what: what.to_owned(),
                seconds: begun.elapsed().as_secs(),
                last: "no".to_owned(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

async fn click(ground: &Ground, port: u16, name: &str, way: Way) -> Result<Click> {
    if matches!(way, Way::Warm) {
        let pools: Api<PreviewPool> = Api::namespaced(ground.client.clone(), SHOP);
        soon("the pool is full", async || {
            let pool = pools.get(POOL).await.map_err(Error::kube("get the pool"))?;
            Ok(pool.status.is_some_and(|status| status.ready == WARM))
        })
        .await?;
    }
    let api: Api<PreviewSandbox> = Api::namespaced(ground.client.clone(), SHOP);
    let wanted = objects::preview(name, "pocketbase", name, None);
    let begun = Instant::now();
    api.create(&PostParams::default(), &wanted)
        .await
        .map_err(Error::kube("create a preview"))?;
    let over = |p: &PreviewSandbox| matches!(p.phase(), Phase::Ready | Phase::Failed | Phase::Refused);
    let preview = objects::until(&api, name, "ready", PATIENCE, over).await?;
    let ready = begun.elapsed().as_secs_f64();
    let first_byte = visit(&preview, port).await?.duration_since(begun).as_secs_f64();
    isolated(&preview, way)?;
    api.delete(name, &DeleteParams::default())
        .await
        .map_err(Error::kube("delete a preview"))?;
    soon("the preview is gone", async || {
        let there = api.get_opt(name).await.map_err(Error::kube("get a preview"))?;
        Ok(there.is_none())
    })
    .await?;
    Ok(Click { ready, first_byte })
}

/// Opens the link as a browser does, and follows it to the product; when the first byte of that was there.
async fn visit(preview: &PreviewSandbox, port: u16) -> Result<Instant> {
    let status = preview.status.clone().unwrap_or_default();
    let link = status.url.ok_or_else(|| {
        Error::Other(format!(
            "no link: {:?} {:?}",
            status.reason,
            status.message.unwrap_or_default()
        ))
    })?;
    let (host, path) = link
        .trim_start_matches("http://")
        .split_once('/')
        .unwrap_or((&link, ""));
    let address = ([127, 0, 0, 1], port).into();
    let opened = http::get(address, host, &format!("/{path}")).await?;
    let cookie = opened
        .header("set-cookie")
        .and_then(|cookie| cookie.split(';').next());
    let (Some(cookie), Some(landing)) = (cookie, opened.header("location")) else {
        return Err(Error::Other(format!("the link does not open: {opened:?}")));
    };
    let page = http::get_with(address, host, landing, Some(cookie)).await?;
    if page.status == 200 {
        return Ok(page.began);
    }
    Err(Error::Other(format!("no product: {page:?}")))
}

/// Whether isolation was seen to hold of the very pod that served.
fn isolated(preview: &PreviewSandbox, way: Way) -> Result<()> {
    let status = preview.status.clone().unwrap_or_default();
    let warm = status.slots.len() == 1;
    if warm != matches!(way, Way::Warm) {
        return Err(Error::Other(format!(
            "a preview that was to be {}: {status:?}",
            way.words()
        )));
    }
    let seen = status
        .isolation
        .as_ref()
        .filter(|seen| Some(&seen.pod_uid) == status.pod.as_ref().map(|pod| &pod.uid));
    let mut required = seen
        .into_iter()
        .flat_map(|seen| &seen.targets)
        .filter(|target| target.required)
        .peekable();
    if required.peek().is_some()
        && required.all(|target| target.inside.starts_with(SHUT) && target.outside == UP)
    {
        return Ok(());
    }
    Err(Error::Other(format!("not isolated: {:?}", status.isolation)))
}
