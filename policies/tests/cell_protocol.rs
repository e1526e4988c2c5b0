//! The writes by which a preview's cell is made, filled and removed, as a model: every order of every step of three operators
//! that may be killed anywhere or stand still for as long as they like, while the preview is ended at any moment. Never is
//! there a pod without the slots of its preview, nor one after it was said that none ever started.
//!
//! The same search with one precondition taken out finds the order in which it goes wrong: so each of them is needed. The
//! program is `operator/src/preview/apply.rs`.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod search;

use search::{Model, must_fail, must_hold};

/// How many reconciliations each operator begins.
const TASKS: u8 = 2;

/// A precondition of the protocol that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precondition {
    /// The preview is looked at again after the cell was, and before the pod is made.
    PreviewAfter,
    /// The API server refuses a pod for another epoch of the cell than the one that is there.
    EpochMatches,
    /// The namespace is told to go before anything else is done at the end.
    ClosedFirst,
    /// After that it is looked whether a pod was made before.
    LookedThen,
}

const ALL: [Precondition; 4] = [
    Precondition::PreviewAfter,
    Precondition::EpochMatches,
    Precondition::ClosedFirst,
    Precondition::LookedThen,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Admitted; nothing is known of a pod.
    Admitted,
    /// Its end is recorded, with nothing known of a pod.
    Over,
    /// It is said that none ever started.
    NeverStarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Namespace {
    epoch: u8,
    going: bool,
    pod: bool,
}

/// What an operator is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Look at the cell of a preview that was not over.
    Look,
    MakeNamespace,
    /// Look whether the preview was ended meanwhile.
    LookAgain {
        epoch: u8,
    },
    MakePod {
        epoch: u8,
    },
    /// Look at the cell of a preview that is over.
    LookAtEnd,
    DeletePod,
    /// Tell the namespace to go.
    Close,
    /// See whether a pod is in it all the same.
    LookInside,
    SayNeverStarted,
    GiveBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    stage: Stage,
    slots: bool,
    namespace: Option<Namespace>,
    operators: [(Step, u8); 3],
    epochs: u8,
}

impl State {
    const fn begin() -> Self {
        Self {
            stage: Stage::Admitted,
            slots: true,
            namespace: None,
            operators: [(Step::Idle, TASKS); 3],
            epochs: 0,
        }
    }

    fn make_namespace(&mut self) {
        // If it is there already, what is there is judged.
        if self.namespace.is_none() {
            self.epochs += 1;
            self.namespace = Some(Namespace {
                epoch: self.epochs,
                going: false,
                pod: false,
            });
        }
    }

    /// Nothing is made in a namespace that is not there, or is going.
    fn open(&mut self) -> Option<&mut Namespace> {
        self.namespace.as_mut().filter(|namespace| !namespace.going)
    }

    /// What an operator does next, in the state that it finds.
    fn act(&mut self, step: Step, without: Option<Precondition>) -> Step {
        let is_without = |precondition| without == Some(precondition);
        match step {
            Step::Idle => match self.stage {
                Stage::Admitted => Step::Look,
                Stage::Over | Stage::NeverStarted => Step::LookAtEnd,
            },
            Step::Look => match self.namespace {
                None => Step::MakeNamespace,
                Some(there) if !there.pod => Step::LookAgain { epoch: there.epoch },
                Some(_) => Step::Idle,
            },
            Step::MakeNamespace => {
                self.make_namespace();
                // What is in it now, it looks at anew.
                Step::Idle
            }
            Step::LookAgain { epoch } => {
                if self.stage == Stage::Admitted || is_without(Precondition::PreviewAfter) {
                    Step::MakePod { epoch }
                } else {
                    Step::Idle
                }
            }
            Step::MakePod { epoch } => {
                if let Some(open) = self.open()
                    && (open.epoch == epoch || is_without(Precondition::EpochMatches))
                {
                    open.pod = true;
                }
                Step::Idle
            }
            Step::LookAtEnd => match self.namespace {
                Some(there) if there.pod => Step::DeletePod,
                _ if is_without(Precondition::ClosedFirst) && self.stage == Stage::Over => {
                    Step::SayNeverStarted
                }
                _ if is_without(Precondition::ClosedFirst) && self.slots => Step::GiveBack,
                // A namespace that is not seen is not told to go either.
                None if self.stage == Stage::Over => Step::SayNeverStarted,
                None => Step::GiveBack,
                Some(_) => Step::Close,
            },
            Step::DeletePod => {
                if let Some(there) = &mut self.namespace {
                    there.pod = false;
                }
                Step::Idle
            }
            Step::Close => {
                if let Some(there) = &mut self.namespace {
                    there.going = true;
                }
                Step::LookInside
            }
            Step::LookInside => {
                let pod = self.namespace.is_some_and(|there| there.pod);
                match self.stage {
                    _ if pod && !is_without(Precondition::LookedThen) => Step::Idle,
                    Stage::Over => Step::SayNeverStarted,
                    _ => Step::GiveBack,
                }
            }
            Step::SayNeverStarted => {
                self.stage = Stage::NeverStarted;
                Step::Idle
            }
            Step::GiveBack => {
                self.slots = false;
                Step::Idle
            }
        }
    }
}

impl Model for State {
    type Precondition = Precondition;

    fn wrong(&self) -> Option<&'static str> {
        let pod = self.namespace.is_some_and(|namespace| namespace.pod);
        if pod && !self.slots {
            return Some("a pod without slots");
        }
        (pod && self.stage == Stage::NeverStarted).then_some("a pod of a preview of which none ever started")
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
                if tasks > 0 {
                    after(&|state| {
                        state.operators[operator].1 -= 1;
                        state.act(step, without)
                    });
                }
            } else {
                // It is killed; or it goes on.
                after(&|_| Step::Idle);
                after(&|state| state.act(step, without));
            }
        }
        if self.stage == Stage::Admitted {
            states.push(Self {
                stage: Stage::Over,
                ..*self
            });
        }
        if let Some(there) = self.namespace.filter(|there| there.going) {
            // The namespace controller deletes what is in it, and then the namespace itself.
            let namespace = there.pod.then_some(Namespace { pod: false, ..there });
            states.push(Self { namespace, ..*self });
        }
        states
    }
}

#[test]
fn three_operators_in_any_order_killed_anywhere_leave_no_pod_to_a_preview_that_is_over() {
    let states = must_hold(State::begin());
    // They do come up: a pod in a cell that is going, and a cell that is made again after the end.
    let late = |state: &&State| state.namespace.is_some_and(|there| there.going && there.pod);
    assert!(states.iter().any(|state| late(&state)));
    let again =
        |state: &State| !state.slots && state.epochs > 1 && state.namespace.is_some_and(|there| !there.going);
    assert!(states.iter().any(again));
}

#[test]
fn without_any_one_of_its_preconditions_the_protocol_goes_wrong() {
    must_fail(State::begin(), &ALL);
}
