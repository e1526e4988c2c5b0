//! The clusters that the tests in tests/e2e share, one a level and lane. Starts and ends clusters of its own, by name.
//!
//! They are owned: they end with this process, however it ends. A level is brought up when the first test binary
//! needs it and goes down after the last one, so that no more of them share two cores than must.
//!
//! `package.metadata.vitrine.clusters` in tests/e2e/Cargo.toml says which level a test binary needs, as `["isolation", "full"]`,
//! and in which order they run; one that is not listed gets all of them, and runs first. `timed` beside it names those that run after
//! all others, one at a time.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Deserialize;
use vitrine_devcluster::{Cluster, ClusterConfig, Level, Lifetime, progress, tools};

use crate::error::Error;
use crate::workspace::Member;

/// The levels, with the variable that tells tests the name of the cluster, smallest first.
const LEVELS: [(Level, &str); 3] = [
    (Level::ControlPlane, "VITRINE_E2E_CONTROL_PLANE"),
    (Level::Scale, "VITRINE_E2E_SCALE"),
    (Level::Full, "VITRINE_E2E_FULL"),
];

/// Which clusters each test binary needs, and which ones need the machine for themselves.
pub struct Needs {
    clusters: Vec<(String, Level)>,
    timed: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    vitrine: Section,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    clusters: Vec<(String, Level)>,
    timed: Vec<String>,
}

impl Needs {
    /// As the package says. A line for a binary that does not exist is an error: it would be a typing mistake
    /// that costs minutes in every run.
    pub fn of(member: &Member) -> Result<Self, Error> {
        let what = || format!("package.metadata.vitrine in {}", member.manifest_path.display());
        let metadata: Option<Metadata> =
            Deserialize::deserialize(&member.metadata).map_err(|error| Error::shape(what(), error))?;
        let Section { clusters, timed } = metadata.unwrap_or_default().vitrine;
        let known = |name: &str| member.targets.iter().any(|target| target.label() == name);
        let mut named = clusters.iter().map(|(name, _)| name).chain(&timed);
        match named.find(|name| !known(name)) {
            Some(name) => Err(Error::shape(what(), format!("there is no test binary {name:?}"))),
            None => Ok(Self { clusters, timed }),
        }
    }

    /// The levels that a binary needs, smallest first. Unit tests need none.
    pub fn levels(&self, label: &str) -> Vec<Level> {
        match self.place(label) {
            _ if label == "lib" => Vec::new(),
            Some(place) => vec![self.clusters[place].1],
            None => LEVELS.map(|(level, _)| level).to_vec(),
        }
    }

    /// Where a binary stands in the order of binaries, if anywhere.
    pub fn place(&self, label: &str) -> Option<usize> {
        self.clusters.iter().position(|(name, _)| name == label)
    }

    /// Whether a binary holds Vitrine to seconds, and nothing else may run beside it.
    pub fn is_timed(&self, label: &str) -> bool {
        self.timed.iter().any(|name| name == label)
    }
}

/// The clusters that run now.
pub struct Clusters {
    lane: usize,
    running: Vec<(Level, Cluster)>,
    logs: PathBuf,
}

impl Clusters {
    /// None yet, for one of the lanes that run side by side. The clusters' own logs are kept below `logs`.
    pub fn none(lane: usize, logs: PathBuf) -> Self {
        Self {
            lane,
            running: Vec::new(),
            logs,
        }
    }

    /// Sees to it that these levels run, and says so in the variables that tests read.
    pub fn ensure(&mut self, levels: &[Level]) -> Result<Vec<(OsString, OsString)>, Error> {
        for level in levels {
            if !self.running.iter().any(|(running, _)| running == level) {
                // The process id: two checkouts can run their tests at once.
                let name = format!("test-{level}-{}-{}", self.lane, std::process::id());
                let mut config = ClusterConfig::new(name, *level);
                config.gvisor = true;
                config.keep_logs = Some(self.logs.join(format!("cluster-{level}-{}", self.lane)));
                let cluster = Cluster::up(&config, Lifetime::Owned, &*progress::for_stderr(false))?;
                self.running.push((*level, cluster));
            }
        }
        let named = self.running.iter().filter(|(level, _)| levels.contains(level));
        Ok(named
            .map(|(level, cluster)| (variable(*level).into(), cluster.name().into()))
            .collect())
    }

