//! Sends receipts to the sink, from previews that are over and from the spool, and lets go of what was kept long enough. Writes
//! `deliveredAt` and the spool.
//!
//! The receipt's bytes are in the cluster before they are sent, and what says that they were sent is written after: whoever is
//! killed in between sends them again.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, ResourceExt, api::PostParams, core::PartialObjectMeta};
use tokio::time::Instant;
use vitrine_crds::PreviewSandbox;
use vitrine_receipts::names;

use super::sink::Undelivered;
use crate::{
    error::{Error, Result, found},
    preview::{Context, decide},
};

/// How often it is looked for what nobody told of: what an operator before this one has left.
const PERIOD: Duration = Duration::from_secs(15);
/// How long a sink that is down is left alone: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a receipt is set aside that the sink did not take for what it is.
const SET_ASIDE: Duration = Duration::from_secs(600);
/// One receipt that takes longer is tried again: the sink has ten seconds of its own.
const PATIENCE: Duration = Duration::from_secs(60);
/// Receipts on their way at once.
const AT_ONCE: usize = 8;

/// What was tried, by preview uid.
#[derive(Default)]
struct Memory {
    /// Acknowledged, but perhaps not yet marked.
    acknowledged: Mutex<HashSet<String>>,
    /// Failed: when, and until when it is set aside because the sink did not take it for what it is.
    failed: Mutex<HashMap<String, (Instant, Option<Instant>)>>,
}

impl Memory {
    /// Forgets all but these.
    fn retain(&self, known: &HashSet<&str>) {
        lock(&self.acknowledged).retain(|uid| known.contains(uid.as_str()));
        lock(&self.failed).retain(|uid, _| known.contains(uid.as_str()));
    }

    fn fails(&self, uid: &str, is_about_it: bool, now: Instant) {
        let aside = is_about_it.then(|| now + SET_ASIDE);
        lock(&self.failed).insert(uid.to_owned(), (now, aside));
    }

    /// What is to be tried now: first what did not fail yet, then what failed longest ago, so that nothing that always fails holds up
    /// what does not.
    fn turns(&self, waiting: Vec<(String, Item)>, now: Instant) -> Vec<(String, Item)> {
        let failed = lock(&self.failed);
        let mut turns: Vec<_> = waiting
            .into_iter()
            .filter(|(uid, _)| {
                failed
                    .get(uid)
                    .and_then(|(_, aside)| *aside)
                    .is_none_or(|aside| aside <= now)
            })
            .collect();
        turns.sort_by_key(|(uid, _)| failed.get(uid).map(|(at, _)| *at));
        turns
    }
}

/// One receipt that has to go.
enum Item {
    Preview {
        namespace: String,
        name: String,
        envelope: String,
    },
    Spooled(Entry),
}

/// A receipt in the spool, without the receipt itself.
type Entry = Arc<PartialObjectMeta<ConfigMap>>;

fn is_pending(entry: &Entry) -> bool {
    entry
        .labels()
        .get(names::STATE_LABEL)
        .is_some_and(|state| state == names::PENDING)
}

