//! What is known in this process of receipts on their way: which have just come to be, and which the sink has acknowledged.
//! Touches nothing; what is lost with it is found again in the cluster.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::ResourceExt;
use tokio::{sync::Notify, time::Instant};
use vitrine_crds::PreviewSandbox;

/// One receipt that has to go.
#[derive(Clone, Debug)]
pub enum Item {
    /// In the status of a preview.
    Preview {
        /// The preview's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The signed receipt.
        envelope: String,
    },
    /// In the spool.
    Spooled,
}

/// Receipts that have to go, by preview uid.
pub type Items = BTreeMap<String, Item>;

/// What the exporter is told, and what it tells.
#[derive(Debug, Default)]
pub struct Post {
    told: Mutex<Items>,
    look: AtomicBool,
    /// When this process was told of each first.
    sent: Mutex<HashMap<String, Instant>>,
    /// And when the sink acknowledged it.
    acknowledged: Mutex<HashMap<String, Instant>>,
    news: Notify,
}

impl Post {
    /// The receipt of this preview is written, and has to go.
    pub fn send(&self, preview: &PreviewSandbox) {
        if let Some((uid, item)) = undelivered(preview) {
            lock(&self.sent).entry(uid.clone()).or_insert_with(Instant::now);
            lock(&self.told).insert(uid, item);
            self.news.notify_one();
        }
    }

    /// There may be something to send that nobody told of.
    pub fn look(&self) {
        self.look.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// What was told, and whether everything is to be looked at.
    pub fn take(&self) -> (Items, bool) {
        let told = std::mem::take(&mut *lock(&self.told));
        (told, self.look.swap(false, Ordering::Relaxed))
    }

    /// Until something is told.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Whether the sink has the receipt of this preview, as far as this process knows.
    pub fn is_acknowledged(&self, uid: &str) -> bool {
        lock(&self.acknowledged).contains_key(uid)
    }

    /// How long ago this process was told of the receipt of this preview.
    pub fn sent(&self, uid: &str) -> Option<Duration> {
        lock(&self.sent).get(uid).map(Instant::elapsed)
    }

    /// The sink has it.
    pub fn acknowledge(&self, uid: &str) {
        lock(&self.acknowledged).insert(uid.to_owned(), Instant::now());
    }

    /// Forgets all but these, and what this process was told since it began to look which these are.
    pub fn retain(&self, begun: Instant, known: impl Fn(&str) -> bool) {
        let stays = |uid: &String, at: &mut Instant| *at >= begun || known(uid);
        lock(&self.acknowledged).retain(stays);
        lock(&self.sent).retain(stays);
    }
}

/// The receipt of a preview that is over and was not acknowledged, with the preview's uid.
pub fn undelivered(preview: &PreviewSandbox) -> Option<(String, Item)> {
    let receipt = preview.status.as_ref()?.receipt.as_ref()?;
    let (Some(envelope), None) = (&receipt.signed, &receipt.delivered_at) else {
        return None;
    };
    let item = Item::Preview {
        namespace: preview.namespace().unwrap_or_default(),
        name: preview.name_any(),
        envelope: envelope.clone(),
    };
    Some((preview.uid()?, item))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
