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

    /// Takes what the proxies have told. While not all of them have, what was known before is not forgotten: counts only grow.
    fn tell(&self, by_proxy: Vec<BTreeMap<String, u64>>, all: bool) {
        let mut sums = HashMap::new();
        for (uid, count) in by_proxy.into_iter().flatten() {
            let sum: &mut u64 = sums.entry(uid).or_default();
            *sum = sum.saturating_add(count);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all {
            for (uid, before) in known.drain() {
                let sum = sums.entry(uid).or_default();
                *sum = before.max(*sum);
            }
        }
        *known = sums;
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
            match fleet::answers(context, "egress", DENIALS_PATH).await {
                Ok(answers) => {
                    let (told, silent): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
                    for error in silent.iter().filter_map(|answer| answer.as_ref().err()) {
                        tracing::info!(%error, "an egress proxy does not say what it has refused");
                    }
                    let told = told.into_iter().filter_map(Result::ok).collect();
                    context.denials.tell(told, silent.is_empty());
                }
                Err(error) => tracing::warn!(%error, "nobody says which egress proxies there are"),
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
        denials.tell(vec![told(3), told(4), BTreeMap::new()], true);
        assert_eq!(denials.of("a"), Some(7));
        assert_eq!(denials.of("b"), None);
        // One is silent.
        denials.tell(vec![told(5)], false);
        assert_eq!(denials.of("a"), Some(7));
        denials.tell(vec![told(u64::MAX), told(4)], true);
        assert_eq!(denials.of("a"), Some(u64::MAX));
        denials.tell(vec![BTreeMap::new()], true);
        assert_eq!(denials.of("a"), None);
    }
}
