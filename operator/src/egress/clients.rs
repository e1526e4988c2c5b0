//! Which preview a connection comes from, and where to that one may go: fed by the watch. Reads no more than it is told.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use vitrine_crds::{Phase, PreviewSandbox};

use crate::{follow::Table, meter::Budget};

/// How long a pod's first connection waits for its preview's status to name the pod's address: the product starts as soon as
/// the probe has ended, and the operator writes what it saw a moment later.
const SOON: Duration = Duration::from_secs(5);
/// Tunnels that one preview may have at a time.
const TUNNELS: usize = 32;

/// What a preview may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Permit {
    /// The preview, `namespace/name`.
    pub(super) preview: String,
    /// The names that it was admitted with.
    pub(super) names: BTreeSet<String>,
    /// When its traffic ends, once that is known.
    pub(super) expires: Option<Timestamp>,
}

/// A preview that lives.
#[derive(Clone)]
pub(super) struct Client {
    /// Its uid.
    pub(super) uid: String,
    /// What it may do, to be followed as it changes; `None` once it may nothing.
    pub(super) permit: watch::Receiver<Option<Permit>>,
    /// What it has had.
    pub(super) budget: Arc<Budget>,
    /// Its tunnels.
    pub(super) tunnels: Arc<Semaphore>,
    /// How often it was refused what it may not reach.
    pub(super) denied: Arc<AtomicU64>,
}

struct Entry {
    address: IpAddr,
    denied: Arc<AtomicU64>,
    permit: watch::Sender<Option<Permit>>,
    budget: Arc<Budget>,
    tunnels: Arc<Semaphore>,
}

/// What the platform allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// The names.
    pub(super) names: Arc<BTreeSet<String>>,
    /// The bytes, both ways, that one preview may have in all.
    pub(super) bytes: u64,
}

/// Everybody.
#[derive(Default)]
pub(super) struct Clients {
    by_uid: RwLock<HashMap<String, Entry>>,
    /// What the platform allows now, whoever was admitted with more.
    allowed: watch::Sender<Allowed>,
    /// Changes whenever somebody comes.
    came: watch::Sender<()>,
}

impl Clients {
    /// The preview whose pod has an address. If two say so, neither is believed.
    fn find(&self, address: IpAddr) -> Option<Client> {
        let by_uid = self.by_uid.read().unwrap_or_else(PoisonError::into_inner);
        let mut having = by_uid.iter().filter(|(_, entry)| entry.address == address);
        let (uid, entry) = having.next()?;
        having.next().is_none().then(|| Client {
            uid: uid.clone(),
            permit: entry.permit.subscribe(),
            budget: entry.budget.clone(),
            tunnels: entry.tunnels.clone(),
            denied: entry.denied.clone(),
        })
    }

    /// The same, with patience for a pod that has just begun.
    pub(super) async fn find_soon(&self, address: IpAddr) -> Option<Client> {
        let mut came = self.came.subscribe();
        let found = timeout(SOON, async {
            loop {
                came.mark_unchanged();
                if let Some(client) = self.find(address) {
                    return Some(client);
                }
                came.changed().await.ok()?;
            }
        });
        found.await.ok().flatten()
    }

    /// How often each preview was refused what it may not reach, by uid; only those that were.
    pub(super) fn denials(&self) -> BTreeMap<String, u64> {
        let by_uid = self.by_uid.read().unwrap_or_else(PoisonError::into_inner);
        by_uid
            .iter()
            .map(|(uid, entry)| (uid.clone(), entry.denied.load(Ordering::Relaxed)))
            .filter(|(_, denied)| *denied > 0)
            .collect()
    }

    /// What the platform allows, to be followed as it changes.
    pub(super) fn allowed(&self) -> watch::Receiver<Allowed> {
        self.allowed.subscribe()
    }

    /// The platform allows this from now on.
    pub(super) fn allow(&self, names: BTreeSet<String>, bytes: u64) {
        let allowed = Allowed {
            names: Arc::new(names),
            bytes,
        };
        self.allowed.send_if_modified(|current| {
            let changed = *current != allowed;
            *current = allowed;
            changed
        });
    }
}

impl Table for Clients {
    fn set(&self, preview: &PreviewSandbox) {
        let Some(uid) = preview.uid() else { return };
        let mut by_uid = self.by_uid.write().unwrap_or_else(PoisonError::into_inner);
        let Some((address, permit)) = permit(preview) else {
            // Dropping the sender ends every tunnel that follows it.
            by_uid.remove(&uid);
            return;
        };
        match by_uid.get_mut(&uid) {
            Some(entry) if entry.address == address => {
                entry.permit.send_if_modified(|current| {
                    let changed = current.as_ref() != Some(&permit);
                    *current = Some(permit);
                    changed
                });
            }
            _ => {
                let entry = Entry {
                    address,
                    denied: Arc::default(),
                    permit: watch::Sender::new(Some(permit)),
                    budget: Arc::default(),
                    tunnels: Arc::new(Semaphore::new(TUNNELS)),
                };
                by_uid.insert(uid, entry);
            }
        }
        drop(by_uid);
        self.came.send_replace(());
    }

    fn forget(&self, uid: &str) {
        self.by_uid
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    fn keep_only(&self, uids: &HashSet<String>) {
        self.by_uid
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|uid, _| uids.contains(uid));
    }
}

