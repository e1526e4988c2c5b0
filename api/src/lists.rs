//! Revocation lists: a new one whenever a licence was revoked or given back, and before the last one expires. Writes the store, asks the signer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vitrine_commerce::{
    licence::Revocations,
    note::{self, NamedKey},
};

use crate::{
    outside::signer::SignerApi,
    seams::{Outside, StoreError},
    store::postgres::{Shop, shown::List},
};

/// A list is good for so long: who verifies offline sees a revocation so much later at most.
const VALID: SignedDuration = SignedDuration::from_hours(24);
/// Before that there is another one, so early that a signer may be away for a night.
const RENEWED: SignedDuration = SignedDuration::from_hours(12);
/// Two lists are at least so far apart: many revocations at once are one list.
const APART: Duration = Duration::from_secs(10);

/// What lists are made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// By which they are to be signed.
    pub key: NamedKey,
}

/// Why there is no new list yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signer.
    #[error(transparent)]
    Signer(#[from] Outside),
    /// It cannot be written.
    #[error("a list cannot be written as JSON: {0}")]
    Json(String),
}

/// Makes a list if there has to be one, and has signed what is not signed yet.
///
/// # Errors
/// If the store or the signer does not answer: tried again.
pub async fn step(shop: &Shop, signer: &SignerApi, settings: &Settings) -> Result<(), ListError> {
    let (newest, now, key) = (
        shop.last_list().await?,
        Timestamp::now(),
        settings.key.to_string(),
    );
    let due = match due(newest.as_ref(), shop.revoked_changed().await?, &key, now) {
        Due::Nothing => return Ok(()),
        Due::Signature(sequence) => {
            let signature = signer.sign_list(sequence).await?;
            return Ok(shop.list_signed(sequence, &signature).await?);
        }
        Due::List(sequence) => sequence,
    };
    let revoked = shop.revoked().await?;
    let salt = hex::encode(rand::random::<[u8; 16]>());
    // Whole seconds: there is one way to write them.
    let issued_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let list = Revocations::new(due.unsigned_abs(), issued_at, issued_at + VALID, salt, revoked);
    let text = note::text(Revocations::KIND, &list).map_err(|error| ListError::Json(error.to_string()))?;
    // Whoever is first: the sequence is said once.
    shop.add_list(due, issued_at, issued_at + VALID, &text, &key)
        .await?;
    Ok(())
}

/// What has to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// The newest list says all there is to say.
    Nothing,
    /// The list with this number is to be signed.
    Signature(i64),
    /// One with this number is to be made.
    List(i64),
}

/// What has to be done, where lists are signed by this key.
fn due(newest: Option<&List>, changed: Option<Timestamp>, key: &str, now: Timestamp) -> Due {
    let Some(newest) = newest else {
        return Due::List(1);
    };
    if !newest.is_signed && newest.key == key {
        return Due::Signature(newest.sequence);
    }
    // Its key was retired before it has signed it, and signs nothing any more. While a shop changes its key, two replicas have one each.
    let is_nobodys = !newest.is_signed;
    let is_old = newest.issued_at + RENEWED <= now;
    let has_changed = changed.is_some_and(|changed| changed >= newest.issued_at);
    let is_due = is_old || ((has_changed || is_nobodys) && newest.issued_at + APART <= now);
    if is_due {
        Due::List(newest.sequence + 1)
    } else {
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_list_is_made_when_something_has_changed_or_the_last_grows_old() {
        let list = List {
            sequence: 4,
            issued_at: at(1000),
            key: "ours".to_owned(),
            is_signed: true,
        };
        let of = |list: &List, changed, now| due(Some(list), changed, "ours", at(now));
        assert_eq!(due(None, None, "ours", at(0)), Due::List(1));
        assert_eq!(of(&list, None, 1000), Due::Nothing);
        assert_eq!(of(&list, Some(at(999)), 2000), Due::Nothing);
        assert_eq!(of(&list, Some(at(1001)), 1002), Due::Nothing);
        assert_eq!(of(&list, Some(at(1001)), 1011), Due::List(5));
        assert_eq!(of(&list, None, 1000 + 12 * 3600), Due::List(5));
        let unsigned = List {
            is_signed: false,
            ..list
        };
        assert_eq!(of(&unsigned, Some(at(1001)), 1011), Due::Signature(4));
        // By a key that is no more.
        let nobodys = List {
            key: "the one before".to_owned(),
            ..unsigned
        };
        assert_eq!(of(&nobodys, None, 1009), Due::Nothing);
        assert_eq!(of(&nobodys, None, 1010), Due::List(5));
    }
}
