//! Finds what a watch has stored by something else than its name, and keeps of each object what is asked of all at once: without, each
//! preview costs more the more there are. In memory, calls nobody.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use slab::Slab;
use tokio::sync::watch;
use vitrine_policies::capacity::Resources;

/// What is kept of an object, to be had without reading it again.
pub trait Kept {
    /// Takes over from another what both say.
    fn share(&mut self, other: &Self);
    /// What it takes of the nodes, if anything.
    fn takes(&self) -> Option<Resources>;
}

/// What an object is found by, and what is kept of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts<E> {
    /// The texts by which it is found.
    pub keys: Vec<String>,
    /// What is kept, if anything.
    pub entry: Option<E>,
}

impl<E> Default for Facts<E> {
    fn default() -> Self {
        Self {
            keys: vec![],
            entry: None,
        }
    }
}

/// Reads them from an object.
pub type Read<K, E> = fn(&K) -> Facts<E>;

/// A hash of a text, keyed anew in each process, so that nobody can look for two that are the same. Of 100,000 texts two are, in one process
/// of four billion: what would do harm then, is looked at by whoever is answered.
type Key = u64;

/// Of one kind of object.
pub struct Index<K, E> {
    read: Read<K, E>,
    hasher: RandomState,
    known: RwLock<Known<E>>,
    ready: watch::Sender<bool>,
}

struct Known<E> {
    numbers: HashMap<Arc<str>, usize>,
    objects: Slab<Object<E>>,
    /// By key, the numbers of the objects that it finds. A map of lists takes five times as much.
    found: BTreeSet<(Key, usize)>,
    /// The sum of what all take.
    taken: Resources,
    /// What the next one may have in common with.
    last: Option<Arc<E>>,
}

struct Object<E> {
    name: Arc<str>,
    keys: Box<[Key]>,
    entry: Option<Arc<E>>,
}

impl<E> Default for Known<E> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            objects: Slab::new(),
            found: BTreeSet::new(),
            taken: Resources::NONE,
            last: None,
        }
    }
}

impl<K, E> fmt::Debug for Index<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("objects", &self.known().objects.len())
            .finish_non_exhaustive()
    }
}

impl<K, E: Kept> Index<K, E> {
    /// An empty one.
    pub fn new(read: Read<K, E>) -> Self {
        Self {
            read,
            hasher: RandomState::new(),
            known: RwLock::default(),
            ready: watch::Sender::new(false),
        }
    }

    /// An object came or was changed.
    pub fn apply(&self, name: &Arc<str>, object: &K) {
        let (keys, entry) = self.facts(object);
        self.known_mut().put(name, keys, entry);
    }

    /// An object is gone.
    pub fn delete(&self, name: &str) {
        self.known_mut().remove(name);
    }

    /// All there are were told of.
    pub fn listed(&self) {
        self.ready.send_replace(true);
    }

    fn facts(&self, object: &K) -> (Box<[Key]>, Option<E>) {
        let Facts { keys, entry } = (self.read)(object);
        (keys.iter().map(|key| self.key(key)).collect(), entry)
    }
}

