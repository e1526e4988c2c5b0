//! Which slots are held, and by whom, as the watch has told. In memory, calls nobody.
//!
//! A live preview has five of them, all with names of some seventy characters: as objects they were half of all that was kept of it.

use std::{
    collections::BTreeSet,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{ResourceExt, core::PartialObjectMeta, runtime::watcher::Event};
use slab::Slab;
use tokio::sync::watch;
use uuid::Uuid;
use vitrine_policies::slots::{self, Name};

type Slot = PartialObjectMeta<Lease>;

/// All slots.
pub struct Held {
    hasher: RandomState,
    known: RwLock<Known>,
    /// Those that a list which is under way has told of.
    listed: Mutex<BTreeSet<Name>>,
    ready: watch::Sender<bool>,
}

/// Found by hashes alone, and then compared: maps by names and uids take twice as much.
#[derive(Default)]
struct Known {
    slots: Slab<(Name, Option<Uuid>)>,
    by_name: BTreeSet<(u64, u32)>,
    by_holder: BTreeSet<(u64, u32)>,
}

/// What a watch has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Of this slot, and who holds it, or has held it.
    Of(Name, Option<String>),
    /// Of all there are.
    All,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held")
            .field("slots", &self.known().slots.len())
            .finish_non_exhaustive()
    }
}

impl Default for Held {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            known: RwLock::default(),
            listed: Mutex::default(),
            ready: watch::Sender::new(false),
        }
    }
}

impl Held {
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once all were listed for the first time.
    pub async fn wait_until_ready(&self) {
        // The sender is here: it is not gone.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// A watch tells something; what of it is news. What is named otherwise than slots are is no slot: nobody can ask for it.
    pub fn handle(&self, event: &Event<Slot>) -> Option<Told> {
        let listed = || self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(slot) => {
                let name = Name::read(&slot.name_any())?;
                let holder = holder(slot);
                self.known_mut().put(&self.hasher, name, holder.and_then(read));
                Some(Told::Of(name, holder.map(str::to_owned)))
            }
            Event::Delete(slot) => {
                let name = Name::read(&slot.name_any())?;
                self.known_mut().remove(&self.hasher, &name);
                Some(Told::Of(name, holder(slot).map(str::to_owned)))
            }
            Event::Init => {
                listed().clear();
                None
            }
            Event::InitApply(slot) => {
                let name = Name::read(&slot.name_any())?;
                self.known_mut()
                    .put(&self.hasher, name, holder(slot).and_then(read));
                listed().insert(name);
                None
            }
            Event::InitDone => {
                let there = std::mem::take(&mut *listed());
                let mut known = self.known_mut();
                let all = known.slots.iter().map(|(_, (name, _))| *name);
                let gone: Vec<_> = all.filter(|name| !there.contains(name)).collect();
                for name in gone {
                    known.remove(&self.hasher, &name);
                }
                self.ready.send_replace(true);
                Some(Told::All)
            }
        }
    }

    /// Whether somebody holds a slot.
    pub fn is_held(&self, slot: &str) -> bool {
        self.holder(slot).is_some()
    }

    /// Whether this one holds it.
    pub fn is_held_by(&self, slot: &str, uid: &str) -> bool {
        self.holder(slot).is_some_and(|holder| Some(holder) == read(uid))
    }

    /// Whether this one holds any.
    pub fn holds(&self, uid: &str) -> bool {
        read(uid).is_some_and(|uid| self.known().of(&self.hasher, Some(uid)).next().is_some())
    }

    /// What this one holds.
    pub fn held_by(&self, uid: &str) -> Vec<String> {
        let Some(uid) = read(uid) else { return vec![] };
        let known = self.known();
        known
            .of(&self.hasher, Some(uid))
            .map(ToString::to_string)
            .collect()
    }

    /// What is held by those who are gone, or by nobody of whom that can be said.
    pub fn left_by(&self, is_gone: impl Fn(&str) -> bool) -> Vec<String> {
        let holders: BTreeSet<_> = self
            .known()
            .slots
            .iter()
            .map(|(_, (_, holder))| *holder)
            .collect();
        // Not under the lock: whoever is asked looks in other places.
        let gone = holders
            .into_iter()
            .filter(|holder| holder.is_none_or(|uid| is_gone(&uid.to_string())));
        let gone: Vec<_> = gone.collect();
        let known = self.known();
        let left = gone.into_iter().flat_map(|holder| known.of(&self.hasher, holder));
        left.map(ToString::to_string).collect()
    }

    fn holder(&self, slot: &str) -> Option<Uuid> {
        let (name, known) = (Name::read(slot)?, self.known());
        known.find(&self.hasher, &name).and_then(|(_, holder)| holder)
    }
}

