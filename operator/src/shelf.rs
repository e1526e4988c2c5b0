//! Objects as the watches have told of them, kept small: each as JSON, compressed against another of its kind. In memory, calls nobody.
//!
//! A typed object of Kubernetes is mostly room for what it does not say, and names and labels that all of its kind have in common:
//! ten kilobytes for a preview with its cell and its slot, of which a few hundred bytes are its own.

use std::{
    collections::HashMap,
    fmt,
    marker::PhantomData,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{DeserializeGuard, PartialObjectMeta, error_boundary::InvalidObject},
    runtime::watcher::Event,
};
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Another sample is taken once an object has so much more to say.
const RICHER: usize = 2;
/// In bytes; larger ones are like no other, and LZ4 looks back 64 KiB only.
const LARGEST: usize = 16 << 10;

/// Of one kind, by `namespace/name`, or `name` alone.
pub struct Shelf<K> {
    known: RwLock<HashMap<Arc<str>, Packed>>,
    /// How many lists were begun.
    lists: AtomicU32,
    /// What objects are compressed against.
    sample: RwLock<Arc<[u8]>>,
    kind: PhantomData<fn() -> K>,
}

#[derive(Clone)]
struct Packed {
    sample: Arc<[u8]>,
    bytes: Box<[u8]>,
    /// Which list it was in, or came after.
    list: u32,
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
            lists: AtomicU32::new(0),
            sample: RwLock::new(Arc::from([])),
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

    /// The names of all.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.known().keys().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known().len()
    }

    /// Whether one is there.
    pub fn has(&self, name: &str) -> bool {
        self.known().contains_key(name)
    }
}

/// What an event has changed on a shelf.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// This one was put there.
    Put(Arc<str>),
    /// A list is whole.
    Listed {
        /// What is not in it.
        gone: Vec<Arc<str>>,
    },
    /// Nothing that was not known before, or something was removed.
    None,
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
    /// A watch tells something; what is there or not because of it.
    pub fn handle(&self, event: &Event<K>) -> Change {
        match event {
            Event::Apply(object) | Event::InitApply(object) => match self.put(object) {
                Some(name) => Change::Put(name),
                None => Change::None,
            },
            Event::Delete(object) => {
                self.known_mut().remove(object.key().as_str());
                Change::None
            }
            // What was known stays until the list is whole: two of everything would be twice as large.
            Event::Init => {
                self.lists.fetch_add(1, Ordering::Relaxed);
                Change::None
            }
            Event::InitDone => {
                let (list, mut gone) = (self.lists.load(Ordering::Relaxed), vec![]);
                self.known_mut().retain(|name, packed| {
                    if packed.list != list {
                        gone.push(name.clone());
                    }
                    packed.list == list
                });
                Change::Listed { gone }
            }
        }
    }

    fn put(&self, object: &K) -> Option<Arc<str>> {
        let packed = self.pack(object)?;
        let (mut known, name) = (self.known_mut(), object.key());
        // The name that is kept, which others keep as well.
        let kept = known.get_key_value(name.as_str()).map(|(name, _)| name.clone());
        let name = kept.unwrap_or_else(|| name.into());
        known.insert(name.clone(), packed);
        Some(name)
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

    /// Shows every object, and lets others have their turn in between.
    pub async fn show(&self, mut show: impl FnMut(K)) {
        for name in self.names() {
            tokio::task::coop::consume_budget().await;
            if let Some(object) = self.get(&name) {
                show(object);
            }
        }
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
        if json.len() > sample.len() * RICHER && json.len() <= LARGEST {
            sample = Arc::from(json.as_slice());
            *self.sample.write().unwrap_or_else(PoisonError::into_inner) = sample.clone();
        }
        let bytes = compress_prepend_size_with_dict(&json, &sample).into_boxed_slice();
        let list = self.lists.load(Ordering::Relaxed);
        Some(Packed { sample, bytes, list })
    }
}

impl<K> Shelf<DeserializeGuard<K>> {
    /// Shows of each object that can be read what `T` wants of it. The rest is not read, which is most of the work where all are looked at;
    /// and others have their turn in between: ten thousand at a stretch are a tenth of a second, for which a claim on this thread waited.
    pub async fn skim<T: DeserializeOwned>(&self, mut show: impl FnMut(T)) {
        for name in self.names() {
            tokio::task::coop::consume_budget().await;
            let packed = self.known().get(&name).cloned();
            let read = packed.and_then(|packed| unpack_as(&packed, |json| serde_json::from_slice(json)));
            if let Some(Read::Whole(part)) = read {
                show(part);
            }
        }
    }
}

fn unpack<K: Shelved>(packed: &Packed) -> Option<K> {
    unpack_as(packed, K::from_json)
}

fn unpack_as<T>(packed: &Packed, read: impl FnOnce(&[u8]) -> serde_json::Result<T>) -> Option<T> {
    let json = decompress_size_prepended_with_dict(&packed.bytes, &packed.sample);
    let json = json.map_err(|error| error.to_string());
    let read = json.and_then(|json| read(&json).map_err(|error| error.to_string()));
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
    fn what_is_not_in_a_list_goes_once_the_list_is_whole() {
        let shelf = Shelf::default();
        shelf.handle(&Event::Apply(cell("gone", "1")));
        shelf.handle(&Event::Init);
        shelf.handle(&Event::InitApply(cell("gone", "1")));
        // That list was broken off, and another begins.
        shelf.handle(&Event::Init);
        shelf.handle(&Event::InitApply(cell("a", "2")));
        assert_eq!(all(&shelf), ["a", "gone"]);
        let gone = vec!["gone".into()];
        assert_eq!(shelf.handle(&Event::InitDone), Change::Listed { gone });
        assert_eq!(all(&shelf), ["a"]);
        // What comes after a list is as good as what was in it.
        shelf.handle(&Event::Apply(cell("b", "3")));
        shelf.handle(&Event::Init);
        for name in ["a", "b"] {
            shelf.handle(&Event::InitApply(cell(name, "4")));
        }
        assert_eq!(shelf.handle(&Event::InitDone), Change::Listed { gone: vec![] });
    }

    #[tokio::test]
    async fn what_is_skimmed_is_a_part_of_each_that_can_be_read() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Named {
            metadata: ObjectMeta,
        }
        let shelf = Shelf::default();
        let read: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["x"]}}))
                .unwrap();
        let metadata = read.metadata.clone();
        shelf.handle(&Event::Apply(DeserializeGuard(Ok(read))));
        let invalid = InvalidObject {
            error: "no".into(),
            metadata: cell("b", "1").metadata,
        };
        shelf.handle(&Event::Apply(DeserializeGuard::<Namespace>(Err(invalid))));
        let mut shown = vec![];
        shelf.skim(|named: Named| shown.push(named)).await;
        assert_eq!(shown, [Named { metadata }]);
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
