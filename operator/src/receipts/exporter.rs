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
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};
use kube::{Api, ResourceExt, api::PostParams, core::PartialObjectMeta};
use tokio::time::Instant;
use vitrine_crds::PreviewSandbox;
use vitrine_receipts::names;

use super::sink::{Sink, Undelivered};
use crate::{
    error::{Error, Result, found},
    preview::Context,
};

/// How often it is looked for what nobody told of: what an operator before this one has left.
const PERIOD: Duration = Duration::from_secs(15);
/// How long a sink that is down is left alone: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a receipt is set aside that the sink did not take for what it is.
const SET_ASIDE: Duration = Duration::from_secs(600);
/// Receipts on their way at once.
const AT_ONCE: usize = 8;

/// What was sent and refused, by preview uid.
#[derive(Default)]
struct Memory {
    /// Acknowledged, but perhaps not yet marked.
    acknowledged: Mutex<HashSet<String>>,
    /// Not taken, and when to try again.
    refused: Mutex<HashMap<String, Instant>>,
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

/// One look at everything; whether the sink, or the API server, is down.
async fn round(context: &Context, memory: &Memory) -> bool {
    let due = due(context, memory);
    let metrics = &context.metrics;
    let waiting = &metrics.receipts_waiting;
    waiting.set(i64::try_from(due.len()).unwrap_or(i64::MAX));
    let down = AtomicBool::new(false);
    stream::iter(due)
        .for_each_concurrent(AT_ONCE, |(uid, item)| {
            let down = &down;
            async move {
                // Others wait for the same: one that is down is asked once a round, not once a receipt.
                if down.load(Ordering::Relaxed) {
                    return;
                }
                match settle(context, memory, &uid, item).await {
                    Ok(()) => waiting.dec(),
                    Err(error) => {
                        metrics.errors.with_label_values(&[error.category()]).inc();
                        tracing::warn!(preview_uid = uid, %error, "a receipt is not settled, will try again");
                        let about_it = matches!(error, Error::Receipt { lasting: true, .. });
                        down.fetch_or(!about_it, Ordering::Relaxed);
                    }
                }
            }
        })
        .await;
    down.into_inner()
}

/// What there is to do, by preview uid.
fn due(context: &Context, memory: &Memory) -> BTreeMap<String, Item> {
    let now = Instant::now();
    let mut refused = lock(&memory.refused);
    refused.retain(|_, again| *again > now);
    let mut due = BTreeMap::new();
    let mut known = HashSet::new();
    if context.receipts.office.sink.is_some() {
        for guarded in context.watched.previews.state() {
            let Ok(preview) = &guarded.0 else { continue };
            let Some((uid, envelope)) = undelivered(preview) else {
                continue;
            };
            known.insert(uid.clone());
            if !refused.contains_key(&uid) {
                let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
                due.insert(
                    uid,
                    Item::Preview {
                        namespace,
                        name,
                        envelope,
                    },
                );
            }
        }
    }
    for entry in context.receipts.spool.entries() {
        let name = entry.name_any();
        let Some(uid) = name.strip_prefix(names::PREFIX) else {
            continue;
        };
        known.insert(uid.to_owned());
        let over = || {
            let until = entry.annotations().get(names::UNTIL_ANNOTATION);
            until.is_some_and(|until| {
                until
                    .parse::<Timestamp>()
                    .is_ok_and(|until| until <= Timestamp::now())
            })
        };
        // Without a sink, what was meant for one waits for the next.
        let is_due = if is_pending(&entry) {
            context.receipts.office.sink.is_some() && !refused.contains_key(uid)
        } else {
            over()
        };
        if is_due {
            due.insert(uid.to_owned(), Item::Spooled(entry));
        }
    }
    lock(&memory.acknowledged).retain(|uid| known.contains(uid));
    due
}

/// The receipt of a preview that is over and was not acknowledged.
fn undelivered(preview: &PreviewSandbox) -> Option<(String, String)> {
    let receipt = preview.status.as_ref()?.receipt.as_ref()?;
    match (&receipt.signed, &receipt.delivered_at) {
        (Some(envelope), None) => Some((preview.uid()?, envelope.clone())),
        _ => None,
    }
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
            if is_pending(&entry)
                && let Some(envelope) = spool.read(&entry.name_any()).await?
            {
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
    let sink: &Sink = sink;
    match sink.deliver(uid, envelope).await {
        Ok(()) => {
            lock(&memory.acknowledged).insert(uid.to_owned());
            context.metrics.receipts_delivered.inc();
            Ok(())
        }
        Err(error) => {
            context
                .metrics
                .receipt_failures
                .with_label_values(&[error.category()])
                .inc();
            let lasting = matches!(error, Undelivered::Refused(_));
            if lasting {
                lock(&memory.refused).insert(uid.to_owned(), Instant::now() + SET_ASIDE);
            }
            Err(Error::Receipt {
                uid: uid.to_owned(),
                message: error.to_string(),
                lasting,
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
