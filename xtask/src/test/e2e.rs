//! The stage of tests/e2e: gives each test binary the clusters that it needs. Starts clusters through `clusters`.

use std::path::Path;
use std::time::Duration;

use vitrine_devcluster::Level;

use super::binaries::{How, Ran, TestBinary};
use super::queue::{Kind, Need, Queue};
use super::{E2E, Run, SOAK, SOAK_LIMIT};
use crate::clusters::{Clusters, Needs};
use crate::error::Error;
use crate::progress::Progress;

/// Crash tests go through every write of a preview's life; the slowest binary has this long.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// One binary, and the tests of it that are wanted.
struct Planned<'a> {
    binary: &'a TestBinary,
    selected: Vec<String>,
}

/// What each lane takes: of the first kind until there is none, then of the second. More lanes than there are cores: tests on
/// clusters mostly wait, those on a node most of all.
const LANES: [&[Kind]; 3] = [
    &[Kind::Node, Kind::NoNode],
    &[Kind::NoNode, Kind::Node],
    &[Kind::Node, Kind::NoNode],
];

/// The tests of a binary that are under way at once beside other lanes: where they say that they may be.
const THREADS: usize = 4;

/// How binaries of a lane ran, by their place in the plan, or why one has no cluster; and what went wrong as clusters went down.
type Lane = (Vec<(usize, Result<Ran, Error>)>, Vec<String>);

/// What all lanes share.
struct Lanes<'a> {
    plan: &'a [Planned<'a>],
    queue: Queue,
    soak: Option<&'a str>,
    logs: &'a Path,
}

impl Lanes<'_> {
    /// Runs binaries one after the other, on clusters of the lane's own, of which those are left in the end that `then` needs.
    fn run(&self, clusters: &mut Clusters, kinds: &[Kind], then: &[Kind], progress: &Progress) -> Lane {
        let (mut outcomes, mut troubles) = (vec![], vec![]);
        while let Some((place, Need { kind, levels })) = self.queue.take(kinds) {
            let Planned { binary, selected } = &self.plan[place];
            let needed = [
                levels.clone(),
                self.queue.levels(&[*kind]),
                self.queue.levels(then),
            ]
            .concat();
            if let Err(error) = clusters.keep_only(&needed) {
                troubles.push(format!("before {}: {error}", binary.label));
            }
            let ran = clusters.ensure(levels).map(|mut env| {
                if let Some(soak) = self.soak {
                    env.push((SOAK.into(), soak.into()));
                }
                let how = How {
                    env: &env,
                    limit: if self.soak.is_some() { SOAK_LIMIT } else { LIMIT },
                    threads: Some(if *kind == Kind::Timed { 1 } else { THREADS }),
                };
                binary.run(selected, &how, self.logs, progress)
            });
            outcomes.push((place, ran));
        }
        if let Err(error) = clusters.keep_only(&self.queue.levels(then)) {
            troubles.push(format!("at the end: {error}"));
        }
        (outcomes, troubles)
    }

    /// All lanes side by side, and then, when there is nothing beside it, what is timed, on what the first lane has left.
    fn run_all(&self, progress: &Progress) -> Vec<Option<Lane>> {
        let timed = [Kind::Timed];
        let mut clusters: [_; LANES.len()] =
            std::array::from_fn(|lane| Clusters::none(lane, self.logs.to_owned()));
        let mut lanes: Vec<_> = std::thread::scope(|scope| {
            let started = LANES.iter().zip(&mut clusters).enumerate();
            let started = started.map(|(lane, (kinds, clusters))| {
                let then: &[Kind] = if lane == 0 { &timed } else { &[] };
                let progress = progress.beside();
                scope.spawn(move || self.run(clusters, kinds, then, &progress))
            });
            let started: Vec<_> = started.collect();
            started.into_iter().map(|lane| lane.join().ok()).collect()
        });
        let [first, ..] = &mut clusters;
        lanes.push(Some(self.run(first, &timed, &[], progress)));
        lanes
    }
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
            .map(|binary| Planned {
                binary,
                selected: self.selected(binary),
            })
            .collect();
        plan.retain(|planned| !planned.selected.is_empty());
        plan.sort_by_key(|planned| needs.place(&planned.binary.label));
        let need = |planned: &Planned| {
            let levels = needs.levels(&planned.binary.label);
            let kind = if needs.is_timed(&planned.binary.label) {
                Kind::Timed
            } else if levels.contains(&Level::Full) {
                Kind::Node
            } else {
                Kind::NoNode
            };
            Need { kind, levels }
        };
        let shared = Lanes {
            plan: &plan,
            queue: Queue::of(plan.iter().map(need).collect()),
            soak: self.soak.as_deref(),
            logs: &self.logs,
        };
        let lanes = shared.run_all(&self.progress);
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
        for (planned, outcome) in plan.iter().zip(ran) {
            let (binary, selected) = (planned.binary, &planned.selected);
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
