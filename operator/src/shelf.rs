//! Objects as the watches have told of them, kept small: each as JSON, compressed against another of its kind. In memory, calls nobody.
//!
//! A typed object of Kubernetes is mostly room for what it does not say, and names and labels that all of its kind have in common:
//! ten kilobytes for a preview with its cell and its slot, of which a few hundred bytes are its own.

use std::{
    collections::HashMap,
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{DeserializeGuard, PartialObjectMeta, error_boundary::InvalidObject},
    runtime::watcher::Event,
};
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

/// Another sample is taken once an object has so much more to say.
const RICHER: usize = 2;

/// Of one kind, by `namespace/name`, or `name` alone.
pub struct Shelf<K> {
    known: RwLock<HashMap<Arc<str>, Packed>>,
    /// What a list that is under way has told so far.
    listed: Mutex<HashMap<Arc<str>, Packed>>,
    /// What objects are compressed against.
    sample: RwLock<Arc<[u8]>>,
    ready: watch::Sender<bool>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Clone)]
struct Packed {
    sample: Arc<[u8]>,
    bytes: Box<[u8]>,
}

impl<K> fmt::Debug for Shelf<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf")
            .field("objects", &self.known().len())
            .finish_non_exhaustive()
    }
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            listed: Mutex::default(),
            sample: RwLock::new(Arc::from([])),
            ready: watch::Sender::new(false),
            kind: PhantomData,
        }
    }
}

impl<K> Shelf<K> {
    fn known(&self) -> RwLockReadGuard<'_, HashMap<Arc<str>, Packed>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, HashMap<Arc<str>, Packed>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once all were listed for the first time.
    pub async fn wait_until_ready(&self) {
        // The sender is here: it is not gone.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The names of all.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.known().keys().cloned().collect()
    }

    /// Whether one is there.
    pub fn has(&self, name: &str) -> bool {
        self.known().contains_key(name)
    }
}

/// What a shelf can hold.
pub trait Shelved: Sized {
    /// `namespace/name`, or `name` alone.
    fn key(&self) -> String;
    /// As JSON.
    fn to_json(&self) -> serde_json::Result<Vec<u8>>;
    /// From that.
    fn from_json(json: &[u8]) -> serde_json::Result<Self>;
}

impl<K: Resource<DynamicType = ()>> Shelved for PartialObjectMeta<K> {
    fn key(&self) -> String {
        key(&self.metadata)
    }

    fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&self.metadata)
    }

    fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        Ok(Self {
            types: None,
            metadata: serde_json::from_slice(json)?,
            _phantom: PhantomData,
        })
    }
}

/// One that can be read, or what is known of one that cannot.
#[derive(Serialize, Deserialize)]
enum Read<K> {
    Whole(K),
    Invalid {
        error: String,
        metadata: Box<ObjectMeta>,
    },
}

impl<K: Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned> Shelved for DeserializeGuard<K> {
    fn key(&self) -> String {
        key(self.meta())
    }

    fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&match &self.0 {
            Ok(object) => Read::Whole(object.clone()),
            Err(invalid) => Read::Invalid {
                error: invalid.error.clone(),
                metadata: Box::new(invalid.metadata.clone()),
            },
        })
    }

    fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        Ok(Self(match serde_json::from_slice(json)? {
            Read::Whole(object) => Ok(object),
            Read::Invalid { error, metadata } => Err(InvalidObject {
                error,
                metadata: *metadata,
            }),
        }))
    }
}

/// What an object is found by.
pub fn key(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

impl<K: Shelved> Shelf<K> {
    /// A watch tells something.
    pub fn handle(&self, event: &Event<K>) {
        let listed = || self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                if let Some(packed) = self.pack(object) {
                    self.known_mut().insert(object.key().into(), packed);
                }
            }
            Event::Delete(object) => {
                self.known_mut().remove(object.key().as_str());
            }
            Event::Init => *listed() = HashMap::new(),
            Event::InitApply(object) => {
                if let Some(packed) = self.pack(object) {
                    listed().insert(object.key().into(), packed);
                }
            }
            Event::InitDone => {
                let all = std::mem::take(&mut *listed());
                *self.known_mut() = all;
                self.ready.send_replace(true);
            }
        }
    }

    /// An object, as the watch has it.
    pub fn get(&self, name: &str) -> Option<K> {
        let packed = self.known().get(name).cloned()?;
        unpack(&packed)
    }

    /// Every object, one at a time: all together would be as large as what this is to avoid.
    pub fn each(&self) -> impl Iterator<Item = K> {
        self.names().into_iter().filter_map(|name| self.get(&name))
    }

    fn pack(&self, object: &K) -> Option<Packed> {
        let json = match object.to_json() {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(object = object.key(), %error, "an object cannot be kept");
                return None;
            }
        };
        let mut sample = self.sample.read().unwrap_or_else(PoisonError::into_inner).clone();
        if json.len() > sample.len() * RICHER {
            sample = Arc::from(json.as_slice());
            *self.sample.write().unwrap_or_else(PoisonError::into_inner) = sample.clone();
        }
        let bytes = compress_prepend_size_with_dict(&json, &sample).into_boxed_slice();
        Some(Packed { sample, bytes })
    }
}

