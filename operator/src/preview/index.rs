//! Finds what a watch has stored by something else than its name, and sums up what it takes: without, each preview costs more the
//! more there are. In memory, calls nobody.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::Resource;
use tokio::sync::watch;
use vitrine_policies::capacity::Resources;

use crate::shelf::key;

/// What an object is found by, and what it takes of the nodes.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The texts by which it is found.
    pub keys: Vec<String>,
    /// What it takes, if anything.
    pub takes: Option<Resources>,
}

/// Reads them from an object.
pub type Read<K> = fn(&K) -> Facts;

/// Two independent 64-bit hashes of a text: as good as the text, and a tenth of its size.
type Key = u128;

/// Of one kind of object.
pub struct Index<K> {
    read: Read<K>,
    hashers: [RandomState; 2],
    known: RwLock<Known>,
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    objects: HashMap<Arc<str>, Object>,
    found: HashMap<Key, Vec<Arc<str>>>,
    taken: Taken,
}

struct Object {
    keys: Box<[Key]>,
    takes: Option<Resources>,
}

/// The sum of what all take.
#[derive(Clone, Copy)]
struct Taken(Resources);

impl Default for Taken {
    fn default() -> Self {
        Self(Resources::NONE)
    }
}

impl<K> fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("objects", &self.known().objects.len())
            .finish_non_exhaustive()
    }
}

impl<K: Resource> Index<K> {
    /// An empty one.
    pub fn new(read: Read<K>) -> Self {
        Self {
            read,
            hashers: [RandomState::new(), RandomState::new()],
            known: RwLock::default(),
            ready: watch::Sender::new(false),
        }
    }

    /// An object came or was changed.
    pub fn apply(&self, object: &K) {
        let facts = (self.read)(object);
        let keys = facts.keys.iter().map(|key| self.key(key)).collect();
        self.known_mut().put(key(object.meta()).into(), keys, facts.takes);
    }

    /// An object is gone.
    pub fn delete(&self, object: &K) {
        self.known_mut().remove(&key(object.meta()));
    }

    /// These are all there are.
    pub fn replace(&self, all: impl Iterator<Item = K>) {
        let mut known = Known::default();
        for object in all {
            let facts = (self.read)(&object);
            let keys = facts.keys.iter().map(|key| self.key(key)).collect();
            known.put(key(object.meta()).into(), keys, facts.takes);
        }
        *self.known_mut() = known;
        self.ready.send_replace(true);
    }

    /// Returns once all were listed for the first time.
    pub async fn wait_until_ready(&self) {
        // The sender is here: it is not gone.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The objects that are found by a text: `namespace/name`, or `name` alone.
    pub fn objects(&self, text: &str) -> Vec<Arc<str>> {
        let key = self.key(text);
        self.known().found.get(&key).cloned().unwrap_or_default()
    }

    /// How many are found by a text.
    pub fn count(&self, text: &str) -> usize {
        let key = self.key(text);
        self.known().found.get(&key).map_or(0, Vec::len)
    }

    /// What all together take of the nodes.
    pub fn taken(&self) -> Resources {
        self.known().taken.0
    }

    fn key(&self, text: &str) -> Key {
        let [high, low] = [0, 1].map(|one: usize| Key::from(self.hashers[one].hash_one(text)));
        high << 64 | low
    }
}

impl<K> Index<K> {
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn put(&mut self, name: Arc<str>, keys: Box<[Key]>, takes: Option<Resources>) {
        self.remove(&name);
        for key in &keys {
            self.found.entry(*key).or_default().push(name.clone());
        }
        if let Some(takes) = takes {
            self.taken.0 = self.taken.0.plus(takes);
        }
        self.objects.insert(name, Object { keys, takes });
    }

    fn remove(&mut self, name: &str) {
        let Some(Object { keys, takes }) = self.objects.remove(name) else {
            return;
        };
        for key in keys {
            if let Some(found) = self.found.get_mut(&key) {
                if let Some(at) = found.iter().position(|one| **one == *name) {
                    found.swap_remove(at);
                }
                if found.is_empty() {
                    self.found.remove(&key);
                }
            }
        }
        if let Some(takes) = takes {
            self.taken.0 = self.taken.0.minus(takes);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str, keys: &[&str], cpu: i64) -> ConfigMap {
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name}, "data": {"keys": keys.join(" "), "cpu": cpu.to_string()}
        }))
        .unwrap()
    }

    fn read(map: &ConfigMap) -> Facts {
        let data = map.data.clone().unwrap_or_default();
        Facts {
            keys: data["keys"].split_whitespace().map(str::to_owned).collect(),
            takes: Some(Resources {
                cpu: data["cpu"].parse().unwrap(),
                ..Resources::NONE
            }),
        }
    }

    fn found(index: &Index<ConfigMap>, text: &str) -> Vec<String> {
        let mut found: Vec<_> = index.objects(text).iter().map(ToString::to_string).collect();
        found.sort();
        found
    }

    #[test]
    fn what_was_put_is_found_by_each_of_its_keys_and_by_no_older_one() {
        let index = Index::new(read);
        index.apply(&map("a", &["x", "y"], 1));
        index.apply(&map("b", &["y"], 2));
        assert_eq!(found(&index, "x"), ["shop/a"]);
        assert_eq!(found(&index, "y"), ["shop/a", "shop/b"]);
        index.apply(&map("a", &["z"], 4));
        assert_eq!((found(&index, "x").len(), index.count("y")), (0, 1));
        assert_eq!(index.taken().cpu.to_string(), "6");
        index.delete(&map("b", &[], 0));
        assert_eq!(
            (index.count("y"), index.taken().cpu.to_string()),
            (0, "4".to_owned())
        );
        index.replace([map("c", &["z"], 8)].into_iter());
        assert_eq!(found(&index, "z"), ["shop/c"]);
        assert_eq!(index.taken().cpu.to_string(), "8");
    }
}
