//! Which host leads to which preview, until when: fed by the watch, asked by every request. Reads the cluster.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use hyper::header::HeaderValue;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use tokio::{sync::watch, time::Instant};
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_policies::names;

use super::headers;
use crate::{health::Readiness, link::KeyRing, link_keys};

/// Where a preview is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upstream {
    /// The pod's address.
    pub(super) ip: IpAddr,
    /// The product's port.
    pub(super) port: u16,
    /// When traffic ends.
    pub(super) expires: Timestamp,
    /// What its script may do in a visitor's browser.
    pub(super) policy: HeaderValue,
}

/// What a host label leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A preview that lives.
    Open(Upstream),
    /// A preview that is not, or no longer, to be had.
    Closed(Phase),
}

/// The routes.
#[derive(Default)]
pub(super) struct Routes {
    by_label: RwLock<HashMap<String, watch::Sender<Route>>>,
    keys: RwLock<KeyRing>,
}

impl Routes {
    /// What a label leads to now, to be followed as it changes.
    pub(super) fn find(&self, label: &str) -> Option<watch::Receiver<Route>> {
        self.by_label
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(label)
            .map(watch::Sender::subscribe)
    }

    /// The keys of links.
    pub(super) fn keys(&self) -> KeyRing {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, preview: &PreviewSandbox) {
        let Some(uid) = preview.uid() else { return };
        let route = route(preview);
        let mut routes = self.by_label.write().unwrap_or_else(PoisonError::into_inner);
        match routes.get(&names::host_label(&uid)) {
            Some(sender) => {
                sender.send_if_modified(|current| {
                    let changed = *current != route;
                    *current = route;
                    changed
                });
            }
            None => {
                routes.insert(names::host_label(&uid), watch::Sender::new(route));
            }
        }
    }

    /// Forgets a preview. Dropping the sender cuts every connection that follows it.
    fn forget(&self, uid: &str) {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&names::host_label(uid));
    }

    fn keep_only(&self, labels: &std::collections::HashSet<String>) {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|label, _| labels.contains(label));
    }
}

/// What a preview's status means to traffic. Pure.
fn route(preview: &PreviewSandbox) -> Route {
    let Some(status) = &preview.status else {
        return Route::Closed(Phase::Queued);
    };
    let upstream = || {
        let (pod, envelope) = (status.pod.as_ref()?, status.envelope.as_ref()?);
        Some(Upstream {
            ip: pod.ip.as_ref()?.parse().ok()?,
            port: u16::try_from(pod.port).ok()?,
            expires: status.expires_at.as_ref()?.0,
            policy: headers::policy(&envelope.egress, &envelope.frame_ancestors)?,
        })
    };
    match (status.phase, upstream()) {
        (Phase::Ready, Some(upstream)) => Route::Open(upstream),
        (phase, _) => Route::Closed(phase),
    }
}

/// Follows previews and link keys for ever.
pub(super) async fn follow(client: Client, namespace: &str, routes: &Routes, readiness: &Readiness) {
    readiness.missing("previews", "not listed yet");
    readiness.missing(
        "link-keys",
        format!("ConfigMap {namespace}/{} was not read yet", link_keys::NAME),
    );
    tokio::join!(
        previews(client.clone(), routes, readiness),
        keys(client, namespace, routes, readiness)
    );
}

async fn previews(client: Client, routes: &Routes, readiness: &Readiness) {
    let api: Api<DeserializeGuard<PreviewSandbox>> = Api::all(client);
    let mut seen = std::collections::HashSet::new();
    let mut events = kube::runtime::watcher(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => seen.clear(),
            Ok(Some(Event::InitApply(guarded))) => {
                if let Ok(preview) = &guarded.0 {
                    seen.extend(preview.uid().map(|uid| names::host_label(&uid)));
                    routes.set(preview);
                }
            }
            Ok(Some(Event::InitDone)) => {
                routes.keep_only(&seen);
                readiness.present("previews");
            }
            Ok(Some(Event::Apply(guarded))) => {
                if let Ok(preview) = &guarded.0 {
                    routes.set(preview);
                }
            }
            Ok(Some(Event::Delete(guarded))) => {
                if let Ok(preview) = &guarded.0 {
                    routes.forget(&preview.uid().unwrap_or_default());
                }
            }
            // What is known stays good: every route has its own end.
            Err(error) => tracing::warn!(%error, "the watch of previews broke, going on with what is known"),
            Ok(None) => return,
        }
    }
}

