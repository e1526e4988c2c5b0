//! Listings and previews to try Vitrine with, and waiting for what becomes of them. Talks to one cluster.

use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use vitrine_crds::{PreviewSandbox, PreviewSandboxSpec, SkuListing};
use vitrine_devcluster::image::Image;
use vitrine_policies::cell::record::Record;

use crate::error::{Error, Result};

/// Who sells what is listed here.
pub const SELLER: &str = "acme";

/// The demo's listing: PocketBase with its data in memory.
pub fn pocketbase(image: &Image) -> SkuListing {
    listing(
        "pocketbase",
        json!({
            "image": image.by_digest(), "port": 8090,
            "args": ["serve", "--http=0.0.0.0:8090", "--dir=/data/pb_data", "--publicDir=/data/pb_public", "--hooksDir=/data/pb_hooks", "--migrationsDir=/data/pb_migrations"],
            "writable": [{"path": "/data", "size": "48Mi"}],
            "size": {"cpu": "500m", "memory": "160Mi", "ephemeralStorage": "16Mi"},
            "healthPath": "/api/health", "landingPath": "/_/"
        }),
    )
}

/// A listing whose product is a shell script: small, and as hostile as the script.
pub fn script(name: &str, image: &Image, script: &str) -> SkuListing {
    command(name, image, &["/bin/sh", "-c", script].map(str::to_owned))
}

/// A small listing whose product is one command, which serves at port 8090.
pub fn command(name: &str, image: &Image, command: &[String]) -> SkuListing {
    listing(
        name,
        json!({
            "image": image.by_digest(), "port": 8090,
            "command": command,
            "writable": [{"path": "/data", "size": "8Mi"}],
            "size": {"cpu": "50m", "memory": "32Mi", "ephemeralStorage": "8Mi"}
        }),
    )
}

/// A listing for clusters whose nodes run nothing. How its pods fare there, the variable `KWOK_OUTCOME` says; see
/// `devcluster/kwok/stages.yaml`.
pub fn stub(name: &str, outcome: &str) -> SkuListing {
    listing(
        name,
        json!({
            // Nobody pulls it.
            "image": format!("vitrine.local/stub@sha256:{}", "0".repeat(64)), "port": 8090,
            "env": [{"name": "KWOK_OUTCOME", "value": outcome}],
            "size": {"cpu": "10m", "memory": "16Mi", "ephemeralStorage": "1Mi"}
        }),
    )
}

/// A script that serves one page for ever.
pub const SERVE: &str =
    "mkdir -p /data/www && echo hello > /data/www/index.html && exec httpd -f -p 8090 -h /data/www";

/// A listing whose previews are of this template, `spec.preview`.
///
/// # Panics
/// If that is none.
pub fn listing(name: &str, preview: serde_json::Value) -> SkuListing {
    let spec = json!({"sku": name, "seller": SELLER, "version": "1.0.0", "preview": preview});
    // The shape is fixed above; a mistake in it fails the first test that uses it.
    SkuListing::new(
        name,
        serde_json::from_value(spec).unwrap_or_else(|error| panic!("the listing {name} is wrong: {error}")),
    )
}

/// A preview of a listing.
pub fn preview(name: &str, listing: &str, subject: &str, ttl: Option<&str>) -> PreviewSandbox {
    let spec: PreviewSandboxSpec =
        serde_json::from_value(json!({"listingRef": {"name": listing}, "subject": subject, "ttl": ttl}))
            .unwrap_or_else(|error| panic!("the preview {name} is wrong: {error}"));
    PreviewSandbox::new(name, spec)
}

/// The uid of the preview that has a cell.
pub fn tenant(cell: &Namespace) -> Option<String> {
    Record::of(&cell.metadata)?.tenant
}

/// A namespace of a test's own.
///
/// # Errors
/// If the API server refuses.
pub async fn shop(client: &Client, name: &str) -> Result<()> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    match api.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(Error::kube(format!("create namespace {name}"))(error)),
    }
}

/// Waits until a preview is as wanted; the error tells how it was last.
///
/// # Errors
/// If it is not in time, or is gone.
pub async fn until(
    api: &Api<PreviewSandbox>,
    name: &str,
    what: &str,
    patience: Duration,
    wanted: impl Fn(&PreviewSandbox) -> bool,
) -> Result<PreviewSandbox> {
    let mut last = String::new();
    // Watched, not polled: dozens wait at once, on cores that the cluster needs.
    let mut seen = watcher::watch_object(api.clone(), name).default_backoff().boxed();
    let wait = async {
        while let Some(next) = seen.next().await {
            match next {
                Ok(Some(preview)) if wanted(&preview) => return Some(preview),
                Ok(Some(preview)) => last = serde_json::to_string(&preview.status).unwrap_or_default(),
                Ok(None) => {
                    "there is no such preview".clone_into(&mut last);
                    return None;
                }
                // It begins anew by itself.
                Err(error) => last = error.to_string(),
            }
        }
        None
    };
    let begun = Instant::now();
    let preview = tokio::time::timeout(patience, wait).await.ok().flatten();
    preview.ok_or_else(|| Error::Late {
        what: format!("preview {name}: {what}"),
        seconds: begun.elapsed().as_secs(),
        last,
    })
}
