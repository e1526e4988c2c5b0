//! The writes by which a cell that waits in a pool, its pod running, comes to be a preview's, as a model: every order of every step of
//! three operators that may be killed anywhere or stand still for as long as they like, while the listing changes, and for two previews
//! that are ended at any moment. Never do two previews live in it, and whoever lives in it has the very pod that was proven.
//!
//! The same search with one precondition taken out finds the order in which it goes wrong: so each of them is needed. The program is
//! `operator/src/pool/cell.rs` with `claim_warm` and `close` of `operator/src/preview/cells.rs`; how a preview's end lets go of a cell
//! is tried more closely in `cell_reuse_protocol.rs`.
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
    /// A cell is claimed only in the epoch in which its pod was proven.
    ProvenInThisEpoch,
    /// A cell whose pod is to go is first for another pod, in the version that was seen.
    RenewedAsSeen,
    /// Of a cell that waits, a pod is ended only if it is of an earlier epoch.
    EndedAfterwards,
    /// Which epoch the cell is in, is asked once more after the pod was read: the pod may be of a later one than the cell was read in.
    AskedAgain,
    /// Of a preview that waits, a cell is given back only after a write to the preview.
    PreviewFirst,
    /// A cell is given back in the version that was seen.
    ReturnedAsSeen,
    /// Whoever frees a cell raises its epoch.
    EpochRaised,
}

const ALL: [Precondition; 7] = [
    Precondition::ClaimedAsSeen,
    Precondition::ProvenInThisEpoch,
    Precondition::RenewedAsSeen,
    Precondition::EndedAfterwards,
    Precondition::PreviewFirst,
    Precondition::ReturnedAsSeen,
    Precondition::EpochRaised,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Not admitted.
    Waits,
    /// Lives in the cell, with the pod of this epoch.
    Lives(u8),
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
    epoch: u8,
    /// Made from the listing as it was at first.
    outdated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    version: u8,
    epoch: u8,
    tenant: Option<usize>,
    pod: Option<Pod>,
}

