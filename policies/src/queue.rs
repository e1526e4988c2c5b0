//! The queue: whose turn it is among previews that wait for slots, how long it is, and when it moves. Pure.
//!
//! A forecast from what a watch has seen. What admits is the creation of the slots (`slots`): a forecast that is behind costs
//! a try, never a preview too many.

use std::{cmp::Reverse, collections::HashMap, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::{
    capacity::{Resources, Room},
    slots::{Dimension, Keys},
};

/// A preview that holds slots or waits for them.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// What it is limited by.
    pub keys: Keys<'a>,
    /// What it takes of the nodes.
    pub needs: Resources,
    /// Whether it holds or waits.
    pub stage: Stage,
}

/// Whether a preview holds slots or waits for them.
#[derive(Clone, Debug)]
pub enum Stage {
    /// It holds its slots, until this time at the latest if that is known.
    Holds {
        /// When it ends.
        until: Option<Timestamp>,
    },
    /// It holds them for a preview that may come, and lets go of them for one that waits.
    Idles,
    /// It waits.
    Waits {
        /// Higher goes first.
        priority: i32,
        /// Of one priority, older goes first.
        since: Timestamp,
        /// Its limit in each dimension, in their order.
        limits: [i32; 5],
    },
}

/// Where a preview stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing is in its way.
    Turn,
    /// It has to wait.
    Behind(Behind),
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Slots: the narrowest dimension in which none is free.
    Slots {
        /// The dimension.
        dimension: Dimension,
        /// How many slots there are.
        limit: i32,
    },
    /// Room on the nodes.
    Room {
        /// How many nodes take previews.
        nodes: usize,
        /// Whether there would be room if no other preview lived.
        ever: bool,
    },
}

/// What a preview waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// What there is too little of.
    pub lack: Lack,
    /// Its place among those that wait for the same; 1 is next.
    pub position: i32,
    /// When its turn comes at the latest, if nobody is extended.
    pub estimate: Option<Timestamp>,
}

impl Lack {
    /// In words.
    pub fn words(&self) -> String {
        match *self {
            Self::Slots { dimension, limit } => {
                let whose = match dimension {
                    Dimension::Subject => "of its subject",
                    Dimension::Network => "of its network",
                    Dimension::Listing => "of its listing",
                    Dimension::Seller => "of its seller",
                    Dimension::Cluster => "of the cluster",
                };
                if limit == 1 {
                    format!("the one slot {whose} is taken")
                } else {
                    format!("the {limit} slots {whose} are taken")
                }
            }
            Self::Room { nodes: 0, .. } => "no node is ready for previews".to_owned(),
            Self::Room { nodes, ever: false } => {
                format!("it needs more than all there is for previews on {nodes} nodes")
            }
            Self::Room { nodes: 1, .. } => "the room for previews on the one node is taken".to_owned(),
            Self::Room { nodes, .. } => format!("the room for previews on {nodes} nodes is taken"),
        }
    }
}

impl Behind {
    /// In words.
    pub fn words(&self) -> String {
        let taken = self.lack.words();
        match self.position {
            ..=1 => format!("{taken}; it is next"),
            place => format!("{taken}; {} wait before it", place - 1),
        }
    }
}

/// Where one preview stands. `own` is how long it would live itself: those that wait before it are taken to live as long.
/// Without `room` the nodes are not considered.
pub fn place(entries: &[Entry<'_>], room: Option<&Room>, uid: &str, own: Duration) -> Place {
    let mut found = Place::Turn;
    walk(entries, room, |entry, blocked| {
        if entry.uid != uid {
            return true;
        }
        if let Some((lack, key, position)) = blocked {
            found = Place::Behind(Behind {
                lack,
                position,
                estimate: estimate(entries, lack, key, position, own),
            });
        }
        false
    });
    found
}

/// All previews whose turn it is.
pub fn turns<'a>(entries: &[Entry<'a>], room: Option<&Room>) -> Vec<&'a str> {
    let mut turns = vec![];
    walk(entries, room, |entry, blocked| {
        if blocked.is_none() {
            turns.push(entry.uid);
        }
        true
    });
    turns
}

