//! How often previews were refused by the egress proxies: asked of every one of them while the policy counts it as a sign of abuse.
//! Reads pods of the proxy and asks them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{egress::DENIALS_PATH, fleet, preview::Context};

/// How often the proxies are asked: abuse may go on for so much longer.
const PERIOD: Duration = Duration::from_secs(5);

/// What the proxies have told last, by preview uid.
#[derive(Debug, Default)]
pub struct Denials(Mutex<HashMap<String, u64>>);

impl Denials {
    /// Of one preview; `None` if no proxy has refused it, or none was asked.
    pub fn of(&self, preview_uid: &str) -> Option<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(preview_uid).copied()
    }

    fn tell(&self, by_proxy: Vec<BTreeMap<String, u64>>) {
        let mut sums = HashMap::new();
        for (uid, count) in by_proxy.into_iter().flatten() {
            let sum: &mut u64 = sums.entry(uid).or_default();
            *sum = sum.saturating_add(count);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sums;
    }
}

/// Asks for ever, while the policy makes it worth it.
pub async fn run(context: &Context) {
    loop {
        if context
            .watched
            .abuse()
            .is_some_and(|rules| rules.egress_denials.is_some())
        {
            match fleet::ask(context, "egress", DENIALS_PATH).await {
                Ok(told) => context.denials.tell(told),
                // What was known stays known: the count of a preview only grows.
                Err(error) => tracing::warn!(%error, "not every egress proxy says what it has refused"),
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_proxies_have_refused_adds_up() {
        let denials = Denials::default();
        let told = |count| BTreeMap::from([("a".to_owned(), count)]);
        denials.tell(vec![told(3), told(4), BTreeMap::new()]);
        assert_eq!(denials.of("a"), Some(7));
        assert_eq!(denials.of("b"), None);
        denials.tell(vec![told(u64::MAX), told(4)]);
        assert_eq!(denials.of("a"), Some(u64::MAX));
    }
}