impl<K, E> Index<K, E> {
    /// Returns once all were listed for the first time.
    pub async fn wait_until_ready(&self) {
        // The sender is here: it is not gone.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The names of the objects that are found by a text.
    pub fn objects(&self, text: &str) -> Vec<Arc<str>> {
        let known = self.known();
        let found = known.found(self.key(text));
        found.map(|object| object.name.clone()).collect()
    }

    /// Whether any is found by a text.
    pub fn has(&self, text: &str) -> bool {
        self.known().found(self.key(text)).next().is_some()
    }

    /// How many are found by a text.
    pub fn count(&self, text: &str) -> usize {
        self.known().found(self.key(text)).count()
    }

    /// What is kept of each of which anything is, by its name.
    pub fn entries(&self) -> Vec<(Arc<str>, Arc<E>)> {
        let known = self.known();
        let entries = known.objects.iter().filter_map(|(_, object)| {
            let entry = object.entry.clone()?;
            Some((object.name.clone(), entry))
        });
        entries.collect()
    }

    /// What all together take of the nodes.
    pub fn taken(&self) -> Resources {
        self.known().taken
    }

    fn key(&self, text: &str) -> Key {
        self.hasher.hash_one(text)
    }

    fn known(&self) -> RwLockReadGuard<'_, Known<E>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known<E>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E> Known<E> {
    fn found(&self, key: Key) -> impl Iterator<Item = &Object<E>> {
        let numbers = self.found.range((key, 0)..=(key, usize::MAX));
        numbers.filter_map(|(_, number)| self.objects.get(*number))
    }
}

impl<E: Kept> Known<E> {
    fn put(&mut self, name: &Arc<str>, keys: Box<[Key]>, entry: Option<E>) {
        self.remove(name);
        if let Some(takes) = entry.as_ref().and_then(Kept::takes) {
            self.taken = self.taken.plus(takes);
        }
        let entry = entry.map(|mut entry| {
            if let Some(last) = &self.last {
                entry.share(last);
            }
            Arc::new(entry)
        });
        if entry.is_some() {
            self.last.clone_from(&entry);
        }
        let object = Object {
            name: name.clone(),
            keys,
            entry,
        };
        let place = self.objects.vacant_entry();
        let number = place.key();
        self.found.extend(object.keys.iter().map(|key| (*key, number)));
        place.insert(object);
        self.numbers.insert(name.clone(), number);
    }

    fn remove(&mut self, name: &str) {
        let Some(object) = self
            .numbers
            .remove(name)
            .and_then(|number| self.objects.try_remove(number).map(|object| (number, object)))
        else {
            return;
        };
        let (number, object) = object;
        for key in object.keys {
            self.found.remove(&(key, number));
        }
        if let Some(takes) = object.entry.as_deref().and_then(Kept::takes) {
            self.taken = self.taken.minus(takes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object: its keys, and what it takes.
    struct Thing(&'static [&'static str], i64);

    #[derive(Debug, PartialEq)]
    struct Cores(i64);

    impl Kept for Cores {
        fn share(&mut self, _: &Self) {}

        fn takes(&self) -> Option<Resources> {
            (self.0 > 0).then(|| Resources {
                cpu: self.0.to_string().parse().unwrap(),
                ..Resources::NONE
            })
        }
    }

    fn index() -> Index<Thing, Cores> {
        Index::new(|thing| Facts {
            keys: thing.0.iter().map(|key| (*key).to_owned()).collect(),
            entry: Some(Cores(thing.1)),
        })
    }

    fn found(index: &Index<Thing, Cores>, text: &str) -> Vec<String> {
        let mut found: Vec<_> = index.objects(text).iter().map(ToString::to_string).collect();
        found.sort();
        found
    }

    #[test]
    fn what_was_put_is_found_by_each_of_its_keys_and_by_no_older_one() {
        let index = index();
        index.apply(&"a".into(), &Thing(&["x", "y"], 1));
        index.apply(&"b".into(), &Thing(&["y"], 2));
        assert_eq!(found(&index, "x"), ["a"]);
        assert_eq!(found(&index, "y"), ["a", "b"]);
        index.apply(&"a".into(), &Thing(&["z"], 4));
        assert_eq!((found(&index, "x").len(), index.count("y")), (0, 1));
        assert_eq!(index.taken().cpu.to_string(), "6");
        index.delete("b");
        assert_eq!(
            (index.count("y"), index.taken().cpu.to_string()),
            (0, "4".to_owned())
        );
        index.delete("a");
        index.apply(&"c".into(), &Thing(&["z"], 8));
        assert_eq!(found(&index, "z"), ["c"]);
        assert_eq!(index.taken().cpu.to_string(), "8");
        let entries = index.entries();
        assert_eq!(
            entries.iter().map(|(name, e)| (&**name, e.0)).collect::<Vec<_>>(),
            [("c", 8)]
        );
    }
}