/// Those that idle and are to let go of what they hold, so that those that wait get it in their order; the first of the entries first.
/// At most so many.
pub fn giving_way<'a>(entries: &[Entry<'a>], room: Option<&Room>, most: usize) -> Vec<&'a str> {
    let mut left = entries.to_vec();
    let mut giving = vec![];
    while giving.len() < most {
        let mut next = None;
        walk(&left, room, |_, blocked| {
            let helps = |entry: &Entry<'_>, key: Option<(Dimension, &str)>| {
                let has = key.is_none_or(|key| entry.keys.each().any(|pair| pair == key));
                matches!(entry.stage, Stage::Idles) && has
            };
            next = match blocked {
                // No room that others leave is enough for it.
                Some((Lack::Room { ever: false, .. }, ..)) | None => None,
                Some((_, key, _)) => left.iter().position(|entry| helps(entry, key)),
            };
            next.is_none()
        });
        let Some(index) = next else { break };
        giving.push(left.remove(index).uid);
    }
    giving
}

/// What is in the way of an entry: what is lacking, of which key (none for room), and the place among those who lack the same.
type Blocked<'a> = (Lack, Option<(Dimension, &'a str)>, i32);

/// Goes through those that wait, in their order, as if each got what it needs whose turn it is; until `visit` says `false`.
///
/// One that has to wait for one thing keeps nothing else: who is behind it and needs something else goes ahead. Only room is
/// kept: a small preview that comes later must not take it from a large one for ever.
fn walk<'a>(
    entries: &[Entry<'a>],
    room: Option<&Room>,
    mut visit: impl FnMut(&Entry<'a>, Option<Blocked<'a>>) -> bool,
) {
    let mut waiting: Vec<_> = entries
        .iter()
        .filter_map(|entry| match entry.stage {
            Stage::Waits {
                priority,
                since,
                limits,
            } => Some((Reverse(priority), since, entry, limits)),
            Stage::Holds { .. } | Stage::Idles => None,
        })
        .collect();
    if waiting.is_empty() {
        return;
    }
    waiting.sort_by_key(|(priority, since, entry, _)| (*priority, *since, entry.uid));
    let mut taken: HashMap<(Dimension, &str), i32> = HashMap::new();
    let mut used = Resources::NONE;
    for entry in entries
        .iter()
        .filter(|entry| !matches!(entry.stage, Stage::Waits { .. }))
    {
        used = used.plus(entry.needs);
        for key in entry.keys.each() {
            *taken.entry(key).or_default() += 1;
        }
    }
    let mut queues: HashMap<Option<(Dimension, &str)>, i32> = HashMap::new();
    for (_, _, entry, limits) in waiting {
        let no_slot = entry.keys.each().find_map(|(dimension, key)| {
            let limit = limits[dimension as usize];
            let count = taken.get(&(dimension, key)).copied().unwrap_or_default();
            (count >= limit).then_some((Lack::Slots { dimension, limit }, Some((dimension, key))))
        });
        let lack = no_slot.or_else(|| {
            let room = room.filter(|room| !used.plus(entry.needs).fits(&room.resources))?;
            let ever = entry.needs.fits(&room.resources);
            Some((
                Lack::Room {
                    nodes: room.nodes,
                    ever,
                },
                None,
            ))
        });
        if matches!(lack, None | Some((Lack::Room { ever: true, .. }, _))) {
            used = used.plus(entry.needs);
        }
        let blocked = lack.map(|(lack, key)| {
            let place = queues.entry(key).or_default();
            *place += 1;
            (lack, key, *place)
        });
        if blocked.is_none() {
            for key in entry.keys.each() {
                *taken.entry(key).or_default() += 1;
            }
        }
        if !visit(entry, blocked) {
            return;
        }
    }
}

