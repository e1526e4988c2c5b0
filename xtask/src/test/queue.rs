//! What lanes of test binaries take next, and which clusters are still needed. Pure.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vitrine_devcluster::Level;

/// What a lane takes next. What needs a node and what does not run on clusters that the other has no use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Node,
    NoNode,
    /// A promise in seconds is Vitrine's to keep, and not that of two cores that other clusters share: such tests run when all
    /// others are done.
    Timed,
}

/// What one binary needs.
#[derive(Clone, Debug)]
pub(super) struct Need {
    pub(super) kind: Kind,
    pub(super) levels: Vec<Level>,
}

/// The work of all lanes, as places in the plan.
pub(super) struct Queue {
    plan: Vec<Need>,
    left: Mutex<VecDeque<usize>>,
}

impl Queue {
    pub(super) fn of(plan: Vec<Need>) -> Self {
        let left = Mutex::new((0..plan.len()).collect());
        Self { plan, left }
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<usize>> {
        // A lane that panicked has taken whole places.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next place for a lane that takes these kinds: of the first kind until there is none, then of the second.
    pub(super) fn take(&self, kinds: &[Kind]) -> Option<(usize, &Need)> {
        let mut left = self.left();
        let of = |kind| left.iter().position(|place| self.plan[*place].kind == kind);
        let next = kinds.iter().find_map(|kind| of(*kind))?;
        let place = left.remove(next)?;
        Some((place, &self.plan[place]))
    }

    /// The levels that are left to be needed by these kinds.
    pub(super) fn levels(&self, kinds: &[Kind]) -> Vec<Level> {
        let left = self.left();
        let needs = left.iter().map(|place| &self.plan[*place]);
        needs
            .filter(|need| kinds.contains(&need.kind))
            .flat_map(|need| need.levels.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        let need = |kind, levels: &[Level]| Need {
            kind,
            levels: levels.to_vec(),
        };
        Queue::of(vec![
            need(Kind::NoNode, &[Level::Scale]),
            need(Kind::Timed, &[Level::Full]),
            need(Kind::Node, &[Level::Full]),
            need(Kind::NoNode, &[Level::ControlPlane, Level::Scale]),
        ])
    }

    #[test]
    fn a_lane_takes_its_first_kind_in_order_then_its_second_and_never_another() {
        let queue = queue();
        let kinds = [Kind::Node, Kind::NoNode];
        let taken: Vec<_> =
            std::iter::from_fn(|| queue.take(&kinds).map(|(place, need)| (place, need.kind))).collect();
        assert_eq!(taken, [(2, Kind::Node), (0, Kind::NoNode), (3, Kind::NoNode)]);
        assert_eq!(queue.take(&[Kind::Timed]).map(|(place, _)| place), Some(1));
        assert!(queue.take(&[Kind::Timed]).is_none());
    }

    #[test]
    fn a_cluster_is_needed_while_what_needs_it_waits() {
        let queue = queue();
        assert_eq!(
            queue.levels(&[Kind::NoNode]),
            [Level::Scale, Level::ControlPlane, Level::Scale]
        );
        queue.take(&[Kind::NoNode]);
        assert_eq!(
            queue.levels(&[Kind::NoNode, Kind::Timed]),
            [Level::Full, Level::ControlPlane, Level::Scale]
        );
        assert_eq!(queue.levels(&[Kind::Timed]), [Level::Full]);
    }
}