fn unpack<K: Shelved>(packed: &Packed) -> Option<K> {
    let json = decompress_size_prepended_with_dict(&packed.bytes, &packed.sample);
    let read = json.map_err(|error| error.to_string());
    let read = read.and_then(|json| K::from_json(&json).map_err(|error| error.to_string()));
    // What was packed here can be read here.
    read.inspect_err(|error| tracing::error!(error, "an object that was kept cannot be read"))
        .ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::ResourceExt;
    use serde_json::json;

    use super::*;

    type Meta = PartialObjectMeta<Namespace>;

    fn cell(name: &str, uid: &str) -> Meta {
        let metadata = json!({
            "name": name, "uid": uid, "labels": {"pod-security.kubernetes.io/enforce": "restricted", "vitrine.dev/cell": "true"},
            "annotations": {"vitrine.dev/epoch": uid, "vitrine.dev/since": "2026-01-01T00:00:00Z"}
        });
        Meta {
            metadata: serde_json::from_value(metadata).unwrap(),
            ..Meta::default()
        }
    }

    fn all(shelf: &Shelf<Meta>) -> Vec<String> {
        let mut all: Vec<_> = shelf.each().map(|cell| cell.name_any()).collect();
        all.sort();
        all
    }

    #[test]
    fn what_was_put_is_found_as_it_was() {
        let shelf = Shelf::default();
        let (a, b) = (cell("a", "1"), cell("b", "2"));
        shelf.handle(&Event::Apply(a.clone()));
        shelf.handle(&Event::Apply(b.clone()));
        assert_eq!(shelf.get("a").map(|cell| cell.metadata), Some(a.metadata));
        assert_eq!(all(&shelf), ["a", "b"]);
        let newer = cell("b", "3");
        shelf.handle(&Event::Apply(newer.clone()));
        assert_eq!(
            shelf.get("b").map(|cell| cell.metadata),
            Some(newer.metadata.clone())
        );
        shelf.handle(&Event::Delete(newer));
        assert!(shelf.get("b").is_none() && !shelf.has("b"));
    }

    #[test]
    fn a_list_replaces_what_was_there_once_it_is_whole() {
        let shelf = Shelf::default();
        shelf.handle(&Event::Apply(cell("gone", "1")));
        shelf.handle(&Event::Init);
        shelf.handle(&Event::InitApply(cell("a", "2")));
        assert_eq!(all(&shelf), ["gone"]);
        shelf.handle(&Event::InitDone);
        assert_eq!(all(&shelf), ["a"]);
    }

    #[test]
    fn what_all_of_a_kind_have_in_common_is_kept_once() {
        let shelf = Shelf::default();
        for number in 0..100 {
            shelf.handle(&Event::Apply(cell(
                &format!("cell-{number}"),
                &format!("uid-{number}"),
            )));
        }
        let json = cell("cell-7", "uid-7").to_json().unwrap().len();
        let kept = shelf.known().get("cell-7").unwrap().bytes.len();
        assert!(kept * 3 < json, "{kept} of {json} bytes");
        // One with more to say is kept as well, and those after it against it.
        let mut rich = cell("rich", "1");
        rich.metadata
            .annotations
            .get_or_insert_default()
            .insert("more".into(), "0123456789".repeat(100));
        shelf.handle(&Event::Apply(rich.clone()));
        assert_eq!(shelf.get("rich").map(|cell| cell.metadata), Some(rich.metadata));
        assert_eq!(
            shelf.get("cell-7").map(|cell| cell.name_any()),
            Some("cell-7".to_owned())
        );
    }
}
