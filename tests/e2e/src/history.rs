//! Remembers what previews and slots went through, as a watch tells it: a state that lasted a moment is seen as well. Reads
//! the cluster, writes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    runtime::watcher::{self, Event, watcher},
};
use tokio::task::JoinSet;
use vitrine_crds::{
    Phase, PreviewSandbox,
    conditions::{self, types},
};
use vitrine_policies::slots::Dimension;

use crate::house::House;

/// What happened since it was begun. It watches for as long as it is kept.
pub struct History {
    told: Arc<Mutex<Told>>,
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct Told {
    phases: BTreeMap<String, Vec<Phase>>,
    starts: BTreeMap<String, BTreeSet<String>>,
    /// How many slots of one dimension a preview held at the same time at most.
    slots: BTreeMap<String, usize>,
    /// The Leases that are there now: by uid, what their names begin with, and who holds them.
    held: BTreeMap<String, (String, String)>,
    /// By dimension, how many of one key there were at most.
    most: BTreeMap<String, usize>,
    /// The previews that are admitted and whose end is not proven, and how many there were at most.
    live: BTreeSet<String>,
    ended: BTreeSet<String>,
    most_live: usize,
    synced: u8,
}

impl History {
    /// Begins to watch; returns once everything from now on is seen.
    ///
    /// # Panics
    /// If the watch does not come about.
    pub async fn begin(house: &House) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let mut watches = JoinSet::new();
        let mut previews = watcher(house.previews(), watcher::Config::default()).boxed();
        let tell = told.clone();
        watches.spawn(async move {
            while let Some(event) = previews.next().await {
                lock(&tell).preview(event.ok());
            }
        });
        let leases: Api<Lease> = house.leases();
        let mut leases = watcher(leases, watcher::Config::default()).boxed();
        let tell = told.clone();
        watches.spawn(async move {
            while let Some(event) = leases.next().await {
                lock(&tell).lease(event.ok());
            }
        });
        let history = Self {
            told,
            _watches: watches,
        };
        crate::eventually::eventually("both watches began", crate::house::PATIENCE, async || {
            if history.lock().synced >= 2 {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await;
        history
    }

    /// The uids of all previews that were seen.
    pub fn previews(&self) -> Vec<String> {
        self.lock().phases.keys().cloned().collect()
    }

    /// The phases that a preview went through.
    pub fn phases(&self, uid: &str) -> Vec<Phase> {
        self.lock().phases.get(uid).cloned().unwrap_or_default()
    }

    /// How often a preview became ready, and how many different beginnings its clock had.
    pub fn ready_periods(&self, uid: &str) -> (usize, usize) {
        let periods = self.phases(uid).iter().filter(|p| **p == Phase::Ready).count();
        (periods, self.lock().starts.get(uid).map_or(0, BTreeSet::len))
    }

    /// How many slots of one dimension a preview held at the same time at most. Over its time it may be more: who finds that
    /// another slot is missing gives back what it has.
    pub fn slots(&self, uid: &str) -> usize {
        self.lock().slots.get(uid).copied().unwrap_or_default()
    }

    /// How many slots of one key of this dimension were held at the same time at most, by anybody.
    pub fn most_slots(&self, dimension: Dimension) -> usize {
        let most = &self.lock().most;
        most.get(dimension.as_str()).copied().unwrap_or_default()
    }

    /// How many previews were admitted and not proven to have ended at the same time at most.
    pub fn most_live(&self) -> usize {
        self.lock().most_live
    }

    /// How many previews have come to a proven end after they were admitted.
    pub fn ends(&self) -> usize {
        self.lock().ended.len()
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Told {
    fn preview(&mut self, event: Option<Event<PreviewSandbox>>) {
        let preview = match event {
            Some(Event::Apply(preview) | Event::InitApply(preview) | Event::Delete(preview)) => preview,
            Some(Event::InitDone) => {
                self.synced += 1;
                return;
            }
            _ => return,
        };
        let uid = preview.uid().unwrap_or_default();
        let status = preview.status.unwrap_or_default();
        if conditions::is_true(&status.conditions, types::ADMITTED) {
            if status.receipt.is_some() {
                self.live.remove(&uid);
                self.ended.insert(uid.clone());
            } else {
                self.live.insert(uid.clone());
                self.most_live = self.most_live.max(self.live.len());
            }
        }
        let phases = self.phases.entry(uid.clone()).or_default();
        if phases.last() != Some(&status.phase) {
            phases.push(status.phase);
        }
        if let Some(started) = status.started_at {
            self.starts.entry(uid).or_default().insert(started.0.to_string());
        }
    }

    fn lease(&mut self, event: Option<Event<Lease>>) {
        match event {
            Some(Event::Apply(lease) | Event::InitApply(lease)) => {
                let (uid, name) = (lease.uid().unwrap_or_default(), lease.name_any());
                let Some((key, _)) = name.rsplit_once('-') else {
                    return;
                };
                let dimension = key.split('-').next().unwrap_or_default();
                let holder = lease
                    .spec
                    .and_then(|spec| spec.holder_identity)
                    .unwrap_or_default();
                self.held.insert(uid, (key.to_owned(), holder.clone()));
                let count = self.held.values().filter(|(held, _)| held == key).count();
                let own = self
                    .held
                    .values()
                    .filter(|(held, by)| held.split('-').next() == Some(dimension) && *by == holder);
                let own = own.count();
                let most = self.most.entry(dimension.to_owned()).or_default();
                *most = (*most).max(count);
                let most = self.slots.entry(holder).or_default();
                *most = (*most).max(own);
            }
            Some(Event::Delete(lease)) => {
                self.held.remove(&lease.uid().unwrap_or_default());
            }
            Some(Event::InitDone) => self.synced += 1,
            _ => {}
        }
    }
}