/// What an operator is about to do, and what it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Look at the cell for its pool.
    LookAfter,
    /// Look at its pod, having looked at the cell.
    LookAtPod {
        cell: u8,
        epoch: u8,
    },
    /// Ask in which epoch the cell is, having looked at its pod.
    AskAgain {
        pod: Pod,
    },
    /// Make a pod from the listing as it was seen.
    MakePod {
        epoch: u8,
        changed: bool,
    },
    Renew {
        cell: u8,
    },
    EndPod {
        pod: Pod,
    },
    /// Look at the cell for a preview, having looked at that.
    Look {
        of: usize,
        preview: u8,
        stage: Stage,
    },
    Claim {
        of: usize,
        preview: u8,
        cell: u8,
        epoch: u8,
    },
    Commit {
        of: usize,
        preview: u8,
        epoch: u8,
    },
    /// It was cut off, or is not its turn after all: write the preview.
    Yield {
        of: usize,
        preview: u8,
        cell: u8,
    },
    Return {
        cell: u8,
    },
    Free {
        of: usize,
        cell: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operator {
    step: Step,
    tasks: u8,
    /// The epoch in which it has seen the cell's pod proven, in its memory.
    warm: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    previews: [Preview; 2],
    cell: Cell,
    changed: bool,
    operators: [Operator; 3],
}

impl State {
    /// The cell waits, and all operators know it.
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
                pod: Some(Pod {
                    epoch: 0,
                    outdated: false,
                }),
            },
            changed: false,
            operators: [Operator {
                step: Step::Idle,
                tasks: TASKS,
                warm: Some(0),
            }; 3],
        }
    }

    /// The same, but one stands still since it read the cell, which was renewed and filled again meanwhile: more steps than a search from
    /// the beginning comes to.
    const fn one_stood_still() -> Self {
        let mut state = Self::begin();
        state.cell.version = 1;
        state.cell.epoch = 1;
        state.cell.pod = Some(Pod {
            epoch: 1,
            outdated: false,
        });
        let mut number = 0;
        while number < 3 {
            state.operators[number].warm = Some(1);
            number += 1;
        }
        state.operators[0].warm = None;
        state.operators[0].step = Step::LookAtPod { cell: 0, epoch: 0 };
        state
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

    const fn look_after(&self) -> Step {
        match self.cell.tenant {
            Some(_) => Step::Idle,
            None => Step::LookAtPod {
                cell: self.cell.version,
                epoch: self.cell.epoch,
            },
        }
    }

    fn look_at_pod(&mut self, operator: usize, seen: (u8, u8), without: Option<Precondition>) -> Step {
        let (cell, epoch) = seen;
        match self.cell.pod {
            None => Step::MakePod {
                epoch,
                changed: self.changed,
            },
            Some(pod) if pod.epoch != epoch && without == Some(Precondition::AskedAgain) => {
                Step::EndPod { pod }
            }
            Some(pod) if pod.epoch != epoch => Step::AskAgain { pod },
            Some(pod) if pod.outdated && without == Some(Precondition::EndedAfterwards) => {
                Step::EndPod { pod }
            }
            Some(pod) if pod.outdated => Step::Renew { cell },
            Some(_) => {
                self.operators[operator].warm = Some(epoch);
                Step::Idle
            }
        }
    }

    fn look(&mut self, operator: usize, step: (usize, u8, Stage), without: Option<Precondition>) -> Step {
        let (of, preview, stage) = step;
        let cell = self.cell;
        let ours = cell.tenant == Some(of);
        match stage {
            Stage::Waits if ours => Step::Yield {
                of,
                preview,
                cell: cell.version,
            },
            Stage::Waits => {
                let Some(epoch) = self.operators[operator].warm.take() else {
                    return Step::Idle;
                };
                let proven = cell.epoch == epoch || without == Some(Precondition::ProvenInThisEpoch);
                if cell.tenant.is_some() || !proven {
                    return Step::Idle;
                }
                Step::Claim {
                    of,
                    preview,
                    cell: cell.version,
                    epoch,
                }
            }
            Stage::Over if ours => match cell.pod {
                Some(pod) => Step::EndPod { pod },
                None => Step::Free {
                    of,
                    cell: cell.version,
                },
            },
            // Another operator has freed it.
            Stage::Over => {
                self.previews[of].stage = Stage::Done;
                Step::Idle
            }
            Stage::Lives(_) | Stage::Done => Step::Idle,
        }
    }

    /// Writes the cell as it was seen.
    fn annotate(&mut self, seen: u8, anyhow: bool, change: impl Fn(&mut Cell)) -> bool {
        if self.cell.version != seen && !anyhow {
            return false;
        }
        change(&mut self.cell);
        self.cell.version += 1;
        true
    }

    /// What an operator may do next, in the state that it finds.
    fn act(&mut self, operator: usize, without: Option<Precondition>) -> Step {
        let is_without = |precondition| without == Some(precondition);
        match self.operators[operator].step {
            Step::Idle => {}
            Step::LookAfter => return self.look_after(),
            Step::LookAtPod { cell, epoch } => return self.look_at_pod(operator, (cell, epoch), without),
            Step::AskAgain { pod } if self.cell.epoch == pod.epoch => {}
            Step::AskAgain { pod } => return Step::EndPod { pod },
            Step::MakePod { epoch, changed } => {
                // One name, a quota of one, and the API server refuses a pod for another epoch than the cell's.
                if self.cell.pod.is_none() && self.cell.epoch == epoch {
                    let outdated = self.changed != changed;
                    self.cell.pod = Some(Pod { epoch, outdated });
                }
            }
            Step::Renew { cell } => {
                self.annotate(cell, is_without(Precondition::RenewedAsSeen), |cell| {
                    cell.epoch += 1
                });
            }
            Step::EndPod { pod } => {
                // This very one.
                if self.cell.pod == Some(pod) {
                    self.cell.pod = None;
                }
            }
            Step::Look { of, preview, stage } => return self.look(operator, (of, preview, stage), without),
            Step::Claim {
                of,
                preview,
                cell,
                epoch,
            } => {
                let anyhow = is_without(Precondition::ClaimedAsSeen);
                if self.annotate(cell, anyhow, |cell| cell.tenant = Some(of)) {
                    return Step::Commit { of, preview, epoch };
                }
            }
            Step::Commit { of, preview, epoch } => {
                self.write(of, preview, Some(Stage::Lives(epoch)));
            }
            Step::Yield { of, preview, cell } => {
                if is_without(Precondition::PreviewFirst) || self.write(of, preview, None) {
                    return Step::Return { cell };
                }
            }
            Step::Return { cell } => {
                let anyhow = is_without(Precondition::ReturnedAsSeen);
                self.annotate(cell, anyhow, |cell| cell.tenant = None);
            }
            Step::Free { of, cell } => {
                let raised = u8::from(!is_without(Precondition::EpochRaised));
                let freed = self.annotate(cell, false, |cell| {
                    cell.tenant = None;
                    cell.epoch += raised;
                });
                if freed {
                    self.previews[of].stage = Stage::Done;
                }
            }
        }
        Step::Idle
    }
}

