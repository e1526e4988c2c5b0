//! `drain`: ends every preview, removes the cells that nobody has, and waits until each end is proven and the sink has every receipt.
//! Run by Helm before an uninstall, or by hand.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    core::{DynamicObject, gvk::GroupVersionKind},
};
use tokio::time::Instant;
use vitrine_crds::{POLICY_NAME, PreviewPolicy, TimeSpan};
use vitrine_policies::{cell::record::Record, names::CELL_SELECTOR};
use vitrine_receipts::names;

use crate::{
    api,
    error::{Error, Result, found},
    preview::cells::remove_free,
};

const POLL: Duration = Duration::from_millis(500);
/// For how much longer than the drain itself pools make nothing: Helm deletes the operator after it.
const MARGIN: Duration = Duration::from_secs(60);

/// Settings of a drain.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// How long to wait for the ends.
    #[arg(long, default_value = "120s")]
    timeout: TimeSpan,
    /// The namespace in which receipts wait for the sink. Without one nothing is waited for: there is no sink.
    #[arg(long)]
    receipts_namespace: Option<String>,
}

/// Deletes all previews and waits until they are gone, and with them every receipt that the sink has still to get.
///
/// # Errors
/// If some remain; names them and why.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = api::client().await?;
    let deadline = Instant::now() + arguments.timeout.as_duration();
    stop_pools(&client, arguments.timeout).await?;
    previews(&client, arguments.timeout, deadline).await?;
    cells(&client, arguments.timeout, deadline).await?;
    match &arguments.receipts_namespace {
        Some(namespace) => receipts(&client, namespace, arguments.timeout, deadline).await,
        None => Ok(()),
    }
}

/// Has pools make no more cells, for as long as this may take: pools themselves are their owners', and stay.
async fn stop_pools(client: &Client, timeout: TimeSpan) -> Result<()> {
    let policies: Api<PreviewPolicy> = Api::all(client.clone());
    loop {
        let policy = found(policies.get(POLICY_NAME).await);
        // Without the policy, or its CRD, no pool makes any.
        let Some(mut policy) = policy.map_err(Error::kube("get", "PreviewPolicy", POLICY_NAME))? else {
            return Ok(());
        };
        let span = SignedDuration::try_from(timeout.as_duration().saturating_add(MARGIN)).unwrap_or_default();
        let until = Timestamp::now().checked_add(span).unwrap_or(Timestamp::MAX);
        policy.metadata.managed_fields = None;
        policy.status.get_or_insert_default().draining_until = Some(Time(until));
        let written = policies
            .replace_status(POLICY_NAME, &PostParams::default(), &policy)
            .await;
        match written.map_err(Error::kube("write the status of", "PreviewPolicy", POLICY_NAME)) {
            // The operator wrote it meanwhile.
            Err(error) if error.is_conflict() => {}
            written => return written.map(|_| ()),
        }
    }
}

/// Removes what is kept for previews that will not come, and waits for the cells of those that have ended.
async fn cells(client: &Client, timeout: TimeSpan, deadline: Instant) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let in_cells = ListParams::default().labels(CELL_SELECTOR);
    loop {
        let listed = namespaces.list_metadata(&in_cells).await;
        let listed = listed.map_err(Error::kube("list", "Namespace", "cells"))?.items;
        let left: Vec<_> = listed
            .iter()
            .filter_map(|cell| Some((cell, Record::of(&cell.metadata)?)))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        for (cell, record) in &left {
            if record.tenant.is_none() && !record.going {
                match remove_free(client, *cell).await {
                    // Written meanwhile: it is looked at again.
                    Err(error) if !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        if Instant::now() >= deadline {
            let names: Vec<_> = left
                .iter()
                .map(|(cell, _)| format!("\n  {}", cell.name_any()))
                .collect();
            return Err(Error::Remains(format!(
                "{} cells are not removed yet (timeout {timeout}):{}",
                left.len(),
                names.concat()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn receipts(client: &Client, namespace: &str, timeout: TimeSpan, deadline: Instant) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let pending = ListParams::default().labels(&format!("{}={}", names::STATE_LABEL, names::PENDING));
    loop {
        let listed = maps.list_metadata(&pending).await;
        let left = listed.map_err(Error::kube("list", "ConfigMap", namespace))?.items;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<_> = left
                .iter()
                .map(|entry| format!("\n  {}", entry.name_any()))
                .collect();
            return Err(Error::Remains(format!(
                "the sink has not acknowledged {} receipts (timeout {timeout}); the operator's log says why. Where they are not needed, \
                 delete them from namespace {namespace} as group vitrine:break-glass:{}",
                left.len(),
                names.concat()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn previews(client: &Client, timeout: TimeSpan, deadline: Instant) -> Result<()> {
    let resource = kube::core::ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk(vitrine_crds::GROUP, vitrine_crds::VERSION, "PreviewSandbox"),
        "previewsandboxes",
    );
    // Untyped: one that cannot be read as a preview must end as well.
    let all: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut asked = BTreeSet::new();
    let mut stranded = BTreeSet::new();
    loop {
        let listed = found(all.list(&ListParams::default()).await);
        // Without the CRD there is nothing that could remain.
        let Some(list) = listed.map_err(Error::kube("list", "PreviewSandbox", "all"))? else {
            return Ok(());
        };
        if list.items.is_empty() {
            println!("every preview has ended; {} were asked to", asked.len());
            return Ok(());
        }
        for preview in &list.items {
            let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
            if asked.insert(format!("{namespace}/{name}")) {
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
                found(api.delete(&name, &DeleteParams::default()).await).map_err(Error::kube(
                    "delete",
                    "PreviewSandbox",
                    format!("{namespace}/{name}"),
                ))?;
            }
        }
        let before = std::mem::replace(&mut stranded, stranded_in(client, &list.items).await?);
        let nothing_else = |p: &DynamicObject| stranded.contains(&p.namespace().unwrap_or_default());
        // Seen twice: between the list and the look, a preview may have gone and its namespace after it.
        let hopeless = stranded == before && list.items.iter().all(nothing_else);
        if hopeless || Instant::now() >= deadline {
            return Err(Error::Remains(remains(&list.items, timeout, &stranded)));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The namespaces that hold previews and are gone themselves. Kubernetes leaves objects behind when it removes a namespace
/// while it cannot see their kind, as in the first second of an API server; nobody can write them then.
async fn stranded_in(client: &Client, previews: &[DynamicObject]) -> Result<BTreeSet<String>> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut gone = BTreeSet::new();
    let holders: BTreeSet<String> = previews.iter().filter_map(ResourceExt::namespace).collect();
    for name in holders {
        let namespace = found(namespaces.get_metadata(&name).await);
        if namespace
            .map_err(Error::kube("get", "Namespace", &name))?
            .is_none()
        {
            gone.insert(name);
        }
    }
    Ok(gone)
}

fn remains(previews: &[DynamicObject], timeout: TimeSpan, stranded: &BTreeSet<String>) -> String {
    let mut text = format!("{} previews have not ended (timeout {timeout}):", previews.len());
    for preview in previews {
        let status = &preview.data["status"];
        let word = |field: &str| status[field].as_str().unwrap_or("-").to_owned();
        text += &format!(
            "\n  {}/{}: {} {} {}",
            preview.namespace().unwrap_or_default(),
            preview.name_any(),
            word("phase"),
            word("reason"),
            word("message")
        );
    }
    for namespace in stranded {
        text += &format!(
            "\nnamespace {namespace} is gone and nobody can write what was left in it: run `kubectl create namespace \
             {namespace}`, and its previews end"
        );
    }
    text
}
