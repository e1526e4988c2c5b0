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
const GOOD_FOR_SECONDS: i64 = 2 * DAY_SECONDS;
const DAY_SECONDS: i64 = 24 * 3600;

/// Publishes a signer's public key, and drops keys whose links have all expired.
///
/// # Errors
/// If the API server refuses; a conflict is tried again by the caller.
pub async fn publish(client: &Client, namespace: &str, signer: &LinkSigner) -> Result<()> {
    let now = Timestamp::now().as_second();
    published::change(client, namespace, NAME, |data| with_key(data, signer, now)).await
}

fn with_key(mut data: BTreeMap<String, String>, signer: &LinkSigner, now: i64) -> BTreeMap<String, String> {
    let until = |text: &String| serde_json::from_str::<KeyEntry>(text).map_or(0, |entry| entry.until);
    data.retain(|_, entry| until(entry) > now);
    // Written again once a day, and looked for more often.
    let lasts = |text: &String| until(text) - now > GOOD_FOR_SECONDS - DAY_SECONDS;
    if data.get(signer.id()).is_some_and(lasts) {
        return data;
    }
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
        let again = with_key(data.clone(), &first, 1000);
        assert_eq!(again, data, "written once a day");
        assert_ne!(with_key(data.clone(), &first, DAY_SECONDS), data);
        let later = with_key(data, &second, GOOD_FOR_SECONDS);
        assert_eq!(later.keys().collect::<Vec<_>>(), [second.id()]);
    }
}