impl Model for State {
    type Precondition = Precondition;

    fn wrong(&self) -> Option<&'static str> {
        let mut living = (0..2).filter_map(|of| match self.previews[of].stage {
            Stage::Lives(epoch) => Some((of, epoch)),
            _ => None,
        });
        let (of, epoch) = living.next()?;
        if living.next().is_some() {
            return Some("two previews live in one cell");
        }
        if self.cell.tenant != Some(of) {
            return Some("a preview lives in a cell that is not its own");
        }
        if self.cell.epoch != epoch {
            return Some("a preview lives with a pod that is to be ended");
        }
        (self.cell.pod.is_none_or(|pod| pod.epoch != epoch)).then_some("a preview lives without its pod")
    }

    fn next(&self, without: Option<Precondition>) -> Vec<Self> {
        let mut states = vec![];
        for number in 0..3 {
            let Operator { step, tasks, .. } = self.operators[number];
            let mut after = |change: &dyn Fn(&mut Self) -> Step| {
                let mut state = *self;
                let step = change(&mut state);
                state.operators[number].step = step;
                states.push(state);
            };
            if step != Step::Idle {
                // It goes on; or it is killed, and whoever starts in its place knows nothing.
                after(&|state| state.act(number, without));
                after(&|state| {
                    state.operators[number].warm = None;
                    Step::Idle
                });
                continue;
            }
            if tasks == 0 {
                continue;
            }
            after(&|state| {
                state.operators[number].tasks -= 1;
                Step::LookAfter
            });
            for of in 0..2 {
                let Preview { version, stage } = self.previews[of];
                if stage != Stage::Done {
                    after(&|state| {
                        state.operators[number].tasks -= 1;
                        Step::Look {
                            of,
                            preview: version,
                            stage,
                        }
                    });
                }
            }
        }
        for of in 0..2 {
            if let Stage::Lives(_) = self.previews[of].stage {
                let mut state = *self;
                state.write(of, self.previews[of].version, Some(Stage::Over));
                states.push(state);
            }
        }
        if !self.changed {
            let mut state = *self;
            state.changed = true;
            // What is made from now on is made from the new one.
            state.cell.pod = state.cell.pod.map(|pod| Pod {
                outdated: true,
                ..pod
            });
            states.push(state);
        }
        states
    }
}

#[test]
fn a_cell_that_waits_comes_to_be_one_preview_s_in_any_order_with_the_pod_that_was_proven() {
    let states = must_hold(State::begin());
    let lives = |state: &State, of: usize| match state.previews[of].stage {
        Stage::Lives(epoch) => Some(epoch),
        _ => None,
    };
    assert!(states.iter().any(|state| lives(state, 0).is_some()));
    // One after the other, with a pod each; and one in a cell that was renewed before.
    let next = |state: &State| state.previews[0].stage == Stage::Done && lives(state, 1) == Some(1);
    assert!(states.iter().any(next));
    let renewed = |state: &State| state.changed && lives(state, 0) == Some(1);
    assert!(states.iter().any(renewed));
    must_hold(State::one_stood_still());
}

#[test]
fn without_any_one_of_its_preconditions_the_protocol_goes_wrong() {
    must_fail(State::begin(), &ALL);
    must_fail(State::one_stood_still(), &[Precondition::AskedAgain]);
}
