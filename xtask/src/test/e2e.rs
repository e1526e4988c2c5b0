//! The stage of tests/e2e: gives each test binary the clusters that it needs. Starts clusters through `clusters`.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// How many binaries must be left for a second node to be worth its start.
const WORTH_A_NODE: usize = 3;

/// Tells tests to run with the counts that evidence needs.
const SOAK: &str = "VITRINE_SOAK";

/// One binary, the tests of it that are wanted, and the levels that it needs.
type Planned<'a> = (&'a TestBinary, Vec<String>, Vec<Level>);

/// How each binary of a lane ran, or why it has no cluster; and what went wrong as clusters went down.
type Lane<'a> = (Vec<(Planned<'a>, Result<Ran, Error>)>, Vec<String>);

/// What both lanes take from: the binaries that need a node.
struct Shelf<'a>(Mutex<VecDeque<Planned<'a>>>);

/// From where a lane takes: the first lane in order, the second from the back, when it has nothing else to do.
#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl<'a> Shelf<'a> {
    fn take(&self, end: End) -> Option<Planned<'a>> {
        let mut left = self.lock();
        match end {
            End::Front => left.pop_front(),
            // A second node costs half a minute of two cores: not for the last of them.
            End::Back if left.len() < WORTH_A_NODE => None,
            End::Back => left.pop_back(),
        }
    }

    fn is_empty(&self, end: End) -> bool {
        match end {
            End::Front => self.lock().is_empty(),
            End::Back => self.lock().len() < WORTH_A_NODE,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Planned<'a>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs binaries one after the other: its own, and then those of the shelf.
fn run_lane<'a>(
    own: Vec<Planned<'a>>,
    (shelf, end): (&Shelf<'a>, End),
    soak: bool,
    logs: &Path,
    progress: &Progress,
) -> Lane<'a> {
    let lane = match end {
        End::Front => "a",
        End::Back => "b",
    };
    let mut clusters = Clusters::none(lane, logs.to_owned());
    let (mut outcomes, mut troubles) = (vec![], vec![]);
    let mut own = VecDeque::from(own);
    while let Some((binary, selected, levels)) = own.pop_front().or_else(|| shelf.take(end)) {
        let outcome = clusters.ensure(&levels).map(|mut env| {
            if soak {
                env.push((SOAK.into(), "1".into()));
            }
            let limit = if soak { SOAK_LIMIT } else { LIMIT };
            binary.run(&selected, &env, limit, logs, progress)
        });
        let mut later: Vec<Level> = own.iter().flat_map(|(_, _, levels)| levels).copied().collect();
        if !shelf.is_empty(end) {
            later.push(Level::Full);
        }
        if let Err(error) = clusters.keep_only(&later) {
            troubles.push(format!("after {}: {error}", binary.label));
        }
        outcomes.push(((binary, selected, levels), outcome));
    }
    // What the other lane has taken meanwhile may have been what a cluster was kept for.
    if let Err(error) = clusters.keep_only(&[]) {
        troubles.push(format!("at the end: {error}"));
    }
    (outcomes, troubles)
}

impl Run {
    /// Two lanes side by side: what needs a node, and what does not, which then helps the first. Tests on clusters mostly wait.
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
        let shelf = Shelf(Mutex::new(node.into()));
        let (node, beside) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| {
                let progress = progress;
                run_lane(no_node, (&shelf, End::Back), soak, logs, &progress)
            });
            let node = run_lane(vec![], (&shelf, End::Front), soak, logs, &self.progress);
            (node, beside.join())
        });
        self.close_lane(node);
        match beside {
            Ok(done) => self.close_lane(done),
            Err(_) => self.fail(
                None,
                E2E,
                "e2e",
                "(run)",
                "the lane without a node panicked".to_owned(),
            ),
        }
    }

    fn close_lane(&mut self, (outcomes, troubles): Lane) {
        for ((binary, selected, _), outcome) in outcomes {
            match outcome {
                Ok(ran) => self.take(binary, &selected, ran),
                Err(why) => {
                    for test in selected {
                        let why = format!("it has no cluster: {why}");
                        self.fail(None, E2E, &binary.label, &test, why);
                    }
                }
            }
        }
        for trouble in troubles {
            self.fail(None, E2E, "e2e", "(clusters go down)", trouble);
        }
    }
}
