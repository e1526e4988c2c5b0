//! The writes by which slots are taken and given back, as a model: every order of every step of two operators that may be
//! killed anywhere, for two previews that need the same two slots. Never are both admitted, and who is admitted has its slots.
//!
//! The same search with one precondition taken out finds the order in which it goes wrong: so each of them is needed. The
//! program is `operator/src/preview/slots.rs`.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::collections::HashSet;

/// How many tasks each operator begins. With two, a task may follow on one that was cut off.
const TASKS: u8 = 2;

/// A precondition of the protocol that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precondition {
    /// Creating a slot fails if it is there.
    CreateOnce,
    /// Who takes over a slot of an earlier attempt writes it first.
    TakeOverWrites,
    /// A slot is deleted only in the version that was read.
    DeleteByVersion,
    /// The status is written only on the version of the preview that was read.
    StatusByVersion,
    /// Who gives back the slots of a preview that lives on writes the preview first.
    YieldWritesFirst,
}

const ALL: [Precondition; 5] = [
    Precondition::CreateOnce,
    Precondition::TakeOverWrites,
    Precondition::DeleteByVersion,
    Precondition::StatusByVersion,
    Precondition::YieldWritesFirst,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Waits,
    Admitted,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Preview {
    stage: Stage,
    version: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    holder: usize,
    version: u8,
}

/// The versions of slots, one a dimension, as somebody has read or written them.
type Versions = [Option<u8>; 2];

/// What an operator is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Look at the slot of a dimension; both orders of the two come up.
    Look {
        preview: usize,
        read: u8,
        dimension: usize,
        got: Versions,
    },
    /// Create the slot that was seen to be free.
    Create {
        preview: usize,
        read: u8,
        dimension: usize,
        got: Versions,
    },
    /// Write the slot that an earlier attempt has left.
    TakeOver {
        preview: usize,
        read: u8,
        dimension: usize,
        seen: u8,
        got: Versions,
    },
    /// Write that the preview is admitted.
    Commit {
        preview: usize,
        read: u8,
    },
    /// Read which slots a preview holds that waits, and must not.
    Strays {
        preview: usize,
        read: u8,
    },
    /// Write the preview before slots of it are given back.
    Yield {
        preview: usize,
        read: u8,
        versions: Versions,
    },
    /// Read which slots a preview holds that is over.
    List {
        preview: usize,
    },
    /// Delete slots.
    Delete {
        versions: Versions,
        preview: usize,
    },
    /// Write that the preview's end is proven.
    End {
        preview: usize,
        read: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    slots: [Option<Slot>; 2],
    previews: [Preview; 2],
    operators: [(Step, u8); 2],
    /// The API server's counter of versions.
    clock: u8,
}

impl State {
    const fn begin() -> Self {
        let preview = Preview {
            stage: Stage::Waits,
            version: 0,
        };
        Self {
            slots: [None; 2],
            previews: [preview; 2],
            operators: [(Step::Idle, TASKS); 2],
            clock: 0,
        }
    }

    /// What must never be, in words.
    fn wrong(&self) -> Option<&'static str> {
        let admitted = |p: &usize| self.previews[*p].stage == Stage::Admitted;
        if [0, 1].iter().all(admitted) {
            return Some("two are admitted where one may be");
        }
        let holds = |p: usize| self.slots.iter().all(|slot| slot.is_some_and(|s| s.holder == p));
        if [0, 1].into_iter().any(|p| admitted(&p) && !holds(p)) {
            return Some("one is admitted without its slots");
        }
        None
    }

    fn held(&self, preview: usize) -> Versions {
        self.slots
            .map(|slot| slot.filter(|s| s.holder == preview).map(|s| s.version))
    }

    fn tick(&mut self) -> u8 {
        self.clock += 1;
        self.clock
    }

    /// Every state that the next step of any operator can lead to.
    fn next(&self, without: Option<Precondition>) -> Vec<Self> {
        let mut states = vec![];
        for operator in 0..2 {
            let (step, tasks) = self.operators[operator];
            let mut after = |change: &dyn Fn(&mut Self) -> Step| {
                let mut state = *self;
                let step = change(&mut state);
                state.operators[operator].0 = step;
                states.push(state);
            };
            if step != Step::Idle {
                // It is killed, and another one begins in its place.
                after(&|_| Step::Idle);
            }
            match step {
                Step::Idle if tasks == 0 => {}
                Step::Idle => {
                    for preview in 0..2 {
                        let Preview { stage, version: read } = self.previews[preview];
                        let tasks = match stage {
                            Stage::Waits => vec![
                                Step::Look {
                                    preview,
                                    read,
                                    dimension: 0,
                                    got: [None; 2],
                                },
                                Step::Look {
                                    preview,
                                    read,
                                    dimension: 1,
                                    got: [None; 2],
                                },
                                Step::Strays { preview, read },
                            ],
                            Stage::Admitted => vec![Step::End { preview, read }],
                            Stage::Over => vec![Step::List { preview }],
                        };
                        for task in tasks {
                            after(&|state| {
                                state.operators[operator].1 -= 1;
                                task
                            });
                        }
                    }
                }
                Step::Look {
                    preview,
                    read,
                    dimension,
                    got,
                } => after(&|state| match state.slots[dimension] {
                    None => Step::Create {
                        preview,
                        read,
                        dimension,
                        got,
                    },
                    Some(slot) if slot.holder != preview => give_back(preview, read, got, without),
                    Some(slot) if without == Some(Precondition::TakeOverWrites) => {
                        took(preview, read, dimension, slot.version, got)
                    }
                    Some(slot) => Step::TakeOver {
                        preview,
                        read,
                        dimension,
                        seen: slot.version,
                        got,
                    },
                }),
                Step::Create {
                    preview,
                    read,
                    dimension,
                    got,
                } => after(&|state| {
                    if state.slots[dimension].is_some() && without != Some(Precondition::CreateOnce) {
                        return Step::Look {
                            preview,
                            read,
                            dimension,
                            got,
                        };
                    }
                    let version = state.tick();
                    state.slots[dimension] = Some(Slot {
                        holder: preview,
                        version,
                    });
                    took(preview, read, dimension, version, got)
                }),
                Step::TakeOver {
                    preview,
                    read,
                    dimension,
                    seen,
                    got,
                } => after(&|state| {
                    if state.slots[dimension].is_none_or(|slot| slot.version != seen) {
                        return Step::Idle;
                    }
                    let version = state.tick();
                    state.slots[dimension] = Some(Slot {
                        holder: preview,
                        version,
                    });
                    took(preview, read, dimension, version, got)
                }),
                Step::Commit { preview, read } => after(&|state| {
                    let version = state.tick();
                    let now = &mut state.previews[preview];
                    let fresh = now.version == read || without == Some(Precondition::StatusByVersion);
                    if fresh && now.stage == Stage::Waits {
                        *now = Preview {
                            stage: Stage::Admitted,
                            version,
                        };
                    }
                    Step::Idle
                }),
                Step::Strays { preview, read } => {
                    after(&|state| give_back(preview, read, state.held(preview), without))
                }
                Step::Yield {
                    preview,
                    read,
                    versions,
                } => after(&|state| {
                    if state.previews[preview].version != read {
                        return Step::Idle;
                    }
                    state.previews[preview].version = state.tick();
                    Step::Delete { versions, preview }
                }),
                Step::List { preview } => after(&|state| Step::Delete {
                    versions: state.held(preview),
                    preview,
                }),
                Step::Delete { versions, preview } => after(&|state| {
                    let Some(dimension) = versions.iter().position(Option::is_some) else {
                        return Step::Idle;
                    };
                    if let Some(slot) = state.slots[dimension] {
                        let same = Some(slot.version) == versions[dimension]
                            || (without == Some(Precondition::DeleteByVersion) && slot.holder == preview);
                        if same {
                            state.slots[dimension] = None;
                        }
                    }
                    let mut left = versions;
                    left[dimension] = None;
                    Step::Delete {
                        versions: left,
                        preview,
                    }
                }),
                Step::End { preview, read } => after(&|state| {
                    if state.previews[preview].version != read {
                        return Step::Idle;
                    }
                    let version = state.tick();
                    state.previews[preview] = Preview {
                        stage: Stage::Over,
                        version,
                    };
                    Step::List { preview }
                }),
            }
        }
        states
    }
}

