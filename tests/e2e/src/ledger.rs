//! Who has which cell, version by version: from what the API server's audit log says that writes have made, and from watches. Reads the
//! cluster, writes nothing.
//!
//! All objects share one store, whose resourceVersions say what came before what. A watch that is cut off may skip versions, and the log lacks
//! a write whose writer was killed before it was answered: each has what the other lacks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::StreamExt;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use tokio::task::JoinSet;
use vitrine_crds::{
    Phase, PreviewSandbox,
    conditions::{self, types},
};
use vitrine_kit::audit::{self, Mark};
use vitrine_policies::{cell::record::Record, names};

use crate::house::House;

/// What one write has made of a cell or a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    /// A cell is the preview's with this uid, or nobody's.
    Cell { name: String, tenant: Option<String> },
    /// A cell is gone.
    Gone { name: String },
    /// A preview says this of itself.
    Preview { uid: String, life: Life },
}

/// What a preview says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Life {
    /// The cell that it lives in: it was admitted, and its end is not recorded.
    cell: Option<String>,
    /// Its pod's uid.
    pod: Option<String>,
    /// Whether it is ready.
    ready: bool,
    /// When its clock began.
    started: Option<String>,
    /// Whether its end is recorded.
    over: bool,
}

/// By resourceVersion.
type Entries = BTreeMap<u64, Entry>;

/// All that was written since it was begun.
pub struct Ledger {
    log: PathBuf,
    since: Mark,
    watched: Arc<Mutex<Entries>>,
    _watches: JoinSet<()>,
}

/// What a ledger shows.
#[derive(Debug, Default)]
pub struct Judged {
    /// What must not be, in words.
    pub wrong: Vec<String>,
    /// How often each preview became ready, and how many beginnings its clock had, by uid.
    pub ready: BTreeMap<String, (usize, usize)>,
    /// The cells that previews lived in.
    pub cells: BTreeSet<String>,
    /// The previews that had each pod.
    pub pods: BTreeMap<String, BTreeSet<String>>,
    /// The versions that only the log has, and those that only a watch has.
    pub only: [usize; 2],
}

impl Ledger {
    /// Begins to watch what is written; also has everything that is there.
    ///
    /// # Panics
    /// If the cluster has no audit log.
    pub async fn begin(house: &House) -> Self {
        let since = house.mark();
        let watched = Arc::<Mutex<Entries>>::default();
        let mut watches = JoinSet::new();
        let previews = watcher(house.previews(), watcher::Config::default());
        follow(&mut watches, &watched, previews, of_preview);
        let cells: Api<PartialObjectMeta<Namespace>> = Api::all(house.client.clone());
        let in_cells = watcher::Config::default().labels(names::CELL_SELECTOR);
        follow(&mut watches, &watched, watcher(cells, in_cells), |cell, gone| {
            of_cell(&cell.metadata, gone)
        });
        Self {
            log: house.cluster.audit_log(),
            since,
            watched,
            _watches: watches,
        }
    }

    /// What was written until now.
    ///
    /// # Errors
    /// Which of these previews has no end in the log: it is written after the answer, and may be behind.
    ///
    /// # Panics
    /// If the log cannot be read.
    pub fn judge(&self, previews: &[String]) -> Result<Judged, String> {
        let written = audit::written(&self.log, self.since).expect("the cluster has an audit log");
        let logged: Entries = written
            .iter()
            .filter_map(|written| logged(&written.resource, &written.object))
            .collect();
        let ended: BTreeSet<_> = logged
            .values()
            .filter_map(|entry| match entry {
                Entry::Preview { uid, life } if life.over => Some(uid),
                _ => None,
            })
            .collect();
        if let Some(missing) = previews.iter().find(|uid| !ended.contains(uid)) {
            return Err(format!("the audit log does not tell of the end of {missing}"));
        }
        let watched = lock(&self.watched);
        let only = |one: &Entries, other: &Entries| one.keys().filter(|v| !other.contains_key(v)).count();
        let only = [only(&logged, &watched), only(&watched, &logged)];
        let mut all = watched.clone();
        drop(watched);
        all.extend(logged);
        Ok(Judged { only, ..judge(&all) })
    }
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what a watch tells, for as long as the set is kept.
fn follow<K: ResourceExt + Send + 'static>(
    watches: &mut JoinSet<()>,
    entries: &Arc<Mutex<Entries>>,
    events: impl futures::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    entry: fn(&K, bool) -> Option<Entry>,
) {
    let entries = entries.clone();
    watches.spawn(events.for_each(move |event| {
        let told = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => Some((object, false)),
            Ok(Event::Delete(object)) => Some((object, true)),
            // What it skips, the log has.
            Ok(Event::Init | Event::InitDone) | Err(_) => None,
        };
        if let Some((object, gone)) = told
            && let (Some(version), Some(entry)) = (version(object.meta()), entry(&object, gone))
        {
            lock(&entries).insert(version, entry);
        }
        std::future::ready(())
    }));
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}

