//! Which cells of pools were found confined as they must be, by a look at all of it, and were not doubted since. In memory.
//!
//! Such a look is six reads, and a cell that is used again would have two for each pod: before it is made and when it is proven.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::ResourceExt;
use serde_json::json;
use tokio::time::Instant;
use vitrine_policies::names;

/// For how long what was found counts if no watch tells anything: what none tells is found after this (docs/adr/0013).
const COUNTS: Duration = Duration::from_secs(600);

/// What of a cell may be other than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// What confines it.
    Confinement,
    /// What is in it: its pod.
    Content,
}

/// The first half of a SHA-256: what is only compared takes no more room.
pub type Digest = [u8; 16];

/// What a look at all of a cell has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which namespace, and which previews it confines as they must be ([`which`]).
    pub which: Digest,
    /// What its network policy is known by.
    pub seal: Box<str>,
    /// What its quotas allow ([`allows`]).
    pub quotas: [Digest; 2],
    /// When.
    pub at: Instant,
}

/// When a look began; it is worth nothing once a doubt came after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun(u64);

/// What is known, by cell.
#[derive(Debug, Default)]
pub struct Confinement(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How many doubts there were.
    doubts: u64,
    cells: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// The number of the last doubt in what confines it.
    confinement: u64,
    /// The number of the last doubt in its content.
    content: u64,
    found: Option<Found>,
    /// Whether a look has found no pod in it.
    empty: bool,
    /// Whether this process is making it, and nobody has looked at it yet.
    new: bool,
}

impl Seen {
    fn doubt(&mut self, of: Doubt, number: u64) {
        match of {
            Doubt::Confinement => {
                self.confinement = number;
                self.found = None;
            }
            Doubt::Content => {
                self.content = number;
                self.empty = false;
            }
        }
    }
}

impl Confinement {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at a cell begins.
    pub fn begin(&self, cell: &str) -> Begun {
        let mut inner = self.inner();
        let doubts = inner.doubts;
        if !inner.cells.contains_key(cell) {
            let seen = Seen {
                confinement: doubts,
                content: doubts,
                found: None,
                empty: false,
                new: false,
            };
            inner.cells.insert(cell.to_owned(), seen);
        }
        Begun(doubts)
    }

    /// Whether nothing of a cell is doubted since a look at it began.
    pub fn holds(&self, cell: &str, begun: Begun) -> bool {
        let inner = self.inner();
        let seen = inner.cells.get(cell);
        seen.is_some_and(|seen| seen.confinement.max(seen.content) <= begun.0)
    }

    /// A look at what confines a cell has found this.
    pub fn found(&self, cell: &str, begun: Begun, found: Found) {
        let mut inner = self.inner();
        let seen = inner.cells.get_mut(cell);
        if let Some(seen) = seen.filter(|seen| seen.confinement <= begun.0) {
            seen.found = Some(found);
        }
    }

    /// A cell was made since a look at it began: nothing is in it, unless a watch has told of something.
    pub fn made(&self, cell: &str, begun: Begun) {
        let mut inner = self.inner();
        if let Some(seen) = inner.cells.get_mut(cell) {
            seen.empty = seen.content <= begun.0;
            seen.new = seen.confinement <= begun.0;
        }
    }

    /// Whether a cell was made by this process and nobody has asked this before: then it is looked at for the first time.
    pub fn take_new(&self, cell: &str) -> bool {
        let mut inner = self.inner();
        let seen = inner.cells.get_mut(cell);
        seen.is_some_and(|seen| std::mem::take(&mut seen.new))
    }

    /// A look has found no pod in a cell.
    pub fn found_empty(&self, cell: &str, begun: Begun) {
        let mut inner = self.inner();
        let seen = inner.cells.get_mut(cell);
        if let Some(seen) = seen.filter(|seen| seen.content <= begun.0) {
            seen.empty = true;
        }
    }

    /// Whether there was no pod in a cell, and no watch has told of one since.
    pub fn is_empty(&self, cell: &str) -> bool {
        let inner = self.inner();
        inner.cells.get(cell).is_some_and(|seen| seen.empty)
    }

    /// What was found of a cell, this very one, that confines such previews; if it is neither doubted nor too long ago.
    pub fn of(&self, cell: &str, uid: Option<&String>, lot: &str, now: Instant) -> Option<Found> {
        let found = self.inner().cells.get(cell)?.found.clone()?;
        let young = now.saturating_duration_since(found.at) < COUNTS;
        (young && found.which == which(uid?, lot)).then_some(found)
    }

    /// Whether a quota in a cell is one that was found, and differs at most in what it counts.
    pub fn counts(&self, quota: &ResourceQuota) -> bool {
        let cell = quota.namespace().unwrap_or_default();
        let inner = self.inner();
        let found = inner.cells.get(&cell).and_then(|seen| seen.found.as_ref());
        found.is_some_and(|found| found.quotas.contains(&allows(quota)))
    }

    /// Something of a cell may be other than it was.
    pub fn doubt(&self, cell: &str, of: Doubt) {
        let mut inner = self.inner();
        let number = inner.doubts + 1;
        if let Some(seen) = inner.cells.get_mut(cell) {
            seen.doubt(of, number);
            inner.doubts = number;
        }
    }

    /// Something of any cell may be other than it was.
    pub fn doubt_all(&self, of: Doubt) {
        let mut inner = self.inner();
        inner.doubts += 1;
        let number = inner.doubts;
        for seen in inner.cells.values_mut() {
            seen.doubt(of, number);
        }
    }

