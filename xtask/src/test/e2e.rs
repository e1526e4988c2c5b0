//! The stage of tests/e2e: gives each test binary the clusters that it needs. Starts clusters through `clusters`.

use std::path::Path;
use std::time::Duration;

use vitrine_devcluster::Level;

use super::binaries::{Ran, TestBinary};
use super::{E2E, Run};
use crate::clusters::{self, Clusters, Needs};
use crate::error::Error;
use crate::progress::Progress;

/// Crash tests go through every write of a preview's life; the slowest binary has this long.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// Two hundred rounds of something that takes half a minute, and as much again.
const SOAK_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Tells tests to run with the counts that evidence needs.
const SOAK: &str = "VITRINE_SOAK";

/// One binary, the tests of it that are wanted, and the levels that it needs.
type Planned<'a> = (&'a TestBinary, Vec<String>, Vec<Level>);

/// How each binary of a lane ran, in its order, or why it has no cluster; and what went wrong as clusters went down.
type Lane = (Vec<Result<Ran, Error>>, Vec<String>);

/// Runs binaries one after the other.
fn run_lane(plan: &[Planned], soak: bool, logs: &Path, progress: &Progress) -> Lane {
    let mut clusters = Clusters::none(logs.to_owned());
    let (mut outcomes, mut troubles) = (vec![], vec![]);
    for (index, (binary, selected, levels)) in plan.iter().enumerate() {
        outcomes.push(clusters.ensure(levels).map(|mut env| {
            if soak {
                env.push((SOAK.into(), "1".into()));
            }
            let limit = if soak { SOAK_LIMIT } else { LIMIT };
            binary.run(selected, &env, limit, logs, progress)
        }));
        let later: Vec<Level> = plan[index + 1..]
            .iter()
            .flat_map(|(_, _, levels)| levels)
            .copied()
            .collect();
        if let Err(error) = clusters.keep_only(&later) {
            troubles.push(format!("after {}: {error}", binary.label));
        }
    }
    (outcomes, troubles)
}

impl Run {
    /// Two lanes side by side: what needs a node, and what does not. Tests on clusters mostly wait.
    pub(super) fn run_e2e(&mut self, built: &[TestBinary]) {
        let Some(needs) = self.workspace.member(E2E).map(Needs::of) else {
            return;
        };
        let needs = match needs {
            Ok(needs) => needs,
            Err(error) => return self.fail(None, E2E, "e2e", "(clusters)", error.to_string()),
        };
        let own = built.iter().filter(|binary| binary.package == E2E);
        let mut plan: Vec<Planned> = own
            .map(|binary| (binary, self.selected(binary), needs.levels(&binary.label)))
            .collect();
        plan.retain(|(_, selected, _)| !selected.is_empty());
        plan.sort_by_key(|(_, _, levels)| clusters::rank(levels));
        let (node, no_node): (Vec<_>, Vec<_>) = plan
            .into_iter()
            .partition(|(_, _, levels)| levels.contains(&Level::Full));
        let (soak, logs, progress) = (self.soak, &self.logs, self.progress.beside());
        let lanes = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let progress = progress;
                run_lane(&no_node, soak, logs, &progress)
            });
            let node = run_lane(&node, soak, logs, &self.progress);
            (node, beside.join())
        });
        self.close_lane(&node, lanes.0);
        match lanes.1 {
            Ok(done) => self.close_lane(&no_node, done),
            Err(_) => self.fail(
                None,
                E2E,
                "e2e",
                "(run)",
                "the lane without a node panicked".to_owned(),
            ),
        }
    }

    fn close_lane(&mut self, plan: &[Planned], (outcomes, troubles): Lane) {
        for ((binary, selected, _), outcome) in plan.iter().zip(outcomes) {
            match outcome {
                Ok(ran) => self.take(binary, selected, ran),
                Err(why) => {
                    for test in selected {
                        let why = format!("it has no cluster: {why}");
                        self.fail(None, E2E, &binary.label, test, why);
                    }
                }
            }
        }
        for trouble in troubles {
            self.fail(None, E2E, "e2e", "(clusters go down)", trouble);
        }
    }
}
