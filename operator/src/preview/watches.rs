//! The watches: what of each kind is kept, and who is told. Reads the cluster.

use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt, channel::mpsc, stream};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node},
};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store, reflector},
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use vitrine_policies::{names, slots};

use super::{
    Guarded,
    held::{self, Held},
    index::{Index, Kept},
};
use crate::{
    api,
    shelf::{Change, Shelf, Shelved},
};

/// All objects of a kind.
pub fn everything() -> watcher::Config {
    watcher::Config::default().page_size(api::PAGE)
}

/// Those in cells, and cells themselves.
pub fn in_cells() -> watcher::Config {
    everything().labels(names::CELL_SELECTOR)
}

/// The same, of those that are told of by their metadata alone.
pub fn bare_ones(config: watcher::Config) -> watcher::Config {
    config.page_size(api::PAGE_OF_METADATA)
}

/// All objects of a kind, by their metadata alone.
pub fn meta<K>(client: &kube::Client) -> Api<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()>,
{
    Api::all(client.clone())
}

/// Without what is large and only the API server's own.
pub fn bare<K>(object: &mut PartialObjectMeta<K>) {
    object.metadata.managed_fields = None;
}

/// A preview without what is only the API server's own, and without what only who looks at it needs: he reads it anew.
pub fn bare_preview(guarded: &mut Guarded) {
    let Ok(preview) = &mut guarded.0 else { return };
    preview.metadata.managed_fields = None;
    // Anybody may have written 256 KiB into these, and nobody reads them here.
    preview.metadata.annotations = None;
    preview.metadata.labels = None;
    let Some(status) = &mut preview.status else { return };
    for condition in &mut status.conditions {
        condition.message = String::new();
    }
    status.url = None;
    status.isolation = None;
    if let Some(receipt) = status
        .receipt
        .as_mut()
        .filter(|receipt| receipt.delivered_at.is_some())
    {
        receipt.signed = None;
    }
}

/// A node without what is large and not needed to know its room.
pub fn bare_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

/// What is told of one kind, once its store has it: what happened before is looked at then, and what happens after finds it there.
pub type News<K> = mpsc::UnboundedReceiver<Result<K, watcher::Error>>;

/// A store that a watch of its own keeps, and its news for so many who want them.
pub fn stored<K, const N: usize>(
    reflectors: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    prune: fn(&mut K),
) -> (Store<K>, [News<K>; N])
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (told, news) = channels();
    let known = store.clone();
    let events = reflector(writer, watcher(api, config).backoff(api::Again).modify(prune));
    reflectors.spawn(events.for_each(move |event| {
        let touched = match event {
            Ok(Event::Apply(object) | Event::Delete(object)) => vec![object],
            // Only now does the store have what was listed.
            Ok(Event::InitDone) => {
                let all = known.state();
                all.iter().map(|object| object.as_ref().clone()).collect()
            }
            Ok(Event::Init | Event::InitApply(_)) => vec![],
            Err(error) => {
                interrupted::<K>(&error);
                vec![]
            }
        };
        for object in touched {
            tell(&told, || Ok(object.clone()));
        }
        std::future::ready(())
    }));
    (store, news)
}

/// The objects of news without what went wrong, which was told.
pub fn well<K>(news: News<K>) -> impl Stream<Item = K> {
    news.filter_map(|object| std::future::ready(object.ok()))
}

/// One of many objects that a watch has told of.
pub enum Told<K> {
    /// It is there, by this name.
    There(Arc<str>),
    /// These are all.
    Listed(Vec<Arc<str>>),
    /// It is gone; as it was at last.
    Gone(Box<K>),
}

/// A shelf that a watch of its own keeps, with an index, and its news for so many who want them.
pub fn shelved<K, E, const N: usize>(
    reflectors: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    prune: fn(&mut K),
    index: &Arc<Index<K, E>>,
) -> (Arc<Shelf<K>>, [mpsc::UnboundedReceiver<Told<K>>; N])
where
    K: Resource<DynamicType = ()>
        + Shelved
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
    E: Kept + Send + Sync + 'static,
{
    let shelf = Arc::new(Shelf::default());
    let (told, news) = channels();
    let (known, index) = (shelf.clone(), index.clone());
    follow(reflectors, api, config, move |event| {
        let event = event.modify(prune);
        match (known.handle(&event), event) {
            (Change::Put(name), Event::Apply(object)) => {
                index.apply(&name, &object);
                tell(&told, || Told::There(name.clone()));
            }
            // Told of once the list is whole.
            (Change::Put(name), Event::InitApply(object)) => index.apply(&name, &object),
            (_, Event::Delete(object)) => {
                index.delete(&object.key());
                tell(&told, || Told::Gone(Box::new(object.clone())));
            }
            (Change::Listed { gone }, _) => {
                for name in gone {
                    index.delete(&name);
                }
                index.listed();
                tell(&told, || Told::Listed(known.names()));
            }
            _ => {}
        }
    });
    (shelf, news)
}

