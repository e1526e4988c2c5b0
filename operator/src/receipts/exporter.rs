//! Sends receipts to the sink, from previews that are over and from the spool, and lets go of what was kept long enough. Writes
//! `deliveredAt` and the spool.
//!
//! The facts of a receipt are in the cluster before it is sent, and what says that it was sent is written after: whoever is killed in
//! between sends it again.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Api, ResourceExt, api::PostParams};
use serde::Deserialize;
use tokio::time::Instant;
use vitrine_crds::PreviewSandbox;
use vitrine_receipts::names;

use super::{
    post::{Item, Items, undelivered},
    sink::Undelivered,
    spool::Entry,
};
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

/// What was tried in vain, by preview uid: when, and until when it is set aside because the sink did not take it for what it is.
#[derive(Default)]
struct Memory(Mutex<HashMap<String, (Instant, Option<Instant>)>>);

impl Memory {
    /// Forgets all but these.
    fn retain(&self, known: &Items) {
        lock(&self.0).retain(|uid, _| known.contains_key(uid));
    }

    fn fails(&self, uid: &str, is_about_it: bool, now: Instant) {
        let aside = is_about_it.then(|| now + SET_ASIDE);
        lock(&self.0).insert(uid.to_owned(), (now, aside));
    }

    /// What is to be tried now: first what did not fail yet, then what failed longest ago, so that nothing that always fails holds up
    /// what does not.
    fn turns(&self, waiting: Items, now: Instant) -> Vec<(String, Item)> {
        let failed = lock(&self.0);
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

fn is_pending(entry: &Entry) -> bool {
    entry
        .labels()
        .get(names::STATE_LABEL)
        .is_some_and(|state| state == names::PENDING)
}

/// Sends for ever.
pub async fn run(context: &Context) {
    let (memory, post) = (Memory::default(), &context.receipts.post);
    let mut pause = FIRST_PAUSE;
    let mut look_at = Instant::now();
    loop {
        let (mut items, look) = post.take();
        let waiting = &context.metrics.receipts_waiting;
        if look || look_at <= Instant::now() {
            look_at = Instant::now() + PERIOD;
            clear(context).await;
            let begun = Instant::now();
            items.extend(all_waiting(context).await);
            memory.retain(&items);
            // One that was deleted has its signature nowhere until it is in the spool.
            let ending = ending(context).await;
            post.retain(begun, |uid| items.contains_key(uid) || ending.contains(uid));
            waiting.set(0);
        }
        waiting.add(i64::try_from(items.len()).unwrap_or(i64::MAX));
        if send(context, &memory, items).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            // What was not tried, too.
            look_at = Instant::now();
        } else {
            pause = FIRST_PAUSE;
            tokio::select! {
                () = post.news() => {}
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
    }
}

/// Lets go of what the spool need not hold any more.
async fn clear(context: &Context) {
    for entry in outlived(context).await {
        if let Err(error) = let_go(context, &entry).await {
            context.metrics.failed(&error);
            tracing::warn!(%error, "a receipt is kept for longer than it has to be");
        }
    }
}

/// Sends these; whether the sink is down.
async fn send(context: &Context, memory: &Memory, items: Items) -> bool {
    let metrics = &context.metrics;
    let down = AtomicBool::new(false);
    stream::iter(memory.turns(items, Instant::now()))
        .for_each_concurrent(AT_ONCE, |(uid, item)| {
            let down = &down;
            async move {
                // Others wait for the same: one that is down is asked once a round, not once a receipt.
                if down.load(Ordering::Relaxed) {
                    return;
                }
                match settled(context, &uid, item).await {
                    Ok(()) => metrics.receipts_waiting.dec(),
                    Err(error) => {
                        let is_about_it = matches!(error, Error::Receipt { lasting: true, .. });
                        memory.fails(&uid, is_about_it, Instant::now());
                        // That the API server does not take one mark says nothing of the sink.
                        let is_down = matches!(error, Error::Receipt { lasting: false, .. });
                        down.fetch_or(is_down, Ordering::Relaxed);
                        metrics.failed(&error);
                        tracing::warn!(preview_uid = uid, %error, "a receipt is not settled, will try again");
                    }
                }
            }
        })
        .await;
    down.into_inner()
}

/// Every receipt that the sink has still to get.
async fn all_waiting(context: &Context) -> Items {
    if context.receipts.office.sink.is_none() {
        return Items::new();
    }
    let mut waiting = Items::new();
    let previews = &context.watched.previews;
    let note = |preview: PreviewSandbox| waiting.extend(undelivered(&preview));
    previews.skim(note).await;
    let note = |entry: Entry| {
        let name = entry.name_any();
        if let Some(uid) = name.strip_prefix(names::PREFIX).filter(|_| is_pending(&entry)) {
            waiting.insert(uid.to_owned(), Item::Spooled);
        }
    };
    context.receipts.spool.show(note).await;
    waiting
}

/// The previews that are about to go, by uid.
async fn ending(context: &Context) -> HashSet<String> {
    let mut ending = HashSet::new();
    let note = |preview: Going| {
        let going = preview.metadata.deletion_timestamp.is_some();
        ending.extend(preview.metadata.uid.filter(|_| going));
    };
    context.watched.previews.skim(note).await;
    ending
}

/// What of a preview says whether it is about to go.
#[derive(Deserialize)]
struct Going {
    metadata: ObjectMeta,
}

/// What the spool need not hold any more: what was kept for its retention, and what was meant for a sink that there is none of any more,
/// after the same time.
async fn outlived(context: &Context) -> Vec<Entry> {
    let policy = context.watched.policy();
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
    let mut outlived = vec![];
    let note = |entry| outlived.extend(Some(entry).filter(is_over));
    context.receipts.spool.show(note).await;
    outlived
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

async fn settled(context: &Context, uid: &str, item: Item) -> Result<()> {
    let settled = tokio::time::timeout(PATIENCE, settle(context, uid, item)).await;
    settled.unwrap_or_else(|_| {
        Err(Error::Installation(format!(
            "sink and API server together took longer than {} s for the receipt of {uid}",
            PATIENCE.as_secs()
        )))
    })
}

async fn settle(context: &Context, uid: &str, item: Item) -> Result<()> {
    match item {
        Item::Preview {
            namespace,
            name,
            envelope,
        } => {
            deliver(context, uid, &envelope).await?;
            mark(context, &namespace, &name, uid).await
        }
        Item::Spooled => {
            let spool = &context.receipts.spool;
            let Some(entry) = spool.entry(uid) else {
                return Ok(());
            };
            if let Some(envelope) = spool.read(&entry.name_any()).await? {
                deliver(context, uid, &envelope).await?;
            }
            spool.forget(&entry).await
        }
    }
}

async fn deliver(context: &Context, uid: &str, envelope: &str) -> Result<()> {
    let Some(sink) = &context.receipts.office.sink else {
        return Ok(());
    };
    if context.receipts.post.is_acknowledged(uid) {
        return Ok(());
    }
    match sink.deliver(uid, envelope).await {
        Ok(()) => {
            context.receipts.post.acknowledge(uid);
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

/// Writes into the preview that its receipt was acknowledged. One that is gone meanwhile needs no mark, and one that is to go is let
/// go of.
async fn mark(context: &Context, namespace: &str, name: &str, uid: &str) -> Result<()> {
    let api: Api<PreviewSandbox> = context.api(namespace);
    let full = || format!("{namespace}/{name}");
    loop {
        let preview = found(api.get(name).await).map_err(Error::kube("get", "PreviewSandbox", full()))?;
        let Some(mut preview) = preview.filter(|preview| preview.uid().as_deref() == Some(uid)) else {
            return Ok(());
        };
        if preview.metadata.deletion_timestamp.is_some() {
            context.wakes.preview(namespace, name);
            return Ok(());
        }
        let receipt = preview.status.as_mut().and_then(|status| status.receipt.as_mut());
        let Some(receipt) = receipt.filter(|receipt| receipt.delivered_at.is_none()) else {
            return Ok(());
        };
        receipt.delivered_at = Some(Time(Timestamp::now()));
        preview.metadata.managed_fields = None;
        let written = found(api.replace_status(name, &PostParams::default(), &preview).await);
        match written.map_err(Error::kube("write the status of", "PreviewSandbox", full())) {
            // Somebody wrote first: it is being deleted, most likely.
            Err(error) if error.is_conflict() => {}
            written => return written.map(|_| ()),
        }
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
        memory.retain(&Items::from([("b".to_owned(), item())]));
        assert_eq!(turns(&memory, &["b", "c"], later), ["c", "b"]);
    }
}
