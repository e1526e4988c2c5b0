//! What happens to objects from now on, without what is there already: for whoever reads that when it matters. Reads the cluster.
//!
//! kube's watcher begins with a list of everything, and again whenever it has lost its place: of ten thousand previews' pods, quotas,
//! limits, accounts and network policies that is a hundred megabytes, of which nothing was used.

use std::time::Duration;

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    runtime::watcher::Error,
};
use serde::de::DeserializeOwned;

/// What a watch is given by kube when nothing else is asked for ([`WatchParams::timeout`]), after which the server ends it; and some seconds more.
/// A stream that is silent for longer has no other side.
const SILENT: Duration = Duration::from_secs(295);
const GONE: u16 = 410;

/// What a tail tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<K> {
    /// From here on everything is told. What was before, nobody tells.
    Began,
    /// An object is so now.
    Put(K),
    /// An object is gone; as it was at last.
    Gone(K),
}

type Told<K> = Result<Event<K>, Error>;
type Events<K> = BoxStream<'static, kube::Result<WatchEvent<K>>>;

/// Where a tail is.
enum Place<K> {
    Nowhere,
    /// After this resourceVersion.
    After(String),
    Watching(String, Events<K>),
}

/// What happens to the objects of a kind with these labels. After an error it goes on where it was, or says that it began anew.
pub fn tail<K>(api: Api<K>, labels: Option<&str>) -> impl Stream<Item = Told<K>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let watch = WatchParams {
        label_selector: labels.map(str::to_owned),
        ..WatchParams::default()
    };
    let one = ListParams {
        label_selector: labels.map(str::to_owned),
        limit: Some(1),
        ..ListParams::default()
    };
    stream::unfold(Place::Nowhere, move |mut place| {
        let (api, one, watch) = (api.clone(), one.clone(), watch.clone());
        async move {
            loop {
                let (told, next) = match place {
                    Place::Nowhere => begin(&api, &one).await,
                    Place::After(version) => resume(&api, &watch, version).await,
                    Place::Watching(version, events) => hear(version, events).await,
                };
                match told {
                    Some(told) => return Some((told, next)),
                    None => place = next,
                }
            }
        }
    })
}

/// A list of one says how far the cluster has come: it is as new as any read (Kubernetes API concepts, "Semantics for get and list").
async fn begin<K>(api: &Api<K>, one: &ListParams) -> (Option<Told<K>>, Place<K>)
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.list(one).await {
        Ok(list) => match list
            .metadata
            .resource_version
            .filter(|version| !version.is_empty())
        {
            Some(version) => (Some(Ok(Event::Began)), Place::After(version)),
            None => (Some(Err(Error::NoResourceVersion)), Place::Nowhere),
        },
        Err(error) => (Some(Err(Error::InitialListFailed(error))), Place::Nowhere),
    }
}

async fn resume<K>(api: &Api<K>, watch: &WatchParams, version: String) -> (Option<Told<K>>, Place<K>)
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    match api.watch(watch, &version).await {
        Ok(events) => (None, Place::Watching(version, events.boxed())),
        Err(error) => {
            let lost = matches!(&error, kube::Error::Api(status) if status.code == GONE);
            let place = if lost {
                Place::Nowhere
            } else {
                Place::After(version)
            };
            (Some(Err(Error::WatchStartFailed(error))), place)
        }
    }
}

