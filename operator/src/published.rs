//! ConfigMaps in which Vitrine publishes public keys. Touches one ConfigMap a call.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::error::{Error, Result, found};

/// Changes the data of a ConfigMap of our own namespace, or makes it.
///
/// # Errors
/// If the API server refuses; a conflict is tried again by the caller.
pub async fn change(
    client: &Client,
    namespace: &str,
    name: &str,
    change: impl FnOnce(BTreeMap<String, String>) -> BTreeMap<String, String>,
) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let full = || format!("{namespace}/{name}");
    let current = found(api.get(name).await).map_err(Error::kube("get", "ConfigMap", full()))?;
    let before = current
        .as_ref()
        .and_then(|map| map.data.clone())
        .unwrap_or_default();
    let data = change(before.clone());
    let result = match current {
        Some(_) if data == before => return Ok(()),
        Some(mut map) => {
            map.data = Some(data);
            api.replace(name, &PostParams::default(), &map).await
        }
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            api.create(&PostParams::default(), &map).await
        }
    };
    let written = result.map_err(Error::kube("publish a key in", "ConfigMap", full()))?;
    tracing::info!(
        map = full(),
        version = written.resource_version(),
        "published a key"
    );
    Ok(())
}
