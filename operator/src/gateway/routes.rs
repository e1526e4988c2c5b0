//! Which host leads to which preview, until when: fed by the watch, asked by every request. Reads the cluster.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use hyper::header::HeaderValue;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt, runtime::WatchStreamExt};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use vitrine_crds::{Phase, PreviewPolicySpec, PreviewSandbox};
use vitrine_policies::names;
use vitrine_program::Readiness;

use super::{
    headers,
    upstream::Idle,
    usage::{Activity, Limits, Usage},
};
use crate::{
    api,
    follow::{self, Table},
    link::{KeyRing, LastGood},
    link_keys,
};

/// How long a watch may be behind an operator on a busy API server, and a visitor wait for it.
const BEHIND: Duration = Duration::from_secs(5);

/// Where a preview is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upstream {
    /// The preview, `namespace/name`, and its uid.
    pub(super) preview: String,
    pub(super) uid: String,
    /// The pod's uid: a route is of one pod.
    pub(super) pod: String,
    /// What its sidecar says when it is asked who it is.
    pub(super) nonce: String,
    /// The pod's address.
    pub(super) ip: IpAddr,
    /// The product's port.
    pub(super) port: u16,
    /// When traffic ends.
    pub(super) expires: Timestamp,
    /// What its script may do in a visitor's browser.
    pub(super) policy: HeaderValue,
    /// The names that it was admitted with, and the origins that it may be shown within.
    names: Vec<String>,
    frame_ancestors: Vec<String>,
}

impl Upstream {
    /// The same, while the platform allows these names.
    fn under(&self, allowed: &HashSet<String>) -> Option<Self> {
        Some(Self {
            policy: script_policy(&self.names, &self.frame_ancestors, allowed)?,
            ..self.clone()
        })
    }
}

/// A name that was taken off the platform's list since is none that a preview's script may talk to.
fn script_policy(
    names: &[String],
    frame_ancestors: &[String],
    allowed: &HashSet<String>,
) -> Option<HeaderValue> {
    let names: Vec<_> = names
        .iter()
        .filter(|name| allowed.contains(*name))
        .cloned()
        .collect();
    headers::policy(&names, frame_ancestors)
}

/// What a host label leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A preview that lives.
    Open(Arc<Upstream>),
    /// A preview that is not, or no longer, to be had.
    Closed(Phase),
}

/// A host label, what it leads to now, and what is shared by all who go there.
#[derive(Clone)]
pub(super) struct Found {
    /// To be followed as it changes.
    pub(super) route: watch::Receiver<Route>,
    /// What visitors have had.
    pub(super) usage: Arc<Usage>,
    /// Connections to its pod.
    pub(super) idle: Arc<Idle>,
    /// By which it was opened last.
    pub(super) link: Arc<LastGood>,
}

struct Entry {
    route: watch::Sender<Route>,
    usage: Arc<Usage>,
    idle: Arc<Idle>,
    link: Arc<LastGood>,
}

/// The routes.
pub(super) struct Routes {
    by_label: RwLock<HashMap<String, Entry>>,
    keys: RwLock<Arc<KeyRing>>,
    limits: RwLock<Limits>,
    /// The names that the platform allows previews. Locked after `by_label`.
    allowed: RwLock<HashSet<String>>,
    /// Told of each label that is new.
    new: Notify,
    since: Timestamp,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            by_label: RwLock::default(),
            keys: RwLock::default(),
            // Nothing before the policy was read; the gateway is not ready then.
            limits: RwLock::new(Limits {
                bytes: 0,
                requests: 1,
            }),
            allowed: RwLock::default(),
            new: Notify::new(),
            since: Timestamp::now(),
        }
    }
}

impl Routes {
    /// What a label leads to now, to be followed as it changes.
    pub(super) fn find(&self, label: &str) -> Option<Found> {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        by_label.get(label).map(|entry| Found {
            route: entry.route.subscribe(),
            usage: entry.usage.clone(),
            idle: entry.idle.clone(),
            link: entry.link.clone(),
        })
    }

    /// The same, once the watch has told of it; `None` if it does not in the time that it may be behind.
    pub(super) async fn appears(&self, label: &str) -> Option<Found> {
        let told = async {
            loop {
                let mut new = std::pin::pin!(self.new.notified());
                // Before the look, so that none comes in between.
                new.as_mut().enable();
                if let Some(found) = self.find(label) {
                    return found;
                }
                new.await;
            }
        };
        tokio::time::timeout(BEHIND, told).await.ok()
    }

