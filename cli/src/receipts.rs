//! Receipts: those that the cluster still holds, and whether one is true. Reads previews and ConfigMaps, and files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt, api::ListParams};
use vitrine_crds::PreviewSandbox;
use vitrine_receipts::{Envelope, Keys, Statement, names};

use crate::{
    error::{Error, Result},
    table::table,
};

/// Where to look.
#[derive(Args, Clone, Debug)]
pub struct List {
    #[command(flatten)]
    places: Places,
}

/// Where Vitrine's own things are.
#[derive(Args, Clone, Debug)]
pub struct Places {
    /// The namespace of Vitrine itself, with the public keys.
    #[arg(long, default_value = "vitrine-system")]
    system_namespace: String,
    /// The namespace in which receipts outlive their previews.
    #[arg(long, default_value = "vitrine-receipts")]
    receipts_namespace: String,
}

/// One receipt.
#[derive(Args, Clone, Debug)]
pub struct One {
    /// The uid of its preview.
    preview: String,
    #[command(flatten)]
    places: Places,
}

/// A receipt and its keys.
#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// The file with the receipt; `-` for standard input.
    receipt: PathBuf,
    /// A file with public keys, PEM; may be given several times. The cluster's published keys if there is none.
    #[arg(long = "key")]
    pub keys: Vec<PathBuf>,
    #[command(flatten)]
    places: Places,
}

/// A receipt that the cluster holds.
struct Held {
    statement: Option<Statement>,
    envelope: String,
    place: String,
}

/// Lists.
///
/// # Errors
/// If the API server refuses.
pub async fn list(client: &Client, list: &List) -> Result<String> {
    let held = held(client, &list.places).await?;
    let rows: Vec<Vec<String>> = held
        .into_iter()
        .map(|(uid, held)| {
            let receipt = held.statement.as_ref().map(|statement| &statement.predicate);
            vec![
                uid,
                receipt.map(|r| r.name.clone()).unwrap_or_default(),
                receipt
                    .map(|r| r.receipt.ended_at.0.to_string())
                    .unwrap_or_default(),
                receipt
                    .map(|r| r.receipt.cause.as_str().to_owned())
                    .unwrap_or_default(),
                if held.statement.is_some() {
                    "valid"
                } else {
                    "NOT VALID"
                }
                .to_owned(),
                held.place,
            ]
        })
        .collect();
    if rows.is_empty() {
        return Ok("no receipts\n".to_owned());
    }
    Ok(table(
        &["PREVIEW", "NAME", "ENDED", "CAUSE", "SIGNATURE", "WHERE"],
        &rows,
    ))
}

/// Prints one.
///
/// # Errors
/// If the cluster holds none of that preview.
pub async fn one(client: &Client, one: &One) -> Result<String> {
    match held(client, &one.places).await?.remove(&one.preview) {
        Some(held) => Ok(held.envelope + "\n"),
        None => Err(Error::Other(format!(
            "no receipt of preview {}: it still lives, or the sink has it, or its retention is over",
            one.preview
        ))),
    }
}

/// Every receipt that is in a preview or in the spool, by the preview's uid.
async fn held(client: &Client, places: &Places) -> Result<BTreeMap<String, Held>> {
    let keys = published(client, places).await?;
    let previews: Api<PreviewSandbox> = Api::all(client.clone());
    let previews = previews.list(&ListParams::default()).await;
    let previews = previews.map_err(Error::kube("list", "PreviewSandbox", "all"))?;
    let spool: Api<ConfigMap> = Api::namespaced(client.clone(), &places.receipts_namespace);
    let spooled = spool
        .list(&ListParams::default().labels(names::STATE_LABEL))
        .await;
    let spooled = spooled.map_err(Error::kube("list", "ConfigMap", &places.receipts_namespace))?;
    let of_previews = previews.items.into_iter().filter_map(|preview| {
        let place = format!("preview {}/{}", preview.namespace()?, preview.name_any());
        let envelope = preview.status.as_ref()?.receipt.as_ref()?.signed.clone()?;
        Some((preview.uid()?, envelope, place))
    });
    let of_spool = spooled.items.into_iter().filter_map(|map| {
        let name = map.name_any();
        let state = map.labels().get(names::STATE_LABEL).cloned().unwrap_or_default();
        let envelope = map.data?.remove(names::DATA)?;
        Some((
            name.strip_prefix(names::PREFIX)?.to_owned(),
            envelope,
            format!("spool, {state}"),
        ))
    });
    let all = of_previews.chain(of_spool).map(|(uid, envelope, place)| {
        let statement = Envelope::read(&envelope)
            .and_then(|envelope| envelope.verify(&keys))
            .ok();
        // One that was moved to another preview's place is not that preview's.
        let statement = statement.filter(|statement| statement.predicate.receipt.preview == uid);
        (
            uid,
            Held {
                statement,
                envelope,
                place,
            },
        )
    });
    Ok(all.collect())
}

async fn published(client: &Client, places: &Places) -> Result<Keys> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &places.system_namespace);
    let keys = maps
        .get_opt(names::KEYS)
        .await
        .map_err(Error::kube("get", "ConfigMap", names::KEYS))?;
    // No operator has published one yet: then nothing is valid, and nothing is lost.
    let keys = keys.and_then(|map| map.data).unwrap_or_default();
    Ok(keys.into_values().collect())
}

/// Checks a receipt with the cluster's keys.
///
/// # Errors
/// Why it proves nothing.
pub async fn verify(client: &Client, verify: &Verify) -> Result<String> {
    judged(&read(&verify.receipt)?, &published(client, &verify.places).await?)
}

/// Checks a receipt with keys in files, without any cluster.
///
/// # Errors
/// Why it proves nothing.
pub fn verify_offline(verify: &Verify) -> Result<String> {
    let keys = verify
        .keys
        .iter()
        .map(|path| read(path))
        .collect::<Result<Keys>>()?;
    judged(&read(&verify.receipt)?, &keys)
}

fn read(path: &Path) -> Result<String> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|source| Error::File {
        path: path.display().to_string(),
        source,
    })
}

fn judged(text: &str, keys: &Keys) -> Result<String> {
    if keys.is_empty() {
        return Err(Error::Other("there is no public key to verify with".to_owned()));
    }
    let statement = Envelope::read(text.trim())?.verify(keys)?;
    let receipt = &statement.predicate.receipt;
    let mut said = format!(
        "valid: preview {} ({}) of {}\n  it ended {} by {}\n",
        statement.predicate.name,
        receipt.preview,
        receipt.image,
        receipt.ended_at.0,
        receipt.cause.as_str()
    );
    if let Some(cost) = &receipt.cost {
        let partial = if cost.partial {
            ", and more after the last sample"
        } else {
            ""
        };
        said += &format!("  it used {} ms of a core{partial}\n", cost.cpu_milliseconds);
    }
    for target in statement
        .predicate
        .isolation
        .iter()
        .flat_map(|isolation| &isolation.targets)
    {
        let weight = if target.required { "" } else { " (only reported)" };
        said += &format!(
            "  {} at {}: {}{weight}\n",
            target.name, target.address, target.inside
        );
    }
    Ok(said)
}
