//! Which cells of pools were found confined as they must be, by a look at all of it, and were not doubted since. In memory.
//!
//! Such a look is six reads, and a cell that is used again would have two for each pod: before it is made and when it is proven.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::ResourceQuota;
use kube::ResourceExt;
use serde_json::json;
use vitrine_policies::names;

/// What a look at all of a cell has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which previews it confines as they must be (`record::lot`).
    pub lot: String,
    /// What its network policy is known by.
    pub seal: String,
    /// What its quota allows ([`allows`]).
    pub quota: String,
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

#[derive(Debug, Default)]
struct Seen {
    /// The number of the last doubt in it.
    doubted: u64,
    found: Option<Found>,
}

impl Confinement {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at a cell begins.
    pub fn begin(&self, cell: &str) -> Begun {
        let mut inner = self.inner();
        if !inner.cells.contains_key(cell) {
            inner.cells.insert(cell.to_owned(), Seen::default());
        }
        Begun(inner.doubts)
    }

    /// Whether nothing that the look has found is doubted since it began.
    pub fn holds(&self, cell: &str, begun: Begun) -> bool {
        let inner = self.inner();
        inner.cells.get(cell).is_some_and(|seen| seen.doubted <= begun.0)
    }

    /// It has found this.
    pub fn found(&self, cell: &str, begun: Begun, found: Found) {
        let mut inner = self.inner();
        if let Some(seen) = inner.cells.get_mut(cell).filter(|seen| seen.doubted <= begun.0) {
            seen.found = Some(found);
        }
    }

    /// What was found of a cell that confines such previews, if it is not doubted.
    pub fn of(&self, cell: &str, lot: &str) -> Option<Found> {
        let inner = self.inner();
        inner
            .cells
            .get(cell)?
            .found
            .clone()
            .filter(|found| found.lot == lot)
    }

    /// Whether a cell's quota is the one that was found, and differs at most in what it counts.
    pub fn counts(&self, quota: &ResourceQuota) -> bool {
        let cell = quota.namespace().unwrap_or_default();
        let inner = self.inner();
        let found = inner.cells.get(&cell).and_then(|seen| seen.found.as_ref());
        found.is_some_and(|found| found.quota == allows(quota))
    }

    /// Something that confines a cell may be other than it was.
    pub fn doubt(&self, cell: &str) {
        let mut inner = self.inner();
        let doubts = inner.doubts + 1;
        if let Some(seen) = inner.cells.get_mut(cell) {
            *seen = Seen {
                doubted: doubts,
                found: None,
            };
            inner.doubts = doubts;
        }
    }

    /// A cell is gone.
    pub fn forget(&self, cell: &str) {
        self.inner().cells.remove(cell);
    }
}

/// What a quota allows, in short: everything of it but what it counts. The controller-manager writes that whenever a pod comes or goes.
pub fn allows(quota: &ResourceQuota) -> String {
    let meta = &quota.metadata;
    let text = json!([
        meta.uid,
        meta.labels,
        meta.annotations,
        meta.deletion_timestamp,
        quota.spec
    ]);
    names::digest(&["quota", &text.to_string()])[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(pods: &str, used: &str) -> ResourceQuota {
        let quota = json!({
            "metadata": {"namespace": "cell", "name": "vitrine", "uid": "u"},
            "spec": {"hard": {"count/pods": pods}}, "status": {"used": {"count/pods": used}}
        });
        serde_json::from_value(quota).unwrap()
    }

    fn found() -> Found {
        Found {
            lot: "lot".to_owned(),
            seal: "uid/1".to_owned(),
            quota: allows(&quota("1", "0")),
        }
    }

    #[test]
    fn what_was_found_holds_for_its_lot_until_a_doubt_comes() {
        let known = Confinement::default();
        let begun = known.begin("cell");
        known.found("cell", begun, found());
        assert_eq!(known.of("cell", "lot"), Some(found()));
        assert_eq!(known.of("cell", "another"), None);
        known.doubt("beside");
        assert!(known.holds("cell", begun));
        known.doubt("cell");
        assert_eq!(known.of("cell", "lot"), None);
        assert!(!known.holds("cell", begun));
    }

    #[test]
    fn a_doubt_that_comes_during_a_look_outlives_it() {
        let known = Confinement::default();
        let begun = known.begin("cell");
        known.doubt("cell");
        known.found("cell", begun, found());
        assert_eq!(known.of("cell", "lot"), None);
        let begun = known.begin("cell");
        assert!(known.holds("cell", begun));
        known.forget("cell");
        known.found("cell", begun, found());
        assert_eq!(known.of("cell", "lot"), None);
    }

    #[test]
    fn what_a_quota_counts_is_no_news_and_what_it_allows_is() {
        let known = Confinement::default();
        assert!(!known.counts(&quota("1", "0")), "nothing is known of it");
        let begun = known.begin("cell");
        known.found("cell", begun, found());
        assert!(known.counts(&quota("1", "1")));
        assert!(!known.counts(&quota("2", "1")));
        let mut another = quota("1", "1");
        another.metadata.uid = Some("another".to_owned());
        assert!(!known.counts(&another));
    }
}
