//! Breadth-first search through every state that a model can come to.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

/// A state of a model.
pub trait Model: Copy + Debug + Eq + Hash {
    /// A precondition of the protocol that can be taken out.
    type Precondition: Copy + Debug;

    /// Every state that the next step of anybody can lead to.
    fn next(&self, without: Option<Self::Precondition>) -> Vec<Self>;

    /// What must never be, in words.
    fn wrong(&self) -> Option<&'static str>;
}

/// Every state that can be reached; or what goes wrong first, and the shortest way to it.
///
/// # Errors
/// With what goes wrong.
pub fn explore<M: Model>(
    begin: M,
    without: Option<M::Precondition>,
) -> Result<Vec<M>, (&'static str, Vec<M>)> {
    let mut states = vec![(begin, 0)];
    let mut seen = HashSet::from([begin]);
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
    Ok(states.into_iter().map(|(state, _)| state).collect())
}

/// The protocol with all its preconditions: every state that it can come to, of which none is wrong.
pub fn must_hold<M: Model>(begin: M) -> Vec<M> {
    let states = explore(begin, None).unwrap_or_else(|(wrong, way)| {
        let way: Vec<_> = way.iter().map(|state| format!("{state:?}\n")).collect();
        panic!("{wrong}:\n{}", way.concat())
    });
    println!("{} states", states.len());
    assert!(
        states.len() > 10_000,
        "the model does something: {}",
        states.len()
    );
    states
}

/// The protocol without each of its preconditions goes wrong: so each of them is needed.
pub fn must_fail<M: Model>(begin: M, preconditions: &[M::Precondition]) {
    for precondition in preconditions {
        let (wrong, way) = explore(begin, Some(*precondition))
            .err()
            .unwrap_or_else(|| panic!("{precondition:?} is not needed, or the model is blind"));
        println!("without {precondition:?}: {wrong}, after {} steps", way.len());
    }
}
