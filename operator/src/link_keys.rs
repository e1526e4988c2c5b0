//! The ConfigMap with the public keys of links: the operator adds its own, the gateway reads all. Touches one ConfigMap.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::{
    error::{Error, Result, found},
    link::{KeyEntry, LinkSigner},
};

/// The ConfigMap's name.
pub const NAME: &str = "vitrine-link-keys";
/// How long a key's links may be good after its operator published it last: the longest life of a preview
/// (`ttl.max` ≤ 24h, by CEL) and a day between two publications.
const GOOD_FOR_SECONDS: i64 = 2 * 24 * 3600;

/// Publishes a signer's public key, and drops keys whose links have all expired.
///
/// # Errors
/// If the API server refuses; a conflict is tried again by the caller.
pub async fn publish(client: &Client, namespace: &str, signer: &LinkSigner) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let now = Timestamp::now().as_second();
    let name = || format!("{namespace}/{NAME}");
    let current = found(api.get(NAME).await).map_err(Error::kube("get", "ConfigMap", name()))?;
    let data = with_key(
        current.as_ref().and_then(|c| c.data.clone()).unwrap_or_default(),
        signer,
        now,
    );
    let result = match current {
        Some(mut map) => {
            map.data = Some(data);
            api.replace(NAME, &PostParams::default(), &map).await
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            };
            api.create(
                &PostParams::default(),
                &ConfigMap {
                    metadata,
                    data: Some(data),
                    ..ConfigMap::default()
                },
            )
            .await
        }
    };
    let written = result.map_err(Error::kube("publish the link key in", "ConfigMap", name()))?;
    tracing::info!(
        key = signer.id(),
        version = written.resource_version(),
        "published the key of preview links"
    );
    Ok(())
}

fn with_key(mut data: BTreeMap<String, String>, signer: &LinkSigner, now: i64) -> BTreeMap<String, String> {
    data.retain(|_, entry| serde_json::from_str::<KeyEntry>(entry).is_ok_and(|entry| entry.until > now));
    let entry = KeyEntry {
        key: signer.public(),
        until: now + GOOD_FOR_SECONDS,
    };
    data.insert(
        signer.id().to_owned(),
        serde_json::to_string(&entry).unwrap_or_default(),
    );
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_keys_stay_until_their_links_have_expired() {
        let (first, second) = (LinkSigner::generate(), LinkSigner::generate());
        let data = with_key(BTreeMap::new(), &first, 0);
        let both = with_key(data.clone(), &second, 1000);
        assert!(both.contains_key(first.id()) && both.contains_key(second.id()));
        let later = with_key(data, &second, GOOD_FOR_SECONDS);
        assert_eq!(later.keys().collect::<Vec<_>>(), [second.id()]);
    }
}
