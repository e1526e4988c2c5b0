//! Which previews anybody looks at: asked of every gateway, again and again, while the policy ends those that nobody does. Reads
//! pods of the gateway and asks them; the gateways write nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use vitrine_policies::names;

use crate::{
    error::Result,
    fleet,
    gateway::{ACTIVITY_PATH, Activity},
    preview::Context,
};

/// How often the gateways are asked: a preview may end so much later than the policy says.
const PERIOD: Duration = Duration::from_secs(5);

/// What all gateways have told last.
#[derive(Debug, Default)]
pub struct Watchers(Mutex<Option<Told>>);

#[derive(Debug)]
struct Told {
    /// When they were asked.
    at: Timestamp,
    by_gateway: Vec<Activity>,
}

/// Whether anybody looks at a preview, as all gateways together know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// When they were asked.
    pub at: Timestamp,
    /// Since when all of them count; of what was before, somebody who was there may be forgotten.
    pub since: Timestamp,
    /// When somebody was last there; `None` if nobody was since then.
    pub last: Option<Timestamp>,
    /// Whether somebody is there.
    pub open: bool,
}

impl Watchers {
    /// What is known of one preview; `None` while not every gateway has answered.
    pub fn of(&self, preview_uid: &str) -> Option<Attention> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.as_ref()?;
        attention(told.at, &told.by_gateway, &names::host_label(preview_uid))
    }

    fn tell(&self, told: Option<Told>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

fn attention(at: Timestamp, by_gateway: &[Activity], label: &str) -> Option<Attention> {
    let since = by_gateway.iter().map(|activity| activity.since).max()?;
    let seen = || {
        by_gateway
            .iter()
            .filter_map(|activity| activity.previews.get(label))
    };
    let last = seen().map(|seen| seen.last).max();
    Some(Attention {
        at,
        since: Timestamp::from_millisecond(since).ok()?,
        last: last.and_then(|last| Timestamp::from_millisecond(last).ok()),
        open: seen().any(|seen| seen.open > 0),
    })
}

/// Asks for ever, while the policy makes it worth it.
pub async fn run(context: &Context) {
    loop {
        let told = if context.watched.ends_what_nobody_uses() {
            match ask(context).await {
                Ok(told) => Some(told),
                // One that does not answer may have visitors: then nobody knows, and nothing ends.
                Err(error) => {
                    tracing::warn!(%error, "not every gateway says who looks at previews");
                    None
                }
            }
        } else {
            None
        };
        context.watchers.tell(told);
        tokio::time::sleep(PERIOD).await;
    }
}

async fn ask(context: &Context) -> Result<Told> {
    let at = Timestamp::now();
    let by_gateway = fleet::ask(context, "gateway", ACTIVITY_PATH).await?;
    Ok(Told { at, by_gateway })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gateway::Seen;

    fn gateway(since: i64, seen: Option<Seen>) -> Activity {
        Activity {
            since,
            previews: seen
                .into_iter()
                .map(|seen| ("p-1".to_owned(), seen))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn gateways_together_know_the_last_visitor_and_no_more_than_the_youngest_of_them() {
        let at = Timestamp::from_millisecond(9000).unwrap();
        let seen = |last, open| {
            Some(Seen {
                opened: 500,
                last,
                open,
            })
        };
        assert_eq!(attention(at, &[], "p-1"), None);
        let known = attention(
            at,
            &[gateway(100, seen(700, 0)), gateway(300, seen(600, 1))],
            "p-1",
        )
        .unwrap();
        assert_eq!(known.since.as_millisecond(), 300);
        assert_eq!(known.last.unwrap().as_millisecond(), 700);
        assert!(known.open);
        let known = attention(at, &[gateway(100, None), gateway(300, seen(600, 0))], "p-2").unwrap();
        assert_eq!((known.last, known.open), (None, false));
    }
}