/// Sends for ever.
pub async fn run(context: &Context) {
    let memory = Memory::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let down = round(context, &memory).await;
        if down {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
            tokio::select! {
                () = context.receipts.news.notified() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

/// One look at everything; whether the sink is down.
async fn round(context: &Context, memory: &Memory) -> bool {
    let metrics = &context.metrics;
    for entry in outlived(context) {
        if let Err(error) = let_go(context, &entry).await {
            metrics.errors.with_label_values(&[error.category()]).inc();
            tracing::warn!(%error, "a receipt is kept for longer than it has to be");
        }
    }
    let waiting = waiting(context);
    memory.retain(&waiting.iter().map(|(uid, _)| uid.as_str()).collect());
    metrics
        .receipts_waiting
        .set(i64::try_from(waiting.len()).unwrap_or(i64::MAX));
    let down = AtomicBool::new(false);
    stream::iter(memory.turns(waiting, Instant::now()))
        .for_each_concurrent(AT_ONCE, |(uid, item)| {
            let down = &down;
            async move {
                // Others wait for the same: one that is down is asked once a round, not once a receipt.
                if down.load(Ordering::Relaxed) {
                    return;
                }
                match settled(context, memory, &uid, item).await {
                    Ok(()) => metrics.receipts_waiting.dec(),
                    Err(error) => {
                        let is_about_it = matches!(error, Error::Receipt { lasting: true, .. });
                        memory.fails(&uid, is_about_it, Instant::now());
                        // That the API server does not take one mark says nothing of the sink.
                        let is_down = matches!(error, Error::Receipt { lasting: false, .. });
                        down.fetch_or(is_down, Ordering::Relaxed);
                        metrics.errors.with_label_values(&[error.category()]).inc();
                        tracing::warn!(preview_uid = uid, %error, "a receipt is not settled, will try again");
                    }
                }
            }
        })
        .await;
    down.into_inner()
}

/// Every receipt that the sink has still to get, by preview uid.
fn waiting(context: &Context) -> Vec<(String, Item)> {
    if context.receipts.office.sink.is_none() {
        return vec![];
    }
    let mut waiting = BTreeMap::new();
    for guarded in context.watched.previews.state() {
        let Ok(preview) = &guarded.0 else { continue };
        if let Some((uid, envelope)) = undelivered(preview) {
            let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
            let item = Item::Preview {
                namespace,
                name,
                envelope,
            };
            waiting.insert(uid, item);
        }
    }
    for entry in context.receipts.spool.entries().into_iter().filter(is_pending) {
        if let Some(uid) = entry.name_any().strip_prefix(names::PREFIX) {
            waiting.insert(uid.to_owned(), Item::Spooled(entry.clone()));
        }
    }
    waiting.into_iter().collect()
}

/// What the spool need not hold any more: what was kept for its retention, and what was meant for a sink that there is none of any more,
/// after the same time.
fn outlived(context: &Context) -> Vec<Entry> {
    let policy = context
        .watched
        .policy
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let retention = policy.map_or(decide::RETENTION, |policy| policy.spec.retention.as_duration());
    let now = Timestamp::now();
    let until = |entry: &Entry| match entry.annotations().get(names::UNTIL_ANNOTATION) {
        Some(text) => text.parse::<Timestamp>().ok(),
        None => {
            let made = entry.metadata.creation_timestamp.as_ref()?.0;
            made.checked_add(SignedDuration::try_from(retention).ok()?).ok()
        }
    };
    let has_sink = context.receipts.office.sink.is_some();
    let is_over =
        |entry: &Entry| !(has_sink && is_pending(entry)) && until(entry).is_some_and(|until| until <= now);
    context
        .receipts
        .spool
        .entries()
        .into_iter()
        .filter(is_over)
        .collect()
}

async fn let_go(context: &Context, entry: &Entry) -> Result<()> {
    if is_pending(entry) {
        let receipt = context.receipts.spool.read(&entry.name_any()).await?;
        context.metrics.receipts_dropped.inc();
        // The log is the last that holds it.
        tracing::error!(
            receipt,
            "a receipt is dropped that was meant for a sink, and there is none any more"
        );
    }
    context.receipts.spool.forget(entry).await
}

/// The receipt of a preview that is over and was not acknowledged.
fn undelivered(preview: &PreviewSandbox) -> Option<(String, String)> {
    let receipt = preview.status.as_ref()?.receipt.as_ref()?;
    match (&receipt.signed, &receipt.delivered_at) {
        (Some(envelope), None) => Some((preview.uid()?, envelope.clone())),
        _ => None,
    }
}

async fn settled(context: &Context, memory: &Memory, uid: &str, item: Item) -> Result<()> {
    let settled = tokio::time::timeout(PATIENCE, settle(context, memory, uid, item)).await;
    settled.unwrap_or_else(|_| {
        Err(Error::Installation(format!(
            "sink and API server together took longer than {} s for the receipt of {uid}",
            PATIENCE.as_secs()
        )))
    })
}

async fn settle(context: &Context, memory: &Memory, uid: &str, item: Item) -> Result<()> {
    match item {
        Item::Preview {
            namespace,
            name,
            envelope,
        } => {
            deliver(context, memory, uid, &envelope).await?;
            mark(context, &namespace, &name, uid).await
        }
        Item::Spooled(entry) => {
            let spool = &context.receipts.spool;
            if let Some(envelope) = spool.read(&entry.name_any()).await? {
                deliver(context, memory, uid, &envelope).await?;
            }
            spool.forget(&entry).await
        }
    }
}

async fn deliver(context: &Context, memory: &Memory, uid: &str, envelope: &str) -> Result<()> {
    let Some(sink) = &context.receipts.office.sink else {
        return Ok(());
    };
    if lock(&memory.acknowledged).contains(uid) {
        return Ok(());
    }
    match sink.deliver(uid, envelope).await {
        Ok(()) => {
            lock(&memory.acknowledged).insert(uid.to_owned());
            context.metrics.receipts_delivered.inc();
            Ok(())
        }
        Err(error) => {
            let failures = &context.metrics.receipt_failures;
            failures.with_label_values(&[error.category()]).inc();
            Err(Error::Receipt {
                uid: uid.to_owned(),
                message: error.to_string(),
                lasting: matches!(error, Undelivered::Refused(_)),
            })
        }
    }
}

/// Writes into the preview that its receipt was acknowledged. One that is gone meanwhile needs no mark.
async fn mark(context: &Context, namespace: &str, name: &str, uid: &str) -> Result<()> {
    let api: Api<PreviewSandbox> = context.api(namespace);
    let full = || format!("{namespace}/{name}");
    let preview = found(api.get(name).await).map_err(Error::kube("get", "PreviewSandbox", full()))?;
    let Some(mut preview) = preview.filter(|preview| preview.uid().as_deref() == Some(uid)) else {
        return Ok(());
    };
    let receipt = preview.status.as_mut().and_then(|status| status.receipt.as_mut());
    let Some(receipt) = receipt.filter(|receipt| receipt.delivered_at.is_none()) else {
        return Ok(());
    };
    receipt.delivered_at = Some(Time(Timestamp::now()));
    let written = found(api.replace_status(name, &PostParams::default(), &preview).await);
    match written.map_err(Error::kube("write the status of", "PreviewSandbox", full())) {
        Ok(_) => Ok(()),
        // It is being deleted, most likely: the next look tells.
        Err(error) if error.is_conflict() => {
            context.receipts.news.notify_one();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item() -> Item {
        Item::Preview {
            namespace: String::new(),
            name: String::new(),
            envelope: String::new(),
        }
    }

    fn turns(memory: &Memory, uids: &[&str], now: Instant) -> Vec<String> {
        let waiting = uids.iter().map(|uid| ((*uid).to_owned(), item())).collect();
        memory
            .turns(waiting, now)
            .into_iter()
            .map(|(uid, _)| uid)
            .collect()
    }

    #[test]
    fn what_fails_goes_behind_what_did_not_and_what_is_refused_is_set_aside() {
        let (memory, begun) = (Memory::default(), Instant::now());
        let later = begun + Duration::from_secs(1);
        memory.fails("a", false, begun);
        memory.fails("b", false, later);
        memory.fails("c", true, later);
        assert_eq!(turns(&memory, &["a", "b", "c", "d"], later), ["d", "a", "b"]);
        let again = turns(&memory, &["a", "b", "c", "d"], later + SET_ASIDE);
        assert_eq!((again[0].as_str(), again.len()), ("d", 4));
        memory.retain(&HashSet::from(["b"]));
        assert_eq!(turns(&memory, &["b", "c"], later), ["c", "b"]);
    }
}