    /// A cell is gone.
    pub fn forget(&self, cell: &str) {
        self.inner().cells.remove(cell);
    }
}

/// What a quota allows, in short: everything of it but what it counts, which is written whenever a pod comes or goes. Admission goes by
/// what its status says is allowed (k8s.io/apiserver, plugin/resourcequota).
pub fn allows(quota: &ResourceQuota) -> Digest {
    let meta = &quota.metadata;
    let text = json!([
        meta.uid,
        meta.labels,
        meta.annotations,
        meta.deletion_timestamp,
        quota.spec,
        quota.status.as_ref().map(|status| &status.hard)
    ]);
    digest(&["quota", &text.to_string()])
}

/// A namespace by its uid, since another one may come to have its name, and a lot (`record::lot`), in short.
pub fn which(uid: &str, lot: &str) -> Digest {
    digest(&["which", uid, lot])
}

fn digest(parts: &[&str]) -> Digest {
    names::hash(parts).first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(pods: &str, used: &str) -> ResourceQuota {
        let quota = json!({
            "metadata": {"namespace": "cell", "name": "vitrine", "uid": "u"},
            "spec": {"hard": {"count/pods": pods}},
            "status": {"hard": {"count/pods": pods}, "used": {"count/pods": used}}
        });
        serde_json::from_value(quota).unwrap()
    }

    fn found(at: Instant) -> Found {
        Found {
            which: which("cell's", "lot"),
            seal: "uid/1".into(),
            quotas: ["1", "0"].map(|pods| allows(&quota(pods, "0"))),
            at,
        }
    }

    /// What is known of the cell that was found.
    fn known(all: &Confinement, now: Instant) -> Option<Found> {
        all.of("cell", Some(&"cell's".to_owned()), "lot", now)
    }

    #[test]
    fn what_was_found_holds_for_its_lot_and_namespace_until_a_doubt_comes_or_it_is_old() {
        let (all, now) = (Confinement::default(), Instant::now());
        let begun = all.begin("cell");
        all.found("cell", begun, found(now));
        assert_eq!(known(&all, now), Some(found(now)));
        let (own, another) = ("cell's".to_owned(), "another's".to_owned());
        assert_eq!(all.of("cell", Some(&own), "another", now), None);
        assert_eq!(all.of("cell", Some(&another), "lot", now), None);
        assert_eq!(all.of("cell", None, "lot", now), None);
        assert_eq!(known(&all, now + COUNTS), None);
        all.doubt("beside", Doubt::Confinement);
        assert!(all.holds("cell", begun));
        all.doubt("cell", Doubt::Confinement);
        assert_eq!(known(&all, now), None);
        assert!(!all.holds("cell", begun));
    }

    #[test]
    fn a_doubt_that_comes_during_a_look_outlives_it() {
        let (all, now) = (Confinement::default(), Instant::now());
        for everything in [false, true] {
            let begun = all.begin("cell");
            if everything {
                all.doubt_all(Doubt::Confinement);
            } else {
                all.doubt("cell", Doubt::Confinement);
            }
            all.found("cell", begun, found(now));
            assert_eq!(known(&all, now), None);
        }
        let begun = all.begin("cell");
        assert!(all.holds("cell", begun));
        all.doubt("cell", Doubt::Confinement);
        all.forget("cell");
        all.begin("cell");
        all.found("cell", begun, found(now));
        assert_eq!(known(&all, now), None, "it was doubted before it was forgotten");
    }

    #[test]
    fn what_happens_to_its_pod_is_no_doubt_in_what_confines_a_cell() {
        let (all, now) = (Confinement::default(), Instant::now());
        let begun = all.begin("cell");
        all.found("cell", begun, found(now));
        all.doubt("cell", Doubt::Content);
        assert_eq!(known(&all, now), Some(found(now)));
        assert!(!all.holds("cell", begun), "but in the look as a whole");
    }

    #[test]
    fn a_cell_is_empty_until_a_watch_tells_of_its_pod_and_new_once() {
        let all = Confinement::default();
        assert!(!all.is_empty("c") && !all.take_new("c"), "nothing is known of it");
        let begun = all.begin("c");
        all.found_empty("c", begun);
        all.doubt("c", Doubt::Confinement);
        assert!(all.is_empty("c"));
        all.doubt("c", Doubt::Content);
        assert!(!all.is_empty("c"));
        all.found_empty("c", begun);
        assert!(!all.is_empty("c"), "the look began before the doubt");
        let begun = all.begin("d");
        all.made("d", begun);
        assert!(all.is_empty("d") && all.take_new("d") && !all.take_new("d"));
        all.doubt_all(Doubt::Content);
        assert!(!all.is_empty("d"));
        all.made("d", begun);
        assert!(
            !all.is_empty("d") && all.take_new("d"),
            "somebody was quicker with its pod"
        );
    }

    #[test]
    fn what_a_quota_counts_is_no_news_and_what_it_allows_is() {
        let all = Confinement::default();
        assert!(!all.counts(&quota("1", "0")), "nothing is known of it");
        let begun = all.begin("cell");
        all.found("cell", begun, found(Instant::now()));
        assert!(all.counts(&quota("1", "1")));
        assert!(!all.counts(&quota("2", "1")));
        let mut wide = quota("1", "1");
        wide.status = quota("2", "1").status;
        assert!(!all.counts(&wide), "what admission goes by");
        let mut another = quota("1", "1");
        another.metadata.uid = Some("another".to_owned());
        assert!(!all.counts(&another));
    }
}
