//! The stage of tests/e2e: gives each test binary the clusters that it needs. Starts clusters through `clusters`.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vitrine_devcluster::Level;

use super::binaries::{Ran, TestBinary};
use super::{E2E, Run};
use crate::clusters::{Clusters, Needs};
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

/// What needs a node, and what does not: each kind is run on clusters that the other has no use for.
const KINDS: usize = 2;

/// The kind that each lane begins with, before it helps with the other. More lanes than there are cores: tests on clusters mostly
/// wait, those on a node most of all.
const LANES: [usize; 3] = [0, 1, 0];

/// The work of all lanes, as places in the plan, by kind.
struct Queue<'a> {
    plan: &'a [Planned<'a>],
    left: Mutex<[VecDeque<usize>; KINDS]>,
}

impl<'a> Queue<'a> {
    fn of(plan: &'a [Planned<'a>]) -> Self {
        let (node, no_node) = (0..plan.len()).partition(|place: &usize| kind(&plan[*place]) == 0);
        Self {
            plan,
            left: Mutex::new([node, no_node]),
        }
    }

    fn left(&self) -> MutexGuard<'_, [VecDeque<usize>; KINDS]> {
        // A lane that panicked has taken whole places.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next place for a lane.
    fn take(&self, lane: usize) -> Option<usize> {
        let mut left = self.left();
        (0..KINDS).find_map(|further| left[(LANES[lane] + further) % KINDS].pop_front())
    }

    /// The levels that a lane needs for the next place and for what is left of its kind.
    fn levels(&self, place: usize) -> Vec<Level> {
        let left = self.left();
        let places = left[kind(&self.plan[place])].iter().copied().chain([place]);
        places.flat_map(|place| self.plan[place].2.clone()).collect()
    }
}

fn kind((_, _, levels): &Planned) -> usize {
    usize::from(!levels.contains(&Level::Full))
}

/// How binaries of a lane ran, by their place in the plan, or why one has no cluster; and what went wrong as clusters went down.
type Lane = (Vec<(usize, Result<Ran, Error>)>, Vec<String>);

/// Runs binaries one after the other, on clusters of the lane's own.
fn run_lane(lane: usize, queue: &Queue, soak: bool, logs: &Path, progress: &Progress) -> Lane {
    let mut clusters = Clusters::none(lane, logs.to_owned());
    let (mut outcomes, mut troubles) = (vec![], vec![]);
    while let Some(place) = queue.take(lane) {
        let (binary, selected, levels) = &queue.plan[place];
        if let Err(error) = clusters.keep_only(&queue.levels(place)) {
            troubles.push(format!("before {}: {error}", binary.label));
        }
        let ran = clusters.ensure(levels).map(|mut env| {
            if soak {
                env.push((SOAK.into(), "1".into()));
            }
            let limit = if soak { SOAK_LIMIT } else { LIMIT };
            binary.run(selected, &env, limit, logs, progress)
        });
        outcomes.push((place, ran));
    }
    if let Err(error) = clusters.keep_only(&[]) {
        troubles.push(format!("at the end: {error}"));
    }
    (outcomes, troubles)
}

impl Run {
    /// Lanes side by side, each with clusters of its own.
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
        plan.sort_by_key(|(binary, _, _)| needs.place(&binary.label));
        let queue = Queue::of(&plan);
        let (soak, logs) = (self.soak, &self.logs);
        let lanes: Vec<Option<Lane>> = std::thread::scope(|scope| {
            let queue = &queue;
            let others: Vec<_> = (1..LANES.len())
                .map(|lane| {
                    let progress = self.progress.beside();
                    scope.spawn(move || {
                        let progress = progress;
                        run_lane(lane, queue, soak, logs, &progress)
                    })
                })
                .collect();
            let first = run_lane(0, queue, soak, logs, &self.progress);
            let others = others.into_iter().map(|lane| lane.join().ok());
            std::iter::once(Some(first)).chain(others).collect()
        });
        let mut ran: Vec<_> = plan.iter().map(|_| None).collect();
        for lane in lanes {
            let Some((outcomes, troubles)) = lane else {
                self.fail(None, E2E, "e2e", "(run)", "a lane panicked".to_owned());
                continue;
            };
            for trouble in troubles {
                self.fail(None, E2E, "e2e", "(clusters go down)", trouble);
            }
            for (place, outcome) in outcomes {
                ran[place] = Some(outcome);
            }
        }
        for ((binary, selected, _), outcome) in plan.iter().zip(ran) {
            let why = match outcome {
                Some(Ok(ran)) => {
                    self.take(binary, selected, ran);
                    continue;
                }
                Some(Err(why)) => format!("it has no cluster: {why}"),
                None => "it did not run".to_owned(),
            };
            for test in selected {
                self.fail(None, E2E, &binary.label, test, why.clone());
            }
        }
    }
}
