//! The writes by which one cell goes from preview to preview, as a model: every order of every step of three operators that may be
//! killed anywhere or stand still for as long as they like, for two previews that are ended at any moment. Never do two previews live
//! in it, never is a pod taken for another preview's, and none is there without the slots of its preview.
//!
//! The same search with one precondition taken out finds the order in which it goes wrong: so each of them is needed. The program is
//! `operator/src/preview/cells.rs` with `apply.rs`.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod search;

use search::{Model, must_fail, must_hold};

/// How many reconciliations each operator begins.
const TASKS: u8 = 2;

/// A precondition of the protocol that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precondition {
    /// A cell is claimed in the version that was seen.
    ClaimedAsSeen,
    /// What an earlier attempt has claimed is written again.
    ClaimedAgain,
    /// A cell is given back in the version that was seen.
    ReturnedAsSeen,
    /// Of a preview that waits, it is given back only after a write to the preview.
    PreviewFirst,
    /// A cell is freed in the version that was seen.
    FreedAsSeen,
    /// Whoever frees it raises its epoch.
    EpochRaised,
    /// The API server refuses a pod for another epoch than the cell's.
    EpochMatches,
    /// The preview is looked at again after the cell was, and before the pod is made.
    PreviewAfter,
    /// After it was freed it is looked whether a pod was made before.
    LookedThen,
}