    /// What every preview may have.
    pub(super) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What every preview may have from now on.
    pub(super) fn limit(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The names that previews may talk to from now on.
    pub(super) fn allow(&self, names: HashSet<String>) {
        let by_label = self.by_label.write().unwrap_or_else(PoisonError::into_inner);
        let mut allowed = self.allowed.write().unwrap_or_else(PoisonError::into_inner);
        if *allowed == names {
            return;
        }
        *allowed = names;
        for entry in by_label.values() {
            entry.route.send_if_modified(|route| {
                let Route::Open(now) = &*route else { return false };
                // What could be a header with more names can be one with fewer.
                let Some(changed) = now.under(&allowed).filter(|new| *new != **now) else {
                    return false;
                };
                *route = Route::Open(Arc::new(changed));
                true
            });
        }
    }

    /// Who was there, and when.
    pub(super) fn activity(&self) -> Activity {
        let by_label = self.by_label.read().unwrap_or_else(PoisonError::into_inner);
        let seen = by_label
            .iter()
            .filter_map(|(label, entry)| Some((label.clone(), entry.usage.seen()?)));
        Activity {
            since: self.since.as_millisecond(),
            previews: seen.collect(),
        }
    }

    /// The keys of links.
    pub(super) fn keys(&self) -> Arc<KeyRing> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Table for Routes {
    fn set(&self, preview: &PreviewSandbox) {
        let Some(uid) = preview.uid() else { return };
        let mut routes = self.by_label.write().unwrap_or_else(PoisonError::into_inner);
        let route = route(
            preview,
            &self.allowed.read().unwrap_or_else(PoisonError::into_inner),
        );
        let before = routes.len();
        let entry = routes.entry(names::host_label(&uid)).or_insert_with(|| Entry {
            route: watch::Sender::new(Route::Closed(Phase::Queued)),
            usage: Arc::default(),
            idle: Arc::default(),
            link: Arc::default(),
        });
        if pod(&entry.route.borrow()) != pod(&route) {
            entry.idle = Arc::default();
        }
        entry.route.send_if_modified(|current| {
            let changed = *current != route;
            *current = route;
            changed
        });
        if routes.len() > before {
            self.new.notify_waiters();
        }
    }

    /// Dropping the sender cuts every connection that follows it.
    fn forget(&self, uid: &str) {
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&names::host_label(uid));
    }

    fn keep_only(&self, uids: &HashSet<String>) {
        let labels: HashSet<_> = uids.iter().map(|uid| names::host_label(uid)).collect();
        self.by_label
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|label, _| labels.contains(label));
    }
}

fn pod(route: &Route) -> Option<&str> {
    match route {
        Route::Open(upstream) => Some(&upstream.pod),
        Route::Closed(_) => None,
    }
}

/// What a preview's status means to traffic. Pure.
fn route(preview: &PreviewSandbox, allowed: &HashSet<String>) -> Route {
    let Some(status) = &preview.status else {
        return Route::Closed(Phase::Queued);
    };
    let upstream = || {
        let (pod, envelope) = (status.pod.as_ref()?, status.envelope.as_ref()?);
        let uid = preview.uid()?;
        Some(Upstream {
            preview: format!(
                "{}/{}",
                preview.namespace().unwrap_or_default(),
                preview.name_any()
            ),
            nonce: pod.nonce.clone()?,
            uid,
            pod: pod.uid.clone(),
            ip: pod.ip.as_ref()?.parse().ok()?,
            port: u16::try_from(pod.port).ok()?,
            expires: status.expires_at.as_ref()?.0,
            policy: script_policy(&envelope.egress, &envelope.frame_ancestors, allowed)?,
            names: envelope.egress.clone(),
            frame_ancestors: envelope.frame_ancestors.clone(),
        })
    };
    match (preview.phase(), upstream()) {
        (Phase::Ready, Some(upstream)) => Route::Open(Arc::new(upstream)),
        (phase, _) => Route::Closed(phase),
    }
}

/// Follows previews and link keys for ever.
pub(super) async fn follow(client: Client, namespace: &str, routes: &Routes, readiness: &Readiness) {
    follow::not_read_yet(readiness);
    readiness.missing(
        "link-keys",
        format!("ConfigMap {namespace}/{} was not read yet", link_keys::NAME),
    );
    tokio::join!(
        follow::previews(client.clone(), routes, readiness),
        follow::policy(client.clone(), |policy| limit(routes, policy), readiness),
        keys(client, namespace, routes, readiness)
    );
}

/// Without a policy what is already let in goes on as under the default one, and talks to nobody else.
fn limit(routes: &Routes, policy: Option<PreviewPolicySpec>) {
    let names = policy.as_ref().map(|policy| &policy.egress.allowed_names);
    routes.allow(names.into_iter().flatten().cloned().collect());
    let traffic = policy.map(|policy| policy.traffic).unwrap_or_default();
    routes.limit(Limits {
        bytes: traffic.visitor_limit(),
        requests: u32::try_from(traffic.requests_per_second).unwrap_or(1),
    });
}

