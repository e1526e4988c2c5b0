//! Who works at once. Somebody waits for a preview that begins; nobody for one that ends, nor for a cell that is filled for later. In one
//! queue, at ten ends a second, claims waited for half a minute; side by side, ends and refill still had most of a small API server. So the
//! more is done for those who wait, the less beside it. In memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Steps of one kind at once. Bounded: the API server is shared.
const MOST: usize = 16;
const LANES: usize = 3;
/// So few that whoever comes next need not wait for them.
const FEW: usize = 4;

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A preview that somebody waits for.
    Begins,
    /// Any other preview: that lives, or ends.
    Lives,
    /// A cell that is filled for previews to come.
    Refill,
}

impl Lane {
    /// How many steps there may be at once, beside so many of those that somebody waits for. Never none: those who come later need free
    /// cells and slots as well.
    const fn room(self, begin: usize) -> usize {
        match (self, begin) {
            (Self::Begins, _) | (_, 0) => MOST,
            (Self::Lives, _) => 8,
            (Self::Refill, _) => 2,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    closed: bool,
    running: [usize; LANES],
    waiting: [usize; LANES],
}

impl Counts {
    /// Also those that wait for their turn.
    const fn begin(&self) -> usize {
        self.running[Lane::Begins as usize] + self.waiting[Lane::Begins as usize]
    }

    const fn has_room(&self, lane: Lane) -> bool {
        self.running[lane as usize] < lane.room(self.begin())
    }
}

/// The lanes.
#[derive(Debug, Default)]
pub struct Lanes {
    counts: Mutex<Counts>,
    /// Wakes those who wait, who came first first.
    room: [Notify; LANES],
}

/// The turn of one step, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    lanes: &'a Lanes,
    lane: Lane,
    began: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut counts = self.lanes.counts();
        let own = if self.began {
            &mut counts.running
        } else {
            &mut counts.waiting
        };
        own[self.lane as usize] -= 1;
        let all_have_room = self.lane == Lane::Begins && counts.begin() == 0;
        drop(counts);
        self.lanes.room[self.lane as usize].notify_one();
        if all_have_room {
            for room in &self.lanes.room {
                (0..MOST).for_each(|_| room.notify_one());
            }
        }
    }
}

impl Lanes {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether few begin, or wait to.
    pub fn few_begin(&self) -> bool {
        self.counts().begin() < FEW
    }

    /// Waits until there is room for a step, and everybody who came before has had a turn; `None` if there are no more turns.
    pub async fn turn(&self, lane: Lane) -> Option<Turn<'_>> {
        let mut turn = self.enter(lane);
        while !turn.began {
            let mut told = std::pin::pin!(self.room[lane as usize].notified());
            // Before the look, so that nothing is told in between.
            told.as_mut().enable();
            if self.counts().closed {
                return None;
            }
            // Somebody who finds no room then is woken again: a step runs, and its end wakes the next.
            told.await;
            let mut counts = self.counts();
            if counts.has_room(lane) {
                counts.waiting[lane as usize] -= 1;
                counts.running[lane as usize] += 1;
                turn.began = true;
            }
        }
        Some(turn)
    }

    /// Nobody who waits gets a turn any more: the process ends.
    pub fn close(&self) {
        self.counts().closed = true;
        for room in &self.room {
            room.notify_waiters();
        }
    }

    fn enter(&self, lane: Lane) -> Turn<'_> {
        let mut counts = self.counts();
        let began = counts.waiting[lane as usize] == 0 && counts.has_room(lane);
        if began {
            counts.running[lane as usize] += 1;
        } else {
            counts.waiting[lane as usize] += 1;
        }
        Turn {
            lanes: self,
            lane,
            began,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_nobody_waits_for_has_less_room_beside_what_somebody_waits_for_and_never_none() {
        let lanes = Lanes::default();
        let turn = |lane| lanes.turn(lane).now_or_never().flatten();
        let all: Vec<_> = (0..MOST).map(|_| turn(Lane::Refill).unwrap()).collect();
        assert!(turn(Lane::Refill).is_none(), "as many as there may be");
        let claim = turn(Lane::Begins).unwrap();
        assert!(turn(Lane::Lives).is_some(), "each has a lane of its own");
        drop(all);
        let few: Vec<_> = (0..2).map(|_| turn(Lane::Refill).unwrap()).collect();
        assert!(turn(Lane::Refill).is_none(), "beside a claim");
        drop(claim);
        assert!(turn(Lane::Refill).is_some());
        drop(few);
    }

    #[tokio::test]
    async fn who_waits_gets_a_turn_when_one_is_done_and_who_gives_up_waiting_takes_none() {
        let lanes = Lanes::default();
        let mut claims: Vec<_> = (0..MOST)
            .map(|_| lanes.turn(Lane::Begins).now_or_never().flatten().unwrap())
            .collect();
        assert!(lanes.turn(Lane::Begins).now_or_never().is_none());
        assert_eq!(lanes.counts().begin(), MOST, "it is counted no more");
        let (next, ()) = tokio::join!(lanes.turn(Lane::Begins), async {
            claims.pop();
        });
        drop(next);
        drop(claims);
        {
            let counts = lanes.counts();
            assert_eq!((counts.running, counts.waiting), ([0; LANES], [0; LANES]));
        }
        let last: Vec<_> = (0..MOST)
            .map(|_| lanes.turn(Lane::Lives).now_or_never().flatten().unwrap())
            .collect();
        let (none, ()) = tokio::join!(lanes.turn(Lane::Lives), async { lanes.close() });
        assert!(none.is_none(), "the process ends");
        drop(last);
    }
}