    /// Ends the clusters of all other levels than these.
    pub fn keep_only(&mut self, levels: &[Level]) -> Result<(), Error> {
        let (keep, end) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|(level, _)| levels.contains(level));
        self.running = keep;
        // All of them, even if one resists; its error is the one that is told.
        let ended: Vec<_> = end.into_iter().map(|(_, cluster)| cluster.down()).collect();
        ended.into_iter().collect::<Result<(), _>>().map_err(Error::from)
    }
}

fn variable(level: Level) -> &'static str {
    LEVELS
        .iter()
        .find(|(known, _)| *known == level)
        .map_or("VITRINE_E2E", |(_, variable)| variable)
}

/// Builds all programs of all levels and those that tests call, so that no test waits minutes for one.
pub fn build_tools() -> Result<(), Error> {
    let groups = tools::groups()?;
    let names: Vec<&str> = groups.iter().map(|group| group.group.as_str()).collect();
    tools::ensure(&names, &*progress::for_stderr(false))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Target;
    use Level::{ControlPlane, Full, Scale};

    fn member(metadata: serde_json::Value) -> Member {
        let target = |name: &str| Target {
            name: name.to_owned(),
            kind: vec!["test".to_owned()],
            test: true,
        };
        Member {
            name: "tests".to_owned(),
            version: "0.1.0".to_owned(),
            id: "tests".to_owned(),
            manifest_path: "/tests/Cargo.toml".into(),
            targets: vec![target("isolation"), target("cel"), target("other")],
            dependencies: Vec::new(),
            metadata,
        }
    }

    #[test]
    fn a_binary_needs_what_its_package_says_and_otherwise_everything() {
        let member = member(serde_json::json!({
            "vitrine": { "clusters": [["isolation", "full"], ["cel", "control-plane"]] }
        }));
        let needs = Needs::of(&member).unwrap();
        assert_eq!(needs.levels("isolation"), [Full]);
        assert_eq!(needs.levels("cel"), [ControlPlane]);
        assert_eq!(needs.levels("other"), [ControlPlane, Scale, Full]);
        assert_eq!(needs.levels("lib"), []);
    }

    #[test]
    fn a_package_may_say_nothing() {
        let needs = Needs::of(&member(serde_json::Value::Null)).unwrap();
        assert_eq!(needs.levels("isolation"), [ControlPlane, Scale, Full]);
    }

    #[test]
    fn a_misspelt_binary_or_level_is_an_error() {
        for clusters in [
            serde_json::json!([["isolatoin", "full"]]),
            serde_json::json!([["isolation", "huge"]]),
        ] {
            let member = member(serde_json::json!({ "vitrine": { "clusters": clusters } }));
            assert!(Needs::of(&member).is_err(), "{clusters}");
        }
        let member = member(serde_json::json!({ "vitrine": { "timed": ["isolatoin"] } }));
        assert!(Needs::of(&member).is_err());
    }

    #[test]
    fn what_is_timed_is_named() {
        let member = member(serde_json::json!({ "vitrine": { "timed": ["isolation"] } }));
        let needs = Needs::of(&member).unwrap();
        assert!(needs.is_timed("isolation") && !needs.is_timed("cel"));
    }

    #[test]
    fn binaries_run_in_the_order_of_the_list_and_one_that_is_not_on_it_before_all() {
        let member = member(serde_json::json!({
            "vitrine": { "clusters": [["isolation", "full"], ["cel", "control-plane"]] }
        }));
        let needs = Needs::of(&member).unwrap();
        let mut order = ["cel", "other", "isolation"];
        order.sort_by_key(|label| needs.place(label));
        assert_eq!(order, ["other", "isolation", "cel"]);
    }
}
