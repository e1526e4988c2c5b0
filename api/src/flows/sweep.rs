//! Finds events that no webhook told of.

use jiff::Timestamp;

use crate::seams::{Outside, Store, StoreError, Stripe};

/// Why a sweep has ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SweepError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stripe.
    #[error(transparent)]
    Stripe(#[from] Outside),
}

/// Takes in what Stripe says has happened since; how much of it was new.
///
/// # Errors
/// If Stripe or the store does not answer: the next sweep begins at the same moment.
pub async fn sweep<S: Store, T: Stripe>(store: &S, stripe: &T, since: Timestamp) -> Result<u64, SweepError> {
    let (mut new, mut last) = (0, None);
    loop {
        let page = stripe.events(since, last.as_deref()).await?;
        let before = last;
        last = page.events.last().map(|event| event.id.clone());
        if page.has_more && last.is_some() && last == before {
            return Err(SweepError::Stripe(Outside::Unknown {
                who: "Stripe",
                why: "its list of events does not go on".to_owned(),
            }));
        }
        // What an event says is read anew: its own bytes are not kept.
        let told = page.events.into_iter().map(|event| {
            let digest = vitrine_commerce::sha256(&event.id);
            (event, digest)
        });
        let told: Vec<_> = told.collect();
        if !told.is_empty() {
            new += store.receive(&told).await?;
        }
        if !page.has_more || last.is_none() {
            return Ok(new);
        }
    }
}