async fn keys(client: Client, namespace: &str, routes: &Routes, readiness: &Readiness) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut maps = kube::runtime::watcher::watch_object(api, link_keys::NAME)
        .backoff(api::Again)
        .boxed();
    loop {
        match maps.try_next().await {
            Ok(Some(Some(map))) => {
                let ring = KeyRing::read(&map.data.unwrap_or_default());
                if !ring.is_empty() {
                    readiness.present("link-keys");
                }
                *routes.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
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
        self.follows.send_if_modified(|follows| {
            let other = follows.as_ref().is_none_or(|now| !now.same_channel(route));
            if other {
                *follows = Some(route.clone());
            }
            other
        });
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

/// Whether a preview is open or over, and not on its way.
pub(super) const fn is_decided(route: &Route) -> bool {
    !matches!(
        route,
        Route::Closed(Phase::Queued | Phase::Provisioning | Phase::Proving)
    )
}

/// Returns once a route is open or over, or after the time that a watch may be behind.
pub(super) async fn opens(mut route: watch::Receiver<Route>) {
    // Whichever it comes to, the request is judged by what the route is then.
    let _ = tokio::time::timeout(BEHIND, route.wait_for(is_decided)).await;
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
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    fn preview(phase: &str, expires: Timestamp) -> PreviewSandbox {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox", "metadata": {"name": "a", "uid": "u"},
            "spec": {"listingRef": {"name": "l"}, "subject": "s"},
            "status": {"phase": phase, "expiresAt": expires.to_string(), "pod": {"uid": "p", "ip": "10.244.0.7", "port": 8090, "nonce": "n"},
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
        assert!(matches!(
            route(&preview("Ready", soon(1000)), &HashSet::new()),
            Route::Open(_)
        ));
        for phase in ["Queued", "Proving", "Ending", "Ended", "Failed", "Refused"] {
            assert!(
                matches!(
                    route(&preview(phase, soon(1000)), &HashSet::new()),
                    Route::Closed(_)
                ),
                "{phase}"
            );
        }
        let mut deleted = preview("Ready", soon(1000));
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        assert_eq!(
            route(&deleted, &HashSet::new()),
            Route::Closed(Phase::Ending),
            "also before any operator has seen it"
        );
    }

    #[test]
    fn a_name_that_is_taken_off_the_list_is_none_for_a_live_previews_script_either() {
        let routes = Routes::default();
        let mut preview = preview("Ready", soon(60_000));
        let envelope = preview.status.as_mut().unwrap().envelope.as_mut().unwrap();
        envelope.egress = vec!["a.example".to_owned(), "b.example".to_owned()];
        let names = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        let policy = || match &*routes.find(&names::host_label("u")).unwrap().route.borrow() {
            Route::Open(upstream) => upstream.policy.to_str().unwrap().to_owned(),
            closed => panic!("{closed:?}"),
        };
        routes.allow(names(&["a.example", "b.example", "c.example"]));
        routes.set(&preview);
        let before = policy();
        assert!(before.contains("connect-src 'self' data: blob: https://a.example https://b.example;"));
        routes.allow(names(&["b.example"]));
        assert!(!policy().contains("a.example") && policy().contains("b.example"));
        // A preview that is written again keeps nothing of it, and one that is back on the list is back.
        routes.set(&preview);
        assert!(!policy().contains("a.example"));
        routes.allow(names(&["a.example", "b.example"]));
        assert_eq!(policy(), before);
    }

    #[tokio::test]
    async fn a_connection_is_cut_by_the_clock_even_if_nobody_says_so() {
        let routes = Routes::default();
        routes.set(&preview("Ready", soon(150)));
        let lifeline = Lifeline::default();
        lifeline.hang_on(&routes.find(&names::host_label("u")).unwrap().route);
        tokio::time::timeout(Duration::from_secs(5), lifeline.cut())
            .await
            .unwrap();
        assert!(Timestamp::now() >= soon(-5000));
    }

    #[tokio::test]
    async fn who_comes_before_the_gateway_has_heard_of_a_preview_waits_until_it_has() {
        for (then, open) in [("Ready", true), ("Ended", false)] {
            let routes = Arc::new(Routes::default());
            routes.set(&preview("Proving", soon(60_000)));
            let found = routes.find(&names::host_label("u")).unwrap();
            let waits = tokio::spawn(opens(found.route.clone()));
            tokio::task::yield_now().await;
            assert!(!waits.is_finished());
            routes.set(&preview(then, soon(60_000)));
            tokio::time::timeout(Duration::from_secs(1), waits)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(matches!(&*found.route.borrow(), Route::Open(_)), open);
        }
    }

    #[tokio::test]
    async fn who_comes_before_the_gateway_has_heard_anything_of_a_preview_waits_too() {
        let routes = Arc::new(Routes::default());
        let for_visitor = routes.clone();
        let visitor = tokio::spawn(async move { for_visitor.appears(&names::host_label("u")).await });
        tokio::task::yield_now().await;
        assert!(!visitor.is_finished());
        routes.set(&preview("Ready", soon(60_000)));
        let found = visitor.await.unwrap().unwrap();
        assert!(matches!(&*found.route.borrow(), Route::Open(_)));
    }

    #[tokio::test]
    async fn a_connection_is_cut_when_its_preview_ends_early_or_is_forgotten() {
        for by in ["status", "deletion"] {
            let routes = Routes::default();
            routes.set(&preview("Ready", soon(60_000)));
            let lifeline = Lifeline::default();
            lifeline.hang_on(&routes.find(&names::host_label("u")).unwrap().route);
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