fn logged(resource: &str, object: &Value) -> Option<(u64, Entry)> {
    let meta: ObjectMeta = serde_json::from_value(object.get("metadata")?.clone()).ok()?;
    let entry = match resource {
        "namespaces" => of_cell(&meta, false)?,
        "previewsandboxes" => of_preview(&serde_json::from_value(object.clone()).ok()?, false)?,
        _ => return None,
    };
    Some((version(&meta)?, entry))
}

fn of_cell(meta: &ObjectMeta, gone: bool) -> Option<Entry> {
    let (name, record) = (meta.name.clone()?, Record::of(meta)?);
    Some(match record.tenant {
        _ if gone => Entry::Gone { name },
        tenant => Entry::Cell { name, tenant },
    })
}

fn of_preview(preview: &PreviewSandbox, gone: bool) -> Option<Entry> {
    let status = preview.status.clone().unwrap_or_default();
    let over = gone || status.receipt.is_some();
    let lives = conditions::is_true(&status.conditions, types::ADMITTED) && !over;
    Some(Entry::Preview {
        uid: preview.uid()?,
        life: Life {
            cell: status.cell.filter(|_| lives),
            pod: status.pod.map(|pod| pod.uid),
            ready: status.phase == Phase::Ready,
            started: status.started_at.map(|at| at.0.to_string()),
            over,
        },
    })
}

