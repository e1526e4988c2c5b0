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
    let newest = shop.last_list().await?;
    let now = Timestamp::now();
    if let Some(unsigned) = newest.as_ref().filter(|list| !list.is_signed) {
        let signature = signer.sign_list(unsigned.sequence).await?;
        return Ok(shop.list_signed(unsigned.sequence, &signature).await?);
    }
    let Some(due) = due(newest.as_ref(), shop.revoked_changed().await?, now) else {
        return Ok(());
    };
    let revoked = shop.revoked().await?;
    let salt = hex::encode(rand::random::<[u8; 16]>());
    // Whole seconds: there is one way to write them.
    let issued_at = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let list = Revocations::new(due.unsigned_abs(), issued_at, issued_at + VALID, salt, revoked);
    let text = note::text(Revocations::KIND, &list).map_err(|error| ListError::Json(error.to_string()))?;
    // Whoever is first: the sequence is said once.
    shop.add_list(
        due,
        issued_at,
        issued_at + VALID,
        &text,
        &settings.key.to_string(),
    )
    .await?;
    Ok(())
}

/// The number of the list that has to be made, if there has to be one.
fn due(newest: Option<&List>, changed: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    let Some(newest) = newest else {
        return Some(1);
    };
    let is_old = newest.issued_at + RENEWED <= now;
    let has_changed =
        changed.is_some_and(|changed| changed >= newest.issued_at) && newest.issued_at + APART <= now;
    (is_old || has_changed).then_some(newest.sequence + 1)
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
            is_signed: true,
        };
        assert_eq!(due(None, None, at(0)), Some(1));
        assert_eq!(due(Some(&list), None, at(1000)), None);
        assert_eq!(due(Some(&list), Some(at(999)), at(2000)), None);
        assert_eq!(due(Some(&list), Some(at(1001)), at(1002)), None);
        assert_eq!(due(Some(&list), Some(at(1001)), at(1011)), Some(5));
        assert_eq!(due(Some(&list), None, at(1000 + 12 * 3600)), Some(5));
    }
}