/// All receipts of the spool, without what is in them.
pub fn spooled(
    reflectors: &mut JoinSet<()>,
    api: Api<PartialObjectMeta<ConfigMap>>,
) -> Arc<Shelf<PartialObjectMeta<ConfigMap>>> {
    let shelf = Arc::new(Shelf::default());
    let known = shelf.clone();
    let of_receipts = bare_ones(everything()).labels(vitrine_receipts::names::STATE_LABEL);
    follow(reflectors, api, of_receipts, move |event| {
        known.handle(&event.modify(bare));
    });
    shelf
}

/// All slots, as a watch of their own tells of them, and what it tells.
pub fn held(
    reflectors: &mut JoinSet<()>,
    api: Api<PartialObjectMeta<Lease>>,
) -> (Arc<Held>, mpsc::UnboundedReceiver<held::Told>) {
    let slots = Arc::new(Held::default());
    let (told, [news]) = channels();
    let known = slots.clone();
    let of_slots = bare_ones(everything()).labels(slots::DIMENSION_LABEL);
    follow(reflectors, api, of_slots, move |event| {
        if let Some(news) = known.handle(&event) {
            tell(&told, || news.clone());
        }
    });
    (slots, news)
}

/// The objects themselves, as they are when somebody comes to look at them; without what was told before anybody listened, for then all are
/// looked at.
pub fn objects<K: Shelved + Send + 'static>(
    shelf: &Arc<Shelf<K>>,
    mut news: mpsc::UnboundedReceiver<Told<K>>,
) -> impl Stream<Item = K> + Send + 'static {
    let shelf = shelf.clone();
    let from_now_on = stream::once(async move {
        while news.next().now_or_never().flatten().is_some() {}
        news
    });
    from_now_on.flatten().flat_map(move |told| {
        let (names, gone) = match told {
            Told::There(name) => (vec![name], None),
            Told::Listed(names) => (names, None),
            Told::Gone(object) => (vec![], Some(*object)),
        };
        let shelf = shelf.clone();
        stream::iter(
            names
                .into_iter()
                .filter_map(move |name| shelf.get(&name))
                .chain(gone),
        )
    })
}

/// Has a watch of its own tell somebody what it tells, for as long as it lasts.
fn follow<K>(
    reflectors: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    mut handle: impl FnMut(Event<K>) + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = streamed(api, config).backoff(api::Again);
    reflectors.spawn(events.for_each(move |event| {
        match event {
            Ok(event) => handle(event),
            Err(error) => interrupted::<K>(&error),
        }
        std::future::ready(())
    }));
}

/// Everything of a kind, and what happens to it. What the API server can stream comes while what came before is read; a page at a time, one
/// of both waits for the other. It streams from Kubernetes 1.34 on, unless its feature gate WatchList is off.
fn streamed<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let events = watcher(api.clone(), config.clone().streaming_lists()).boxed();
    stream::unfold((events, Some((api, config))), async |(mut events, mut paged)| {
        loop {
            let event = events.next().await?;
            match paged.take_if(|_| matches!(&event, Err(error) if is_not_streamed(error))) {
                Some((api, config)) => events = watcher(api, config).boxed(),
                None => return Some((event, (events, paged))),
            }
        }
    })
}

/// The API server's answer to who asks for a stream where the feature gate is off.
fn is_not_streamed(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.is_invalid())
}

fn channels<T, const N: usize>() -> (Vec<mpsc::UnboundedSender<T>>, [mpsc::UnboundedReceiver<T>; N]) {
    let mut told = vec![];
    let news = std::array::from_fn(|_| {
        let (tell, hear) = mpsc::unbounded();
        told.push(tell);
        hear
    });
    (told, news)
}

fn tell<T>(all: &[mpsc::UnboundedSender<T>], what: impl Fn() -> T) {
    for one in all {
        // Without a controller nobody listens.
        let _ = one.unbounded_send(what());
    }
}

fn interrupted<K: Resource<DynamicType = ()>>(error: &watcher::Error) {
    tracing::warn!(%error, kind = %K::kind(&()), "a watch was interrupted");
}