impl Known {
    fn put(&mut self, hasher: &RandomState, name: Name, holder: Option<Uuid>) {
        self.remove(hasher, &name);
        let number = u32::try_from(self.slots.insert((name, holder))).unwrap_or(u32::MAX);
        self.by_name.insert((hasher.hash_one(name), number));
        self.by_holder.insert((hasher.hash_one(holder), number));
    }

    fn remove(&mut self, hasher: &RandomState, name: &Name) {
        let Some((number, holder)) = self.find(hasher, name) else {
            return;
        };
        self.slots.try_remove(number as usize);
        self.by_name.remove(&(hasher.hash_one(name), number));
        self.by_holder.remove(&(hasher.hash_one(holder), number));
    }

    fn find(&self, hasher: &RandomState, name: &Name) -> Option<(u32, Option<Uuid>)> {
        let hash = hasher.hash_one(name);
        self.by_name
            .range((hash, 0)..=(hash, u32::MAX))
            .find_map(|(_, number)| {
                let (there, holder) = self.slots.get(*number as usize)?;
                (there == name).then_some((*number, *holder))
            })
    }

    fn of(&self, hasher: &RandomState, holder: Option<Uuid>) -> impl Iterator<Item = &Name> {
        let hash = hasher.hash_one(holder);
        self.by_holder
            .range((hash, 0)..=(hash, u32::MAX))
            .filter_map(move |(_, number)| {
                let (name, of) = self.slots.get(*number as usize)?;
                (*of == holder).then_some(name)
            })
    }
}

fn holder(slot: &Slot) -> Option<&str> {
    slot.labels().get(slots::HOLDER_LABEL).map(String::as_str)
}

/// A uid in the one form in which the API server writes them.
fn read(uid: &str) -> Option<Uuid> {
    Uuid::try_parse(uid).ok().filter(|read| read.to_string() == uid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vitrine_policies::slots::Dimension;

    use super::*;

    const A: &str = "0b4c6b1e-8a52-4a3e-9d0e-000000000001";
    const C: &str = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    const B: &str = "f0000000-8a52-4a3e-9d0e-000000000002";

    fn name(index: i32) -> String {
        slots::name(Dimension::Subject, "s", index)
    }

    fn slot(name: &str, holder: &str) -> Slot {
        Slot {
            metadata: serde_json::from_value(json!({"name": name, "labels": {slots::HOLDER_LABEL: holder}}))
                .unwrap(),
            ..Slot::default()
        }
    }

    #[test]
    fn who_holds_what_is_known_both_ways_and_changes_hands() {
        let held = Held::default();
        let told = held.handle(&Event::Apply(slot(&name(0), A)));
        assert_eq!(
            told,
            Some(Told::Of(Name::read(&name(0)).unwrap(), Some(A.to_owned())))
        );
        held.handle(&Event::Apply(slot(&name(1), A)));
        assert!(held.is_held(&name(0)) && held.is_held_by(&name(1), A) && !held.is_held_by(&name(1), B));
        let all = Dimension::ALL.map(|of| slots::name(of, "k", 0));
        for slot_name in &all {
            held.handle(&Event::Apply(slot(slot_name, C)));
        }
        let mut of_all = held.held_by(C);
        of_all.sort_by_key(|name| all.iter().position(|one| one == name));
        assert_eq!(of_all, all);
        let mut both = held.held_by(A);
        both.sort();
        assert_eq!(both, [name(0), name(1)]);
        held.handle(&Event::Apply(slot(&name(0), B)));
        assert_eq!((held.held_by(A), held.held_by(B)), (vec![name(1)], vec![name(0)]));
        held.handle(&Event::Delete(slot(&name(1), A)));
        assert!(!held.is_held(&name(1)) && !held.holds(A) && held.holds(B));
    }

    #[test]
    fn what_is_gone_from_a_list_is_gone_and_what_is_named_otherwise_is_no_slot() {
        let held = Held::default();
        held.handle(&Event::Apply(slot(&name(0), A)));
        assert_eq!(held.handle(&Event::Apply(slot("mine", A))), None);
        held.handle(&Event::Init);
        held.handle(&Event::InitApply(slot(&name(0), A)));
        // That list was broken off, and another begins.
        held.handle(&Event::Init);
        held.handle(&Event::InitApply(slot(&name(1), B)));
        assert!(held.is_held(&name(0)), "until the list is whole");
        assert_eq!(held.handle(&Event::InitDone), Some(Told::All));
        assert!(!held.is_held(&name(0)) && held.is_held_by(&name(1), B));
    }

    #[test]
    fn what_is_left_is_that_of_those_who_are_gone_and_of_nobody() {
        let held = Held::default();
        for (index, holder) in [A, A, B, "nobody"].into_iter().enumerate() {
            held.handle(&Event::Apply(slot(&name(i32::try_from(index).unwrap()), holder)));
        }
        let mut left = held.left_by(|uid| uid == A);
        left.sort();
        assert_eq!(left, [name(0), name(1), name(3)]);
        assert_eq!(held.left_by(|_| false), [name(3)]);
    }
}