const ALL: [Precondition; 9] = [
    Precondition::ClaimedAsSeen,
    Precondition::ClaimedAgain,
    Precondition::ReturnedAsSeen,
    Precondition::PreviewFirst,
    Precondition::FreedAsSeen,
    Precondition::EpochRaised,
    Precondition::EpochMatches,
    Precondition::PreviewAfter,
    Precondition::LookedThen,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Not admitted.
    Waits,
    /// Lives in the cell.
    Lives,
    /// Its end is recorded.
    Over,
    /// Its slots are given back.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Preview {
    version: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pod {
    of: usize,
    epoch: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    version: u8,
    epoch: u8,
    tenant: Option<usize>,
    pod: Option<Pod>,
}

/// What an operator is about to do for a preview, and the versions that it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Look at the cell, having looked at the preview.
    Look {
        of: usize,
        preview: u8,
        stage: Stage,
    },
    Claim {
        of: usize,
        preview: u8,
        cell: u8,
    },
    Commit {
        of: usize,
        preview: u8,
    },
    /// It is not its turn after all: write the preview.
    Yield {
        of: usize,
        preview: u8,
        cell: u8,
    },
    Return {
        cell: u8,
    },
    LookAgain {
        of: usize,
        preview: u8,
        epoch: u8,
    },
    MakePod {
        of: usize,
        epoch: u8,
    },
    DeletePod {
        pod: Pod,
    },
    Free {
        of: usize,
        cell: u8,
    },
    LookInside {
        of: usize,
    },
    Conclude {
        of: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    previews: [Preview; 2],
    cell: Cell,
    operators: [(Step, u8); 3],
}

impl State {
    const fn begin() -> Self {
        Self {
            previews: [Preview {
                version: 0,
                stage: Stage::Waits,
            }; 2],
            cell: Cell {
                version: 0,
                epoch: 0,
                tenant: None,
                pod: None,
            },
            operators: [(Step::Idle, TASKS); 3],
        }
    }

    /// Writes a preview as it was seen; whether it was so still.
    fn write(&mut self, of: usize, seen: u8, stage: Option<Stage>) -> bool {
        let preview = &mut self.previews[of];
        if preview.version != seen {
            return false;
        }
        preview.version += 1;
        preview.stage = stage.unwrap_or(preview.stage);
        true
    }

    /// What an operator may do next, in the state that it finds.
    fn act(&mut self, step: Step, without: Option<Precondition>) -> Step {
        let is_without = |precondition| without == Some(precondition);
        match step {
            Step::Idle => Step::Idle,
            Step::Look { of, preview, stage } => {
                let cell = self.cell;
                let ours = cell.tenant == Some(of);
                match stage {
                    Stage::Waits if ours && is_without(Precondition::ClaimedAgain) => {
                        Step::Commit { of, preview }
                    }
                    Stage::Waits if ours || cell.tenant.is_none() => Step::Claim {
                        of,
                        preview,
                        cell: cell.version,
                    },
                    Stage::Lives if ours && cell.pod.is_none() => Step::LookAgain {
                        of,
                        preview,
                        epoch: cell.epoch,
                    },
                    Stage::Over => match cell.pod {
                        Some(pod) if ours || pod.of == of => Step::DeletePod { pod },
                        _ if ours => Step::Free {
                            of,
                            cell: cell.version,
                        },
                        _ => Step::LookInside { of },
                    },
                    _ => Step::Idle,
                }
            }
            Step::Claim { of, preview, cell } => {
                if self.cell.version != cell && !is_without(Precondition::ClaimedAsSeen) {
                    return Step::Idle;
                }
                self.cell.tenant = Some(of);
                self.cell.version += 1;
                Step::Commit { of, preview }
            }
            Step::Commit { of, preview } => {
                self.write(of, preview, Some(Stage::Lives));
                Step::Idle
            }
            Step::Yield { of, preview, cell } => {
                if is_without(Precondition::PreviewFirst) || self.write(of, preview, None) {
                    return Step::Return { cell };
                }
                Step::Idle
            }
            Step::Return { cell } => {
                if self.cell.version == cell || is_without(Precondition::ReturnedAsSeen) {
                    self.cell.tenant = None;
                    self.cell.version += 1;
                }
                Step::Idle
            }
            Step::LookAgain { of, preview, epoch } => {
                if self.previews[of].version == preview || is_without(Precondition::PreviewAfter) {
                    return Step::MakePod { of, epoch };
                }
                Step::Idle
            }
            Step::MakePod { of, epoch } => {
                // One name, and a quota of one.
                if self.cell.pod.is_none()
                    && (self.cell.epoch == epoch || is_without(Precondition::EpochMatches))
                {
                    self.cell.pod = Some(Pod { of, epoch });
                }
                Step::Idle
            }
            Step::DeletePod { pod } => {
                // This very one.
                if self.cell.pod == Some(pod) {
                    self.cell.pod = None;
                }
                Step::Idle
            }
            Step::Free { of, cell } => {
                if self.cell.version != cell && !is_without(Precondition::FreedAsSeen) {
                    return Step::Idle;
                }
                self.cell.tenant = None;
                self.cell.version += 1;
                if !is_without(Precondition::EpochRaised) {
                    self.cell.epoch += 1;
                }
                Step::LookInside { of }
            }
            Step::LookInside { of } => {
                let left = self.cell.pod.is_some_and(|pod| pod.of == of);
                if left && !is_without(Precondition::LookedThen) {
                    return Step::Idle;
                }
                Step::Conclude { of }
            }
            Step::Conclude { of } => {
                self.previews[of].stage = Stage::Done;
                Step::Idle
            }
        }
    }
}

impl Model for State {
    type Precondition = Precondition;

    fn wrong(&self) -> Option<&'static str> {
        let lives = |of: usize| self.previews[of].stage == Stage::Lives;
        if lives(0) && lives(1) {
            return Some("two previews live in one cell");
        }
        if (0..2).any(|of| lives(of) && self.cell.tenant != Some(of)) {
            return Some("a preview lives in a cell that is not its own");
        }
        let pod = self.cell.pod?;
        if self.previews[pod.of].stage == Stage::Done {
            return Some("a pod without slots");
        }
        let other = 1 - pod.of;
        (lives(other) && self.cell.tenant == Some(other) && pod.epoch == self.cell.epoch)
            .then_some("a preview's pod is taken for another's")
    }

    fn next(&self, without: Option<Precondition>) -> Vec<Self> {
        let mut states = vec![];
        for operator in 0..3 {
            let (step, tasks) = self.operators[operator];
            let mut after = |change: &dyn Fn(&mut Self) -> Step| {
                let mut state = *self;
                let step = change(&mut state);
                state.operators[operator].0 = step;
                states.push(state);
            };
            if step == Step::Idle {
                for of in 0..2 {
                    let Preview { version, stage } = self.previews[of];
                    if tasks > 0 && stage != Stage::Done {
                        after(&|state| {
                            state.operators[operator].1 -= 1;
                            Step::Look {
                                of,
                                preview: version,
                                stage,
                            }
                        });
                    }
                }
                continue;
            }
            // It is killed; or it goes on.
            after(&|_| Step::Idle);
            after(&|state| state.act(step, without));
            // Or it has found that another one's turn has come first.
            if let Step::Look {
                of,
                preview,
                stage: Stage::Waits,
            } = step
                && self.cell.tenant == Some(of)
            {
                let cell = self.cell.version;
                after(&|_| Step::Yield { of, preview, cell });
            }
        }
        for of in 0..2 {
            if self.previews[of].stage == Stage::Lives {
                let mut state = *self;
                state.write(of, self.previews[of].version, Some(Stage::Over));
                states.push(state);
            }
        }
        states
    }
}

#[test]
fn one_cell_goes_from_preview_to_preview_in_any_order_and_never_has_two() {
    let states = must_hold(State::begin());
    // They do come up: both have had it, and a late pod of the first was there after that.
    let both = |state: &State| state.previews.iter().all(|preview| preview.stage == Stage::Done);
    assert!(states.iter().any(both));
    let late = |state: &State| {
        state
            .cell
            .pod
            .is_some_and(|pod| pod.epoch != state.cell.epoch && state.cell.tenant == Some(1 - pod.of))
    };
    assert!(states.iter().any(late));
}

#[test]
fn without_any_one_of_its_preconditions_the_protocol_goes_wrong() {
    must_fail(State::begin(), &ALL);
}
