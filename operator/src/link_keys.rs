//! The ConfigMap with the public keys of links: the operator adds its own, the gateway reads all. Touches one ConfigMap.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::Client;

use crate::{
    error::Result,
    link::{KeyEntry, LinkSigner},
    published,
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
    let now = Timestamp::now().as_second();
    published::change(client, namespace, NAME, |data| with_key(data, signer, now)).await
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
