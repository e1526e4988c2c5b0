//! The writes by which slots are taken and given back, as a model: every order of every step of two operators that may be
//! killed anywhere, for two previews that need the same two slots. Never are both admitted, and who is admitted has its slots.
//! And the same where each needs one of two: an operator may come to hold one beside that with which the preview was admitted.
//!
//! The same search with one precondition taken out finds the order in which it goes wrong: so each of them is needed. The
//! program is `operator/src/preview/slots.rs`.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod search;

use search::{Model, must_fail, must_hold};

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
    /// Who gives back a slot too many leaves those alone that the status names.
    ShedSparesItsOwn,
}

const ALL: [Precondition; 6] = [
    Precondition::CreateOnce,
    Precondition::TakeOverWrites,
    Precondition::DeleteByVersion,
    Precondition::StatusByVersion,
    Precondition::YieldWritesFirst,
    Precondition::ShedSparesItsOwn,
];

/// What the two slots are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layout {
    /// The only ones of two dimensions: a preview needs both.
    Both,
    /// The two of one dimension: a preview needs either.
    Either,
}

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
    /// The slots that it was admitted with, as its status names them.
    with: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    holder: usize,
    version: u8,
}

/// The versions of slots as somebody has read or written them.
type Versions = [Option<u8>; 2];