async fn hear<K: Resource>(version: String, mut events: Events<K>) -> (Option<Told<K>>, Place<K>) {
    let Ok(Some(event)) = tokio::time::timeout(SILENT, events.next()).await else {
        return (None, Place::After(version));
    };
    let told: fn(K) -> Event<K>;
    let object = match event {
        Ok(WatchEvent::Bookmark(mark)) => {
            return (None, Place::Watching(mark.metadata.resource_version, events));
        }
        Ok(WatchEvent::Error(status)) => {
            let place = if status.code == GONE {
                Place::Nowhere
            } else {
                Place::After(version)
            };
            return (Some(Err(Error::WatchError(status))), place);
        }
        // A stream that could not be read may have lost what it was about to say.
        Err(error) => return (Some(Err(Error::WatchFailed(error))), Place::After(version)),
        Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
            told = Event::Put;
            object
        }
        Ok(WatchEvent::Deleted(object)) => {
            told = Event::Gone;
            object
        }
    };
    match object.resource_version().filter(|version| !version.is_empty()) {
        Some(version) => (Some(Ok(told(object))), Place::Watching(version, events)),
        None => (Some(Err(Error::NoResourceVersion)), Place::Nowhere),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use hyper::{Request, Response, StatusCode};
    use k8s_openapi::api::core::v1::ServiceAccount;
    use kube::{Client, client::Body};
    use serde_json::{Value, json};
    use tokio::sync::Notify;

    use super::*;

    /// What an API server is asked, and what it answers to that.
    type Script = [(&'static str, StatusCode, Vec<Value>)];

    /// What a tail tells that is answered so, until there are no more answers.
    async fn heard(script: &Script) -> Vec<String> {
        let left = Arc::new(Mutex::new(VecDeque::from(script.to_vec())));
        let (answers, finished) = (left.clone(), Arc::new(Notify::new()));
        let finish = finished.clone();
        let server = tower::service_fn(move |request: Request<Body>| {
            let answer = answers.lock().unwrap().pop_front();
            let finish = finish.clone();
            async move {
                let Some((asked, status, lines)) = answer else {
                    finish.notify_one();
                    return std::future::pending().await;
                };
                let query = request.uri().query().unwrap_or_default();
                assert!(query.contains(asked), "{query} instead of {asked}");
                assert!(query.contains("labelSelector=in%3Dcells"), "{query}");
                let lines: Vec<_> = lines.iter().map(|line| format!("{line}\n")).collect();
                let body = Body::from(lines.concat().into_bytes());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        let api: Api<ServiceAccount> = Api::all(Client::new(server, "default"));
        let mut told = Box::pin(tail(api, Some("in=cells")));
        let mut heard = vec![];
        loop {
            // It asks again only once it has told everything.
            let event = tokio::select! {
                event = told.next() => event.unwrap(),
                () = finished.notified() => break,
            };
            heard.push(match event {
                Ok(Event::Began) => "began".to_owned(),
                Ok(Event::Put(object)) => format!("put {}", object.name_any()),
                Ok(Event::Gone(object)) => format!("gone {}", object.name_any()),
                Err(Error::WatchStartFailed(_)) => "not begun".to_owned(),
                Err(Error::WatchError(_)) => "ended".to_owned(),
                Err(error) => error.to_string(),
            });
        }
        assert!(left.lock().unwrap().is_empty(), "{heard:?}");
        heard
    }

    fn list(version: &str) -> (&'static str, StatusCode, Vec<Value>) {
        let there = json!({"metadata": {"name": "there", "resourceVersion": "3"}});
        let list = json!({
            "apiVersion": "v1", "kind": "ServiceAccountList",
            "metadata": {"resourceVersion": version, "continue": "more"}, "items": [there]
        });
        ("limit=1", StatusCode::OK, vec![list])
    }

    fn change(what: &str, name: &str, version: &str) -> Value {
        json!({
            "type": what,
            "object": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "resourceVersion": version}}
        })
    }

    fn status(code: StatusCode) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "no", "code": code.as_u16()})
    }

    #[tokio::test]
    async fn what_is_there_is_not_told_and_what_happens_from_then_on_is() {
        let news = vec![
            change("ADDED", "a", "6"),
            change("MODIFIED", "b", "7"),
            change("DELETED", "a", "8"),
        ];
        let told = heard(&[list("5"), ("resourceVersion=5", StatusCode::OK, news)]).await;
        assert_eq!(told, ["began", "put a", "put b", "gone a"]);
    }

    #[tokio::test]
    async fn a_watch_that_ends_goes_on_where_it_was_and_bookmarks_say_where_that_is() {
        let told = heard(&[
            list("5"),
            (
                "resourceVersion=5",
                StatusCode::OK,
                vec![change("BOOKMARK", "", "20")],
            ),
            (
                "resourceVersion=20",
                StatusCode::OK,
                vec![change("ADDED", "a", "21")],
            ),
            ("resourceVersion=21", StatusCode::SERVICE_UNAVAILABLE, vec![]),
            (
                "resourceVersion=21",
                StatusCode::OK,
                vec![change("ADDED", "b", "22")],
            ),
        ])
        .await;
        assert_eq!(told, ["began", "put a", "not begun", "put b"]);
    }

    #[tokio::test]
    async fn one_that_has_lost_its_place_says_that_it_begins_anew() {
        let gone = json!({"type": "ERROR", "object": status(StatusCode::GONE)});
        let told = heard(&[
            list("5"),
            ("resourceVersion=5", StatusCode::OK, vec![gone]),
            list("30"),
            (
                "resourceVersion=30",
                StatusCode::GONE,
                vec![status(StatusCode::GONE)],
            ),
            list("40"),
            (
                "resourceVersion=40",
                StatusCode::OK,
                vec![change("ADDED", "a", "41")],
            ),
        ])
        .await;
        assert_eq!(told, ["began", "ended", "began", "not begun", "began", "put a"]);
    }
}