async fn keys(client: Client, namespace: &str, routes: &Routes, readiness: &Readiness) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut maps = kube::runtime::watcher::watch_object(api, link_keys::NAME)
        .default_backoff()
        .boxed();
    loop {
        match maps.try_next().await {
            Ok(Some(Some(map))) => {
                let ring = KeyRing::read(&map.data.unwrap_or_default());
                if !ring.is_empty() {
                    readiness.present("link-keys");
                }
                *routes.keys.write().unwrap_or_else(PoisonError::into_inner) = ring;
            }
            Ok(Some(None)) => {
                readiness.missing("link-keys", "the ConfigMap is gone: is the operator running?");
            }
            Err(error) => tracing::warn!(%error, "the watch of link keys broke, going on with what is known"),
            Ok(None) => return,
        }
    }
}

/// What a visitor's connection hangs on: once it carried a preview's traffic it ends with that preview.
#[derive(Default)]
pub(super) struct Lifeline {
    follows: watch::Sender<Option<watch::Receiver<Route>>>,
}

impl Lifeline {
    /// From now on the connection ends when this route does.
    pub(super) fn hang_on(&self, route: &watch::Receiver<Route>) {
        self.follows.send_replace(Some(route.clone()));
    }

    /// Returns when the connection must end.
    pub(super) async fn cut(&self) {
        let mut follows = self.follows.subscribe();
        loop {
            let route = follows.borrow_and_update().clone();
            match route {
                None => {
                    if follows.changed().await.is_err() {
                        return;
                    }
                }
                Some(route) => {
                    tokio::select! {
                        () = end(route) => return,
                        changed = follows.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }
}

/// Returns when a route ends: by the gateway's own clock, by the preview's status, or because it is forgotten.
pub(super) async fn end(mut route: watch::Receiver<Route>) {
    loop {
        let expires = match &*route.borrow_and_update() {
            Route::Open(upstream) => upstream.expires,
            Route::Closed(_) => return,
        };
        let left = Duration::try_from(expires.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep_until(Instant::now() + left) => return,
            changed = route.changed() => if changed.is_err() { return },
        }
    }
}

/// A shared handle.
pub(super) type SharedRoutes = Arc<Routes>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn preview(phase: &str, expires: Timestamp) -> PreviewSandbox {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox", "metadata": {"name": "a", "uid": "u"},
            "spec": {"listingRef": {"name": "l"}, "subject": "s"},
            "status": {"phase": phase, "expiresAt": expires.to_string(), "pod": {"uid": "p", "ip": "10.244.0.7", "port": 8090},
                "envelope": {"ttl": "1m", "ttlCap": "1m", "provisioningDeadline": "1m", "proofDeadline": "1m", "image": "i",
                    "port": 8090, "landingPath": "/", "listing": "u/1",
                    "size": {"cpu": "1", "memory": "1Mi", "ephemeralStorage": "1Mi"}}}
        }))
        .unwrap()
    }

    fn soon(millis: i64) -> Timestamp {
        Timestamp::now() + jiff::SignedDuration::from_millis(millis)
    }

    #[test]
    fn only_a_ready_preview_is_open() {
        assert!(matches!(route(&preview("Ready", soon(1000))), Route::Open(_)));
        for phase in ["Queued", "Proving", "Ending", "Ended", "Failed", "Refused"] {
            assert!(
                matches!(route(&preview(phase, soon(1000))), Route::Closed(_)),
                "{phase}"
            );
        }
    }

    #[tokio::test]
    async fn a_connection_is_cut_by_the_clock_even_if_nobody_says_so() {
        let routes = Routes::default();
        routes.set(&preview("Ready", soon(150)));
        let lifeline = Lifeline::default();
        lifeline.hang_on(&routes.find(&names::host_label("u")).unwrap());
        tokio::time::timeout(Duration::from_secs(5), lifeline.cut())
            .await
            .unwrap();
        assert!(Timestamp::now() >= soon(-5000));
    }

    #[tokio::test]
    async fn a_connection_is_cut_when_its_preview_ends_early_or_is_forgotten() {
        for by in ["status", "deletion"] {
            let routes = Routes::default();
            routes.set(&preview("Ready", soon(60_000)));
            let lifeline = Lifeline::default();
            lifeline.hang_on(&routes.find(&names::host_label("u")).unwrap());
            if by == "status" {
                routes.set(&preview("Ending", soon(60_000)))
            } else {
                routes.forget("u")
            }
            tokio::time::timeout(Duration::from_secs(5), lifeline.cut())
                .await
                .unwrap();
        }
    }
}