/// Looks at every moment: a cell has at most one preview that lives in it, and is that one's by its own record as long as it does.
fn judge(entries: &Entries) -> Judged {
    let mut judged = Judged::default();
    let mut tenants: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    let mut living: BTreeMap<&str, &str> = BTreeMap::new();
    let mut lives: BTreeMap<&str, &Life> = BTreeMap::new();
    let mut starts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (version, entry) in entries {
        match entry {
            Entry::Cell { name, tenant } => {
                if let Some(uid) = living.get(name.as_str())
                    && tenant.as_deref() != Some(uid)
                {
                    let wrong = format!("at {version} cell {name} went to {tenant:?}, and {uid} lives in it");
                    judged.wrong.push(wrong);
                }
                tenants.insert(name, tenant.as_deref());
            }
            Entry::Gone { name } => {
                if let Some(uid) = living.get(name.as_str()) {
                    let wrong = format!("at {version} cell {name} is gone, and {uid} lives in it");
                    judged.wrong.push(wrong);
                }
                tenants.remove(name.as_str());
            }
            Entry::Preview { uid, life } => {
                let before = lives.insert(uid, life);
                let had = before.and_then(|before| before.cell.as_deref());
                if let Some(left) = had.filter(|had| life.cell.as_deref() != Some(had))
                    && living.get(left) == Some(&uid.as_str())
                {
                    living.remove(left);
                }
                if let Some(cell) = &life.cell {
                    judged.cells.insert(cell.clone());
                    let tenant = tenants.get(cell.as_str());
                    // One that is made for it is named before it is made; nothing is in it then.
                    let is_to_be = tenant.is_none() && life.pod.is_none();
                    if !is_to_be && tenant != Some(&Some(uid.as_str())) {
                        let wrong = format!("at {version} {uid} lives in cell {cell}, which is {tenant:?}'s");
                        judged.wrong.push(wrong);
                    }
                    if let Some(other) = living.insert(cell, uid).filter(|other| *other != uid.as_str()) {
                        let wrong = format!("at {version} {uid} and {other} both live in cell {cell}");
                        judged.wrong.push(wrong);
                    }
                }
                if let Some(pod) = &life.pod {
                    judged.pods.entry(pod.clone()).or_default().insert(uid.clone());
                }
                let counted = judged.ready.entry(uid.clone()).or_default();
                if life.ready && !before.is_some_and(|before| before.ready) {
                    counted.0 += 1;
                }
                if let Some(started) = &life.started {
                    let starts = starts.entry(uid).or_default();
                    starts.insert(started);
                    counted.1 = starts.len();
                }
            }
        }
    }
    let shared = judged.pods.iter().filter(|(_, had)| had.len() > 1);
    let shared = shared.map(|(pod, had)| format!("pod {pod} was had by {had:?}"));
    judged.wrong.extend(shared.collect::<Vec<_>>());
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(tenant: Option<&str>) -> Entry {
        Entry::Cell {
            name: "cell".to_owned(),
            tenant: tenant.map(str::to_owned),
        }
    }

    fn lives(uid: &str) -> Entry {
        Entry::Preview {
            uid: uid.to_owned(),
            life: Life {
                cell: Some("cell".to_owned()),
                pod: Some(format!("pod-of-{uid}")),
                ready: true,
                started: Some("then".to_owned()),
                over: false,
            },
        }
    }

    fn over(uid: &str) -> Entry {
        let pod = Some(format!("pod-of-{uid}"));
        Entry::Preview {
            uid: uid.to_owned(),
            life: Life {
                pod,
                over: true,
                ..Life::default()
            },
        }
    }

    fn judged(entries: &[Entry]) -> Judged {
        judge(&(1..).zip(entries.iter().cloned()).collect())
    }

    #[test]
    fn a_cell_that_goes_from_hand_to_hand_is_never_shared() {
        let hands = [
            cell(None),
            cell(Some("a")),
            lives("a"),
            over("a"),
            cell(None),
            cell(Some("b")),
            lives("b"),
        ];
        let judged = judged(&hands);
        assert_eq!(judged.wrong, Vec::<String>::new());
        assert_eq!(judged.ready.get("a"), Some(&(1, 1)));
        assert_eq!((judged.cells.len(), judged.pods.len()), (1, 2));
    }

    #[test]
    fn a_cell_may_be_named_before_it_is_made_and_is_its_own_then() {
        let mut named = lives("a");
        if let Entry::Preview { life, .. } = &mut named {
            life.pod = None;
        }
        let made = judged(&[named.clone(), cell(Some("a")), lives("a")]);
        assert_eq!(made.wrong, Vec::<String>::new());
        let anothers = judged(&[named, cell(Some("b"))]);
        assert_eq!(anothers.wrong.len(), 1, "{anothers:?}");
    }

    #[test]
    fn two_in_a_cell_one_in_another_s_and_one_whose_cell_is_taken_away_are_seen() {
        let both = judged(&[cell(Some("a")), lives("a"), lives("b")]);
        assert_eq!(both.wrong.len(), 2, "{both:?}");
        let anothers = judged(&[cell(Some("b")), lives("a")]);
        assert_eq!(anothers.wrong.len(), 1, "{anothers:?}");
        let taken = judged(&[cell(Some("a")), lives("a"), cell(None), over("a")]);
        assert_eq!(taken.wrong.len(), 1, "{taken:?}");
        let unknown = judged(&[lives("a")]);
        assert_eq!(unknown.wrong.len(), 1, "{unknown:?}");
        let gone = Entry::Gone {
            name: "cell".to_owned(),
        };
        let gone = judged(&[cell(Some("a")), lives("a"), gone]);
        assert_eq!(gone.wrong.len(), 1, "{gone:?}");
    }

    #[test]
    fn one_pod_of_two_previews_and_a_second_time_that_one_is_ready_are_seen() {
        let mut again = lives("b");
        if let Entry::Preview { life, .. } = &mut again {
            life.pod = Some("pod-of-a".to_owned());
        }
        let pod = judged(&[cell(Some("a")), lives("a"), over("a"), cell(Some("b")), again]);
        assert_eq!(pod.wrong.len(), 1, "{pod:?}");
        let mut gap = lives("a");
        if let Entry::Preview { life, .. } = &mut gap {
            life.ready = false;
        }
        let twice = judged(&[cell(Some("a")), lives("a"), gap, lives("a")]);
        assert_eq!(twice.ready.get("a"), Some(&(2, 1)));
    }
}