/// When the turn of the one at `position` comes: when as many of those that hold have ended. Where there are fewer of them
/// than that, those that come after them live as long as `own`.
fn estimate(
    entries: &[Entry<'_>],
    lack: Lack,
    key: Option<(Dimension, &str)>,
    position: i32,
    own: Duration,
) -> Option<Timestamp> {
    let mut ends = vec![];
    for entry in entries {
        // What idles lets go before.
        if let Stage::Holds { until } = entry.stage
            && key.is_none_or(|key| entry.keys.each().any(|pair| pair == key))
        {
            // One whose end nobody knows leaves no estimate.
            ends.push(until?);
        }
    }
    ends.sort_unstable();
    let limit = match lack {
        Lack::Slots { limit, .. } => limit,
        // One end makes room for one.
        Lack::Room { .. } => i32::MAX,
    };
    let over = i32::try_from(ends.len()).ok()?.saturating_sub(limit).max(0);
    let needed = usize::try_from(position.saturating_add(over))
        .ok()?
        .checked_sub(1)?;
    let rounds = i32::try_from(needed.checked_div(ends.len())?).ok()?;
    let first = ends.get(needed % ends.len())?;
    let later = SignedDuration::try_from(own).ok()?.checked_mul(rounds)?;
    first.checked_add(later).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::fixtures::preview;
    use vitrine_crds::{Amount, PreviewSandbox};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn of(subject: &str) -> PreviewSandbox {
        let mut preview = preview();
        preview.spec.subject = subject.to_owned();
        preview
    }

    fn holds<'a>(uid: &'a str, preview: &'a PreviewSandbox, listing: &'a str, until: i64) -> Entry<'a> {
        Entry {
            uid,
            keys: Keys::new(preview, listing, "acme"),
            needs: NEEDS,
            stage: Stage::Holds {
                until: Some(at(until)),
            },
        }
    }

    /// One subject may have 1, one listing 2, the cluster 3.
    fn waits<'a>(
        uid: &'a str,
        preview: &'a PreviewSandbox,
        listing: &'a str,
        priority: i32,
        since: i64,
    ) -> Entry<'a> {
        Entry {
            uid,
            keys: Keys::new(preview, listing, "acme"),
            needs: NEEDS,
            stage: Stage::Waits {
                priority,
                since: at(since),
                limits: [1, 9, 2, 9, 3],
            },
        }
    }

    const NEEDS: Resources = Resources {
        cpu: Amount::milli(100),
        memory: Amount::whole(1 << 20),
        ephemeral_storage: Amount::whole(1 << 20),
    };
    const OWN: Duration = Duration::from_secs(100);

    fn behind(place: Place) -> (Dimension, i32, Option<Timestamp>) {
        match place {
            Place::Behind(Behind {
                lack: Lack::Slots { dimension, .. },
                position,
                estimate,
            }) => (dimension, position, estimate),
            other => panic!("it lacks no slot: {other:?}"),
        }
    }

    #[test]
    fn who_waits_for_one_thing_does_not_hold_up_who_needs_another() {
        let (anna, bert, cora, dora) = (of("anna"), of("bert"), of("cora"), of("dora"));
        let entries = [
            holds("1", &anna, "x", 50),
            waits("2", &anna, "x", 0, 1),
            waits("3", &bert, "x", 0, 2),
            waits("4", &cora, "x", 0, 3),
            waits("5", &dora, "y", 0, 4),
        ];
        assert_eq!(turns(&entries, None), ["3", "5"]);
        assert_eq!(
            behind(place(&entries, None, "2", OWN)),
            (Dimension::Subject, 1, Some(at(50)))
        );
        assert_eq!(behind(place(&entries, None, "4", OWN)).0, Dimension::Listing);
        assert_eq!(place(&entries, None, "3", OWN), Place::Turn);
    }

    #[test]
    fn a_higher_priority_goes_first_and_of_one_priority_the_older() {
        let (anna, bert, cora) = (of("anna"), of("bert"), of("cora"));
        let (dora, emil) = (of("dora"), of("emil"));
        let entries = [
            holds("1", &anna, "x", 10),
            holds("2", &bert, "y", 20),
            waits("3", &cora, "x", 0, 1),
            waits("4", &dora, "y", 5, 9),
            waits("5", &emil, "z", 0, 0),
        ];
        assert_eq!(turns(&entries, None), ["4"]);
        assert_eq!(
            behind(place(&entries, None, "5", OWN)),
            (Dimension::Cluster, 1, Some(at(10)))
        );
        assert_eq!(
            behind(place(&entries, None, "3", OWN)),
            (Dimension::Cluster, 2, Some(at(20)))
        );
    }

    #[test]
    fn the_estimate_goes_round_by_ones_own_time_when_more_wait_than_hold() {
        let (anna, bert) = (of("anna"), of("bert"));
        let mut entries = vec![holds("0", &anna, "x", 10), holds("1", &bert, "x", 30)];
        let crowd: Vec<_> = (2..7).map(|n| (n.to_string(), of(&n.to_string()))).collect();
        for (n, (uid, preview)) in (0_i64..).zip(&crowd) {
            entries.push(waits(uid, preview, "x", 0, n));
        }
        let when = |uid| behind(place(&entries, None, uid, OWN));
        assert_eq!(when("2"), (Dimension::Listing, 1, Some(at(10))));
        assert_eq!(when("3"), (Dimension::Listing, 2, Some(at(30))));
        assert_eq!(when("4"), (Dimension::Listing, 3, Some(at(110))));
        assert_eq!(when("6"), (Dimension::Listing, 5, Some(at(210))));
    }

    #[test]
    fn a_lowered_limit_makes_the_queue_wait_for_those_above_it() {
        let previews: Vec<_> = (0..4).map(|n| of(&n.to_string())).collect();
        let uids = ["0", "1", "2", "3"];
        let mut entries: Vec<_> = (0_i64..)
            .zip(uids.iter().zip(&previews))
            .map(|(n, (uid, preview))| holds(uid, preview, "x", 10 * (n + 1)))
            .collect();
        let late = of("late");
        entries.push(waits("9", &late, "x", 0, 0));
        // Four hold where two may: three ends are needed.
        assert_eq!(
            behind(place(&entries, None, "9", OWN)),
            (Dimension::Listing, 1, Some(at(30)))
        );
    }

    #[test]
    fn what_idles_gives_way_to_who_waits_for_just_that_and_no_more_of_it_than_is_waited_for() {
        let (anna, bert, cora) = (of("anna"), of("bert"), of("cora"));
        let idles = |uid, listing| Entry {
            uid,
            keys: Keys::of_listing(listing, "acme"),
            needs: NEEDS,
            stage: Stage::Idles,
        };
        let (one, two, other) = (idles("i1", "x"), idles("i2", "x"), idles("i3", "y"));
        let full = [one.clone(), two.clone(), waits("1", &anna, "x", 0, 0)];
        assert!(turns(&full, None).is_empty());
        assert_eq!(giving_way(&full, None, 9), ["i1"]);
        // Who lacks something that no idle one holds gets nothing by it.
        let own = [
            holds("0", &anna, "z", 9),
            one.clone(),
            two.clone(),
            waits("1", &anna, "x", 0, 0),
        ];
        assert!(giving_way(&own, None, 9).is_empty());
        let crowd = [
            one.clone(),
            two.clone(),
            other.clone(),
            waits("1", &anna, "x", 0, 0),
            waits("2", &bert, "y", 0, 1),
            waits("3", &cora, "x", 0, 2),
        ];
        assert_eq!(giving_way(&crowd, None, 9), ["i1", "i2", "i3"]);
        assert_eq!(giving_way(&crowd, None, 1), ["i1"]);
        let room = Room {
            resources: NEEDS,
            nodes: 1,
        };
        let narrow = [other, waits("1", &anna, "x", 0, 0)];
        assert_eq!(giving_way(&narrow, Some(&room), 9), ["i3"]);
    }

    #[test]
    fn the_words_say_what_is_taken_and_who_comes_first() {
        let behind = |limit, position| Behind {
            lack: Lack::Slots {
                dimension: Dimension::Subject,
                limit,
            },
            position,
            estimate: None,
        };
        assert_eq!(
            behind(1, 1).words(),
            "the one slot of its subject is taken; it is next"
        );
        assert_eq!(
            behind(3, 5).words(),
            "the 3 slots of its subject are taken; 4 wait before it"
        );
    }

    #[test]
    fn without_room_on_the_nodes_previews_wait_in_order_and_a_large_one_is_not_starved() {
        let (anna, bert, cora) = (of("anna"), of("bert"), of("cora"));
        let mut large = waits("2", &bert, "y", 0, 1);
        large.needs.cpu = Amount::milli(200);
        let entries = [holds("1", &anna, "x", 40), large, waits("3", &cora, "z", 0, 2)];
        let room = |millicores| Room {
            resources: Resources {
                cpu: Amount::milli(millicores),
                memory: Amount::whole(1 << 30),
                ephemeral_storage: Amount::whole(1 << 30),
            },
            nodes: 2,
        };
        assert_eq!(turns(&entries, Some(&room(400))), ["2", "3"]);
        assert_eq!(turns(&entries, Some(&room(300))), ["2"]);
        // There is room for the small one, and it waits all the same.
        assert!(turns(&entries, Some(&room(200))).is_empty());
        let Place::Behind(behind) = place(&entries, Some(&room(200)), "3", OWN) else {
            panic!("it has room")
        };
        assert_eq!(
            (behind.lack, behind.position),
            (Lack::Room { nodes: 2, ever: true }, 2)
        );
        assert_eq!(
            behind.words(),
            "the room for previews on 2 nodes is taken; 1 wait before it"
        );
        // One that no cluster of this size can take holds up nobody.
        let mut huge = entries.clone();
        huge[1].needs.cpu = Amount::whole(9);
        assert_eq!(turns(&huge, Some(&room(200))), ["3"]);
    }
}