/// What an operator is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// Look at a slot; both orders of the two come up.
    Look {
        preview: usize,
        read: u8,
        slot: usize,
        got: Versions,
    },
    /// Create the slot that was seen to be free.
    Create {
        preview: usize,
        read: u8,
        slot: usize,
        got: Versions,
    },
    /// Write the slot that an earlier attempt has left.
    TakeOver {
        preview: usize,
        read: u8,
        slot: usize,
        seen: u8,
        got: Versions,
    },
    /// Write that the preview is admitted.
    Commit {
        preview: usize,
        read: u8,
        with: [bool; 2],
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
    /// Read which slots a preview holds beside those that it was admitted with.
    Shed {
        preview: usize,
        with: [bool; 2],
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
    layout: Layout,
    slots: [Option<Slot>; 2],
    previews: [Preview; 2],
    operators: [(Step, u8); 2],
    /// The API server's counter of versions.
    clock: u8,
}

impl State {
    const fn begin(layout: Layout) -> Self {
        let preview = Preview {
            stage: Stage::Waits,
            version: 0,
            with: [false; 2],
        };
        Self {
            layout,
            slots: [None; 2],
            previews: [preview; 2],
            operators: [(Step::Idle, TASKS); 2],
            clock: 0,
        }
    }

    fn held(&self, preview: usize) -> Versions {
        self.slots
            .map(|slot| slot.filter(|s| s.holder == preview).map(|s| s.version))
    }

    /// A slot was taken: the other one if it is needed as well, or the status.
    fn took(&self, preview: usize, read: u8, slot: usize, version: u8, mut got: Versions) -> Step {
        got[slot] = Some(version);
        match got.iter().position(Option::is_none) {
            Some(slot) if self.layout == Layout::Both => Step::Look {
                preview,
                read,
                slot,
                got,
            },
            _ => Step::Commit {
                preview,
                read,
                with: got.map(|version| version.is_some()),
            },
        }
    }

    fn tick(&mut self) -> u8 {
        self.clock += 1;
        self.clock
    }
}

impl Model for State {
    type Precondition = Precondition;

    fn wrong(&self) -> Option<&'static str> {
        let admitted = |p: &usize| self.previews[*p].stage == Stage::Admitted;
        if self.layout == Layout::Both && [0, 1].iter().all(admitted) {
            return Some("two are admitted where one may be");
        }
        let holds = |p: usize| {
            let named = (0..2).filter(|slot| self.previews[p].with[*slot]);
            named.clone().count() > 0
                && named
                    .into_iter()
                    .all(|n| self.slots[n].is_some_and(|s| s.holder == p))
        };
        if [0, 1].into_iter().any(|p| admitted(&p) && !holds(p)) {
            return Some("one is admitted without its slots");
        }
        None
    }

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
                        let Preview {
                            stage,
                            version: read,
                            with,
                        } = self.previews[preview];
                        let tasks = match stage {
                            Stage::Waits => vec![
                                Step::Look {
                                    preview,
                                    read,
                                    slot: 0,
                                    got: [None; 2],
                                },
                                Step::Look {
                                    preview,
                                    read,
                                    slot: 1,
                                    got: [None; 2],
                                },
                                Step::Strays { preview, read },
                            ],
                            Stage::Admitted => {
                                vec![Step::End { preview, read }, Step::Shed { preview, with }]
                            }
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
                    slot,
                    got,
                } => {
                    let other = |s: Slot| s.holder != preview;
                    if self.layout == Layout::Either && self.slots[slot].is_some_and(other) {
                        // There is another one. Whether it was looked at before makes no difference to what may go wrong.
                        after(&|_| Step::Look {
                            preview,
                            read,
                            slot: 1 - slot,
                            got,
                        });
                    }
                    after(&|state| match state.slots[slot] {
                        None => Step::Create {
                            preview,
                            read,
                            slot,
                            got,
                        },
                        Some(there) if other(there) => give_back(preview, read, got, without),
                        Some(there) if without == Some(Precondition::TakeOverWrites) => {
                            state.took(preview, read, slot, there.version, got)
                        }
                        Some(there) => Step::TakeOver {
                            preview,
                            read,
                            slot,
                            seen: there.version,
                            got,
                        },
                    });
                }
                Step::Create {
                    preview,
                    read,
                    slot,
                    got,
                } => after(&|state| {
                    if state.slots[slot].is_some() && without != Some(Precondition::CreateOnce) {
                        return Step::Look {
                            preview,
                            read,
                            slot,
                            got,
                        };
                    }
                    let version = state.tick();
                    state.slots[slot] = Some(Slot {
                        holder: preview,
                        version,
                    });
                    state.took(preview, read, slot, version, got)
                }),
                Step::TakeOver {
                    preview,
                    read,
                    slot,
                    seen,
                    got,
                } => after(&|state| {
                    if state.slots[slot].is_none_or(|there| there.version != seen) {
                        return Step::Idle;
                    }
                    let version = state.tick();
                    state.slots[slot] = Some(Slot {
                        holder: preview,
                        version,
                    });
                    state.took(preview, read, slot, version, got)
                }),
                Step::Commit { preview, read, with } => after(&|state| {
                    let version = state.tick();
                    let now = &mut state.previews[preview];
                    let fresh = now.version == read || without == Some(Precondition::StatusByVersion);
                    if fresh && now.stage == Stage::Waits {
                        *now = Preview {
                            stage: Stage::Admitted,
                            version,
                            with,
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
                Step::Shed { preview, with } => after(&|state| {
                    let mut versions = state.held(preview);
                    for (version, named) in versions.iter_mut().zip(with) {
                        if named && without != Some(Precondition::ShedSparesItsOwn) {
                            *version = None;
                        }
                    }
                    Step::Delete { versions, preview }
                }),
                Step::List { preview } => after(&|state| Step::Delete {
                    versions: state.held(preview),
                    preview,
                }),
                Step::Delete { versions, preview } => after(&|state| {
                    let Some(slot) = versions.iter().position(Option::is_some) else {
                        return Step::Idle;
                    };
                    if let Some(there) = state.slots[slot] {
                        let same = Some(there.version) == versions[slot]
                            || (without == Some(Precondition::DeleteByVersion) && there.holder == preview);
                        if same {
                            state.slots[slot] = None;
                        }
                    }
                    let mut left = versions;
                    left[slot] = None;
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
                    state.previews[preview].stage = Stage::Over;
                    state.previews[preview].version = version;
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

#[test]
fn two_operators_in_any_order_killed_anywhere_never_admit_two_to_one_slot() {
    must_hold(State::begin(Layout::Both));
}

#[test]
fn who_gives_back_a_slot_too_many_never_takes_the_one_that_a_preview_lives_with() {
    let states = must_hold(State::begin(Layout::Either));
    // It does come up: two operators each take one for the same preview.
    let two = |state: &State| {
        (0..2)
            .any(|p| state.previews[p].stage == Stage::Admitted && state.held(p).iter().all(Option::is_some))
    };
    assert!(states.iter().any(two), "no preview ever holds a slot too many");
}

#[test]
fn without_any_one_of_its_preconditions_the_protocol_goes_wrong() {
    must_fail(State::begin(Layout::Both), &ALL);
}
