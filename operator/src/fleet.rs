//! Asks one page of every running pod of a part of Vitrine. Reads pods of Vitrine's own namespace and their admin ports.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;
use vitrine_policies::cell::network::COMPONENT_LABEL;

use crate::{
    error::{Error, Result},
    fetch,
    preview::Context,
};

/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// A hundred bytes for each of 100,000 previews.
const MAX_BYTES: usize = 10 << 20;
/// The admin port of gateways and egress proxies, as the chart sets it.
const ADMIN_PORT: u16 = 8081;

/// What all of them say.
///
/// # Errors
/// If there is none, or which one did not answer, and why.
pub async fn ask<T: DeserializeOwned>(context: &Context, component: &str, page: &str) -> Result<Vec<T>> {
    let answers = answers(context, component, page).await?;
    if answers.is_empty() {
        let namespace = &context.settings.house.namespace;
        return Err(Error::Installation(format!("no {component} runs in {namespace}")));
    }
    answers.into_iter().collect()
}

/// What each of them says, or why not.
///
/// # Errors
/// If the API server does not say which there are.
pub async fn answers<T: DeserializeOwned>(
    context: &Context,
    component: &str,
    page: &str,
) -> Result<Vec<Result<T>>> {
    let namespace = &context.settings.house.namespace;
    let pods: Api<Pod> = context.api(namespace);
    let own = ListParams::default().labels(&format!("{COMPONENT_LABEL}={component}"));
    let pods = pods.list(&own).await;
    let pods = pods.map_err(Error::kube("list", "Pod", format!("{namespace}/{component}")))?;
    let running = pods.items.iter().filter(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Succeeded" | "Failed"))
    });
    Ok(join_all(running.map(|pod| async {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        let answer = match ip {
            Some(ip) => asked(&ip, page).await,
            None => Err("it has no address yet".to_owned()),
        };
        answer.map_err(|why| Error::Installation(format!("{component} {}: {why}", pod.name_any())))
    }))
    .await)
}

async fn asked<T: DeserializeOwned>(ip: &str, page: &str) -> Result<T, String> {
    let uri = format!("http://{ip}:{ADMIN_PORT}{page}");
    let body = fetch::get(&uri, PATIENCE, MAX_BYTES).await?;
    serde_json::from_slice(&body).map_err(|e| e.to_string())
}