/// Where a preview's pod is and what it may do; `None` unless it lives and was admitted with names. Pure.
fn permit(preview: &PreviewSandbox) -> Option<(IpAddr, Permit)> {
    let status = preview.status.as_ref()?;
    if !matches!(
        preview.phase(),
        Phase::Provisioning | Phase::Proving | Phase::Ready
    ) {
        return None;
    }
    let (pod, envelope) = (status.pod.as_ref()?, status.envelope.as_ref()?);
    let names: BTreeSet<_> = envelope.egress.iter().cloned().collect();
    if names.is_empty() {
        return None;
    }
    let permit = Permit {
        preview: format!(
            "{}/{}",
            preview.namespace().unwrap_or_default(),
            preview.name_any()
        ),
        names,
        expires: status.expires_at.as_ref().map(|time| time.0),
    };
    Some((pod.ip.as_ref()?.parse().ok()?, permit))
}

/// Returns when a preview may no longer reach a name: because its time is over, because it ends, or because the platform has
/// taken the name off its list.
pub(super) async fn end(
    name: &str,
    mut permit: watch::Receiver<Option<Permit>>,
    mut allowed: watch::Receiver<Allowed>,
) {
    loop {
        let expires = match &*permit.borrow_and_update() {
            Some(permit) => permit.expires,
            None => return,
        };
        if !allowed.borrow_and_update().names.contains(name) {
            return;
        }
        let over = async {
            match expires {
                Some(expires) => {
                    let left = expires.duration_since(Timestamp::now());
                    tokio::time::sleep_until(Instant::now() + Duration::try_from(left).unwrap_or_default())
                        .await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return,
            changed = permit.changed() => if changed.is_err() { return },
            changed = allowed.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;

    fn preview(uid: &str, phase: &str, ip: &str, egress: &[&str], expires: Timestamp) -> PreviewSandbox {
        serde_json::from_value(json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox",
            "metadata": {"name": uid, "namespace": "shop", "uid": uid},
            "spec": {"listingRef": {"name": "l"}, "subject": "s"},
            "status": {"phase": phase, "expiresAt": expires.to_string(), "pod": {"uid": "p", "ip": ip, "port": 8090},
                "envelope": {"ttl": "1m", "ttlCap": "1m", "provisioningDeadline": "1m", "proofDeadline": "1m", "image": "i",
                    "port": 8090, "landingPath": "/", "listing": "u/1", "egress": egress,
                    "size": {"cpu": "1", "memory": "1Mi", "ephemeralStorage": "1Mi"}}}
        }))
        .unwrap()
    }

    fn later() -> Timestamp {
        Timestamp::now() + jiff::SignedDuration::from_secs(60)
    }

    const IP: &str = "10.244.0.7";

    fn at(clients: &Clients, ip: &str) -> Option<String> {
        clients.find(ip.parse().unwrap()).map(|client| client.uid)
    }

    #[test]
    fn only_a_preview_that_lives_and_was_admitted_with_names_is_known() {
        for (phase, known) in [
            ("Proving", true),
            ("Ready", true),
            ("Queued", false),
            ("Ending", false),
            ("Ended", false),
        ] {
            let clients = Clients::default();
            clients.set(&preview("a", phase, IP, &["x.example"], later()));
            assert_eq!(at(&clients, IP).is_some(), known, "{phase}");
        }
        let clients = Clients::default();
        clients.set(&preview("a", "Ready", IP, &[], later()));
        assert_eq!(at(&clients, IP), None);
        let mut deleted = preview("a", "Ready", IP, &["x.example"], later());
        clients.set(&deleted);
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        clients.set(&deleted);
        assert_eq!(at(&clients, IP), None, "also before any operator has seen it");
    }

    #[test]
    fn an_address_is_the_next_previews_once_the_last_one_has_ended() {
        let clients = Clients::default();
        clients.set(&preview("a", "Ready", IP, &["x.example"], later()));
        clients.set(&preview("b", "Ready", IP, &["y.example"], later()));
        assert_eq!(at(&clients, IP), None, "two claim it");
        clients.set(&preview("a", "Ending", IP, &["x.example"], later()));
        assert_eq!(at(&clients, IP).as_deref(), Some("b"));
        assert_eq!(at(&clients, "10.244.0.8"), None);
    }

    #[tokio::test]
    async fn whoever_comes_before_its_status_is_waited_for() {
        let clients = Arc::new(Clients::default());
        let waiting = tokio::spawn({
            let clients = clients.clone();
            async move {
                clients
                    .find_soon(IP.parse().unwrap())
                    .await
                    .map(|client| client.uid)
            }
        });
        tokio::task::yield_now().await;
        clients.set(&preview("a", "Proving", IP, &["x.example"], later()));
        assert_eq!(waiting.await.unwrap().as_deref(), Some("a"));
    }

    #[tokio::test]
    async fn a_tunnel_ends_with_its_time_its_preview_or_its_name() {
        for by in ["time", "end", "deletion", "name"] {
            let clients = Clients::default();
            clients.allow(BTreeSet::from(["x.example".to_owned()]), 1);
            let expires = if by == "time" {
                Timestamp::now() + jiff::SignedDuration::from_millis(100)
            } else {
                later()
            };
            clients.set(&preview("a", "Ready", IP, &["x.example"], expires));
            let client = clients.find(IP.parse().unwrap()).unwrap();
            let over = end("x.example", client.permit.clone(), clients.allowed());
            match by {
                "end" => clients.set(&preview("a", "Ending", IP, &["x.example"], later())),
                "deletion" => clients.forget("a"),
                "name" => clients.allow(BTreeSet::new(), 1),
                _ => {}
            }
            timeout(Duration::from_secs(5), over).await.unwrap();
        }
    }
}