/// The slots of a preview that lives on are given back.
fn give_back(preview: usize, read: u8, versions: Versions, without: Option<Precondition>) -> Step {
    if without == Some(Precondition::YieldWritesFirst) {
        return Step::Delete { versions, preview };
    }
    Step::Yield {
        preview,
        read,
        versions,
    }
}

/// A slot was taken: the other one, or the status.
fn took(preview: usize, read: u8, dimension: usize, version: u8, mut got: Versions) -> Step {
    got[dimension] = Some(version);
    match got.iter().position(Option::is_none) {
        Some(dimension) => Step::Look {
            preview,
            read,
            dimension,
            got,
        },
        None => Step::Commit { preview, read },
    }
}

/// How many states can be reached; or what goes wrong first, and the shortest way to it.
fn explore(without: Option<Precondition>) -> Result<usize, (&'static str, Vec<State>)> {
    let mut states = vec![(State::begin(), 0)];
    let mut seen = HashSet::from([State::begin()]);
    let mut at = 0;
    while let Some((state, _)) = states.get(at).copied() {
        for next in state.next(without) {
            if seen.insert(next) {
                states.push((next, at));
            }
            if let Some(wrong) = next.wrong() {
                let mut way = vec![next];
                let mut from = at;
                while from != 0 {
                    way.push(states[from].0);
                    from = states[from].1;
                }
                way.reverse();
                return Err((wrong, way));
            }
        }
        at += 1;
    }
    Ok(states.len())
}

#[test]
fn two_operators_in_any_order_killed_anywhere_never_admit_two_to_one_slot() {
    let states = explore(None).unwrap_or_else(|(wrong, way)| {
        let way: Vec<_> = way.iter().map(|state| format!("{state:?}\n")).collect();
        panic!("{wrong}:\n{}", way.concat())
    });
    println!("{states} states");
    assert!(states > 10_000, "the model does something: {states}");
}

#[test]
fn without_any_one_of_its_preconditions_the_protocol_goes_wrong() {
    for precondition in ALL {
        let (wrong, way) = explore(Some(precondition))
            .expect_err(&format!("{precondition:?} is not needed, or the model is blind"));
        println!("without {precondition:?}: {wrong}, after {} steps", way.len());
    }
}
