//! What this process knows of pools' cells: how each is, which are ready, how many may be made now. In memory; the cluster has the
//! facts, and this is made from them anew by whoever starts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use vitrine_crds::{
    preview_pool::{Refill, ShortReason},
    preview_sandbox::{IsolationEvidence, PodIdentity},
};
use vitrine_policies::{cell::record::OfPool, names};

use super::confinement::{Begun, Confinement, Doubt};

/// How a pool's cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Namespace, slots or what confines it are being made.
    Making,
    /// Nothing is in it.
    Empty,
    /// Its pod is on its way.
    Warming,
    /// A preview can be ready in it at once.
    Ready,
    /// A preview has it.
    Claimed,
    /// Its pod ends, and another one comes then.
    Emptying,
    /// It is being removed, or nobody knows when it is empty.
    Going,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Making,
        Self::Empty,
        Self::Warming,
        Self::Ready,
        Self::Claimed,
        Self::Emptying,
        Self::Going,
    ];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Empty => "empty",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Emptying => "emptying",
            Self::Going => "going",
        }
    }
}

/// A cell in which a preview can be ready at once.
#[derive(Clone, Debug)]
pub struct Warm {
    /// Its name.
    pub cell: String,
    /// Its pool.
    pub pool: OfPool,
    /// Of which kind it is ([`super::kind`]). Its pool may want another by now, before anybody has looked at this one again.
    pub kind: String,
    /// Its pod.
    pub pod: PodIdentity,
    /// The node of the pod.
    pub node: Option<String>,
    /// What its network policy is known by.
    pub seal: String,
    /// What was seen from inside, and that it was up outside.
    pub isolation: IsolationEvidence,
    /// Since when it is ready.
    pub since: Instant,
}

#[derive(Debug)]
struct Known {
    state: State,
    /// Of most cells there is none: in a box, it takes no room there.
    warm: Option<Box<Warm>>,
    /// It is one too many.
    surplus: bool,
    /// What confines it may have changed since it was found ready.
    doubted: bool,
    /// Whom its pod proved itself to, and when it was taken for a preview: until the watch tells of that, it is known here alone.
    taken: Option<Box<(Option<String>, Instant)>>,
    /// Since when it is in this state.
    since: Instant,
}

impl Known {
    /// Whether it was made just now, and the watch may not have told of it yet.
    fn is_untold(&self, now: Instant) -> bool {
        self.state == State::Making && now.saturating_duration_since(self.since) < TOLD
    }
}

/// What a pool wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// How many are to wait.
    pub count: usize,
    /// How fast they are made.
    pub refill: Refill,
    /// What a preview must have in common with its cells ([`super::kind`]).
    pub kind: String,
}

#[derive(Debug, Default)]
struct Pool {
    wanted: Option<Wanted>,
    cells: HashMap<String, Known>,
    counts: HashMap<State, usize>,
    ready: BTreeSet<(Instant, String)>,
    /// The names of those that are ready.
    offered: BTreeSet<String>,
    bucket: Option<Bucket>,
    failing: Option<Failing>,
    /// What the next cell waits for.
    lack: Option<(ShortReason, String)>,
    written: Option<Instant>,
    /// The names of its cells, made or not, in their order.
    names: Vec<String>,
}

/// What was made did not come to be ready.
#[derive(Clone, Debug)]
struct Failing {
    /// How often, one after the other.
    times: u32,
    /// None is made before.
    until: Instant,
    /// Why, in words.
    message: String,
}

/// How long a watch may take to tell of a claim; one that came to nothing is looked at again after this.
pub const BEHIND: Duration = Duration::from_secs(2);
/// How long a watch may take to tell of a cell that was made: API server and watch are behind each other by seconds at most.
const TOLD: Duration = Duration::from_secs(30);
/// How long nothing is made after the first failure; twice as long after each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// One of so many ready cells may be missing because it is renewed for its age.
const RENEWED: usize = 10;

/// How many cells of a pool are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Being made, with or without a pod yet.
    pub warming: usize,
    /// Without a pod, or about to be.
    pub empty: usize,
    /// Ready.
    pub ready: usize,
    /// Had by previews.
    pub claimed: usize,
}

/// A token bucket: so many a second, and so many at once after a pause.
#[derive(Clone, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(refill: &Refill, now: Instant) -> Self {
        Self {
            tokens: f64::from(refill.burst),
            at: now,
        }
    }

    /// Takes one; or says after what time there is one.
    fn take(&mut self, refill: &Refill, now: Instant) -> Result<(), Duration> {
        match self.count(refill, now) {
            (0, next) => Err(next),
            _ => {
                self.tokens -= 1.0;
                Ok(())
            }
        }
    }

    /// How many there are, and after what time there is one more.
    fn count(&mut self, refill: &Refill, now: Instant) -> (usize, Duration) {
        let rate = f64::from(refill.per_second.max(1));
        let most = refill.burst.max(1);
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.tokens = (self.tokens + grown).min(f64::from(most));
        self.at = now;
        // Few enough to count, and exactly so.
        let whole = (1..=most)
            .take_while(|count| f64::from(*count) <= self.tokens)
            .count();
        let part = self.tokens.fract();
        (whole, Duration::from_secs_f64((1.0 - part) / rate))
    }
}

/// Whether one may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may.
    Now,
    /// After this time: the refill rate.
    After(Duration),
    /// There are enough.
    Enough,
}

/// All pools, by their uid.
#[derive(Debug, Default)]
pub struct Table {
    pools: Mutex<BTreeMap<String, Pool>>,
    /// Pools and cells that were there when this process began to work, and that it has still to look at.
    unseen: Mutex<HashSet<String>>,
    /// How many of the watches on what is in cells do not tell yet.
    watches: watch::Sender<usize>,
    /// Which cells were found confined as they must be.
    pub confinement: Confinement,
}

impl Table {
    fn pools(&self) -> MutexGuard<'_, BTreeMap<String, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unseen(&self) -> MutexGuard<'_, HashSet<String>> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is a watch on what is in cells that does not tell yet.
    pub fn awaits_watch(&self) {
        self.watches.send_modify(|left| *left += 1);
    }

    /// A watch on what is in cells tells from now on.
    pub fn watch_began(&self) {
        self.watches.send_modify(|left| *left = left.saturating_sub(1));
    }

    /// Waits until every watch on what is in cells tells. What is found of a cell before counts for nothing: each that begins puts it in
    /// doubt. Three hundred cells were looked at in vain for six seconds after a start, and a claim waited for the first.
    pub async fn watched(&self) {
        let mut left = self.watches.subscribe();
        // The sender is our own.
        let _ = left.wait_for(|left| *left == 0).await;
    }

    /// The same, and not for longer than this: a watch that never begins holds nobody up.
    pub async fn watched_within(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.watched()).await;
    }

    /// These pools, by their uids, and cells are there, and nothing is known of them yet.
    pub fn begin(&self, pools_and_cells: impl IntoIterator<Item = String>) {
        self.unseen().extend(pools_and_cells);
    }

    /// Whether all that was there at the beginning was looked at.
    pub fn is_known(&self) -> bool {
        self.unseen().is_empty()
    }

    /// What was not looked at until now is waited for no longer; how much that is.
    pub fn give_up_waiting(&self) -> usize {
        std::mem::take(&mut *self.unseen()).len()
    }

    /// What a pool wants from now on; whether that is something else than before.
    pub fn want(&self, pool: &str, wanted: Wanted) -> bool {
        self.unseen().remove(pool);
        let mut pools = self.pools();
        let pool = pools.entry(pool.to_owned()).or_default();
        let changed = pool.wanted.as_ref() != Some(&wanted);
        pool.wanted = Some(wanted);
        changed
    }

    /// The cells of a pool.
    pub fn cells(&self, pool: &str) -> Vec<String> {
        let pools = self.pools();
        let known = pools.get(pool).map(|pool| pool.cells.keys().cloned().collect());
        known.unwrap_or_default()
    }

    /// After what time a pool's status may be written; none: now, and not again for so long.
    pub fn may_write(&self, pool: &str, pause: Duration, now: Instant) -> Option<Duration> {
        let mut pools = self.pools();
        let pool = pools.entry(pool.to_owned()).or_default();
        let left = pool
            .written
            .and_then(|at| (at + pause).checked_duration_since(now));
        let left = left.filter(|left| !left.is_zero());
        if left.is_none() {
            pool.written = Some(now);
        }
        left
    }

    /// A pool that is gone, or cannot be, wants nothing; its cells are known until they are gone.
    pub fn rest(&self, pool: &str) {
        self.unseen().remove(pool);
        let mut pools = self.pools();
        if let Some(known) = pools.get_mut(pool) {
            known.wanted = None;
            if known.cells.is_empty() {
                pools.remove(pool);
            }
        }
    }

    /// How a cell is now. Returns whether anything changed.
    pub fn set(&self, pool: &str, cell: &str, state: State, warm: Option<Warm>) -> bool {
        self.unseen().remove(cell);
        let mut pools = self.pools();
        pools.entry(pool.to_owned()).or_default().set(cell, state, warm)
    }

    /// A cell is ready as a look has found it, unless what confines it is doubted since that began; whether it is.
    pub fn ready(&self, pool: &str, begun: Begun, warm: Warm) -> bool {
        let cell = warm.cell.clone();
        self.unseen().remove(&cell);
        let mut pools = self.pools();
        // Asked under this lock: who doubts, does so there first and comes here then.
        let holds = self.confinement.holds(&cell, begun);
        if holds {
            let pool = pools.entry(pool.to_owned()).or_default();
            pool.set(&cell, State::Ready, Some(warm));
        }
        holds
    }

    /// What was made in a pool did not come to be ready.
    pub fn failed(&self, pool: &str, message: &str, now: Instant) {
        let mut pools = self.pools();
        let pool = pools.entry(pool.to_owned()).or_default();
        // Those that fail together, as the pods of one node, are one failure.
        if pool.failing.as_ref().is_some_and(|failing| failing.until > now) {
            return;
        }
        let times = pool
            .failing
            .as_ref()
            .map_or(1, |failing| failing.times.saturating_add(1));
        let pause = FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(times - 1))
            .min(LONGEST_PAUSE);
        pool.failing = Some(Failing {
            times,
            until: now + pause,
            message: message.to_owned(),
        });
    }

    /// Why what is made does not come to be ready, if the last did not.
    pub fn failing(&self, pool: &str) -> Option<String> {
        let pools = self.pools();
        Some(pools.get(pool)?.failing.as_ref()?.message.clone())
    }

    /// What the next cell of a pool waits for, if it does.
    pub fn lacks(&self, pool: &str, lack: Option<(ShortReason, String)>) {
        self.pools().entry(pool.to_owned()).or_default().lack = lack;
    }

    /// What the next cell of a pool waits for, if it was made and is not ready because of that.
    pub fn lack(&self, pool: &str) -> Option<(ShortReason, String)> {
        let pools = self.pools();
        let pool = pools.get(pool)?;
        let waits = pool.counts.get(&State::Making).is_some_and(|count| *count > 0);
        pool.lack.clone().filter(|_| waits)
    }

    /// Whether a cell is being made.
    pub fn is_made(&self, cell: &str) -> bool {
        let pools = self.pools();
        let mut known = pools.values().filter_map(|pool| pool.cells.get(cell));
        known.any(|known| known.state == State::Making)
    }

    /// A cell is one too many from now on, unless a preview has it; whether that is news.
    pub fn gives_way(&self, pool: &str, cell: &str) -> bool {
        let mut pools = self.pools();
        let known = pools.get_mut(pool).and_then(|pool| {
            let known = pool.cells.get_mut(cell)?;
            (known.state != State::Claimed && !known.surplus).then_some(known)
        });
        known.map(|known| known.surplus = true).is_some()
    }

    /// A cell may be other than it was when it was found ready: until it is looked at, no preview gets it, and the one that
    /// may just have got it is to be looked at. Whether that is one's business.
    pub fn doubt(&self, cell: &str, of: Doubt) -> bool {
        self.confinement.doubt(cell, of);
        let mut pools = self.pools();
        let Some(pool) = pools.values_mut().find(|pool| pool.cells.contains_key(cell)) else {
            return false;
        };
        match pool.cells.get_mut(cell) {
            Some(known) if known.state == State::Claimed => {
                known.doubted = true;
                true
            }
            Some(known) if known.warm.is_some() => pool.set(cell, State::Warming, None),
            // An operator beside this one makes a pod in it.
            Some(known) => known.state == State::Empty,
            None => false,
        }
    }

    /// A watch begins to tell only now, and what it would have told before, nobody knows: of every cell, what previews do not have, is to
    /// be looked at, and no preview gets it before.
    pub fn doubt_all(&self, of: Doubt) {
        self.confinement.doubt_all(of);
        for pool in self.pools().values_mut() {
            let waits = pool.cells.iter().filter(|(_, known)| known.warm.is_some());
            let waits: Vec<_> = waits.map(|(name, _)| name.clone()).collect();
            for cell in waits {
                pool.set(&cell, State::Warming, None);
            }
        }
    }

    /// Whether a claimed cell was doubted since this was asked last.
    pub fn was_doubted(&self, pool: &str, cell: &str) -> bool {
        let mut pools = self.pools();
        let known = pools.get_mut(pool).and_then(|pool| pool.cells.get_mut(cell));
        known.is_some_and(|known| std::mem::take(&mut known.doubted))
    }

    /// Whether a cell was just taken as it was then, so that the watch may only not have told of it.
    pub fn was_just_taken(&self, pool: &str, cell: &str, nonce: &str, now: Instant) -> bool {
        let pools = self.pools();
        let known = pools.get(pool).and_then(|pool| pool.cells.get(cell));
        let taken = known.and_then(|known| known.taken.as_deref());
        taken.is_some_and(|(of, at)| {
            of.as_deref() == Some(nonce) && now.saturating_duration_since(*at) < BEHIND
        })
    }

    /// No watch knows of a cell: it is gone, whosever it was, unless it was made just now.
    pub fn is_not_there(&self, cell: &str, now: Instant) {
        let pools = self.pools();
        let of_pool = pools.iter().find_map(|(name, pool)| {
            let known = pool.cells.get(cell)?;
            (!known.is_untold(now)).then(|| name.clone())
        });
        drop(pools);
        if let Some(pool) = of_pool {
            self.forget(&pool, cell);
        }
    }

    /// A cell is gone.
    pub fn forget(&self, pool: &str, cell: &str) {
        self.unseen().remove(cell);
        self.confinement.forget(cell);
        let mut pools = self.pools();
        if let Some(known) = pools.get_mut(pool) {
            known.remove(cell);
            if known.cells.is_empty() && known.wanted.is_none() {
                pools.remove(pool);
            }
        }
    }

    /// Forgets the cells that are not there. One that was made just now, the watch may not have told of yet.
    pub fn forget_gone(&self, there: impl Fn(&str) -> bool, now: Instant) {
        for known in self.pools().values_mut() {
            let gone = known
                .cells
                .iter()
                .filter(|(name, cell)| !cell.is_untold(now) && !there(name));
            let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
            for cell in gone {
                self.confinement.forget(&cell);
                known.remove(&cell);
            }
        }
    }

    /// How a cell was when it was last looked at.
    #[cfg(test)]
    pub fn state(&self, pool: &str, cell: &str) -> Option<State> {
        Some(self.pools().get(pool)?.cells.get(cell)?.state)
    }

    /// The cell as it was ready when it was last looked at.
    pub fn warm(&self, pool: &str, cell: &str) -> Option<Warm> {
        self.pools().get(pool)?.cells.get(cell)?.warm.as_deref().cloned()
    }

    /// Whether a cell is one too many.
    pub fn is_surplus(&self, pool: &str, cell: &str) -> bool {
        let pools = self.pools();
        let known = pools.get(pool).and_then(|pool| pool.cells.get(cell));
        known.is_some_and(|known| known.surplus)
    }

    /// How many cells of all pools are in which state.
    pub fn totals(&self) -> HashMap<State, usize> {
        let mut totals = HashMap::new();
        for (state, count) in self.pools().values().flat_map(|pool| &pool.counts) {
            *totals.entry(*state).or_default() += count;
        }
        totals
    }

    /// How many there are.
    pub fn counts(&self, pool: &str) -> Counts {
        self.pools().get(pool).map_or_else(Counts::default, Pool::sum)
    }

    /// Since when the one that waits longest has been ready.
    pub fn oldest(&self, pool: &str) -> Option<Instant> {
        Some(self.pools().get(pool)?.ready.first()?.0)
    }

    /// Whether a pod may be made in an empty cell now; then it counts as warming.
    pub fn fill(&self, pool: &str, cell: &str, now: Instant) -> Turn {
        let mut pools = self.pools();
        let Some(pool) = pools.get_mut(pool) else {
            return Turn::Enough;
        };
        // One that was just made was counted, and paid for, then.
        if pool
            .cells
            .get(cell)
            .is_some_and(|known| known.state == State::Making)
        {
            pool.set(cell, State::Warming, None);
            return Turn::Now;
        }
        let counts = pool.sum();
        let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
        if counts.ready + counts.warming >= wanted {
            return Turn::Enough;
        }
        let turn = pool.token(now);
        if turn == Turn::Now {
            pool.set(cell, State::Warming, None);
        }
        turn
    }

    /// The name of a cell that is to be made now; it counts as being made.
    pub fn make(&self, pool_uid: &str, now: Instant) -> Result<String, Turn> {
        let mut pools = self.pools();
        let pool = pools.get_mut(pool_uid).ok_or(Turn::Enough)?;
        let counts = pool.sum();
        let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
        // An empty one is filled before a new one is made.
        if counts.ready + counts.warming + counts.empty >= wanted {
            return Err(Turn::Enough);
        }
        match pool.token(now) {
            Turn::Now => {}
            other => return Err(other),
        }
        // The first that is free, so that two operators make the same one; names are digests, and made once.
        let known = pool
            .names
            .iter()
            .find(|name| !pool.cells.contains_key(*name))
            .cloned();
        let name = match known {
            Some(name) => name,
            None => loop {
                let index = u32::try_from(pool.names.len()).map_err(|_| Turn::Enough)?;
                let name = names::pool_cell(pool_uid, index);
                pool.names.push(name.clone());
                if !pool.cells.contains_key(&name) {
                    break name;
                }
            },
        };
        pool.set(&name, State::Making, None);
        Ok(name)
    }

    /// Empty cells, as many as are missing and may be filled now; after what time there may be more.
    pub fn to_fill(&self, pool: &str, now: Instant) -> (Vec<String>, Option<Duration>) {
        let mut pools = self.pools();
        let Some(pool) = pools.get_mut(pool) else {
            return (vec![], None);
        };
        let counts = pool.sum();
        let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
        let empty = pool.counts.get(&State::Empty).copied().unwrap_or_default();
        let missing = wanted.saturating_sub(counts.ready + counts.warming).min(empty);
        if missing == 0 {
            return (vec![], None);
        }
        let (tokens, next) = pool.tokens(now);
        let empty = pool.cells.iter().filter(|(_, known)| known.state == State::Empty);
        let mut names: Vec<_> = empty.map(|(name, _)| name.clone()).collect();
        // In one order, so that two operators fill the same ones.
        names.sort_unstable();
        names.truncate(missing.min(tokens));
        (names, (missing > tokens).then_some(next))
    }

    /// Whether a pool would have fewer than it wants without a cell, ready or on their way.
    pub fn needs(&self, pool: &str, cell: &str) -> bool {
        let pools = self.pools();
        pools.get(pool).is_some_and(|pool| {
            let counts = pool.sum();
            let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
            let state = pool.cells.get(cell).map(|known| known.state);
            // One that is counted already is one too many only when it is marked so.
            let counted = matches!(state, Some(State::Making | State::Warming | State::Ready));
            counted || counts.ready + counts.warming < wanted
        })
    }

    /// Marks those that are too many, and says which. Empty ones cost little, and are kept for a while.
    pub fn trim(&self, pool: &str) -> Vec<String> {
        let mut pools = self.pools();
        let Some(pool) = pools.get_mut(pool) else {
            return vec![];
        };
        let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
        let counts = pool.sum();
        if counts.ready + counts.warming <= wanted {
            return vec![];
        }
        let waiting = |known: &Known| {
            !known.surplus && matches!(known.state, State::Making | State::Warming | State::Ready)
        };
        let mut cells: Vec<_> = pool
            .cells
            .iter()
            .filter(|(_, known)| waiting(known))
            .map(|(name, known)| (known.state, name.clone()))
            .collect();
        cells.sort();
        let too_many = cells.len().saturating_sub(wanted);
        let marked: Vec<_> = cells.into_iter().take(too_many).map(|(_, name)| name).collect();
        for name in &marked {
            if let Some(known) = pool.cells.get_mut(name) {
                known.surplus = true;
            }
        }
        marked
    }

    /// Whether a cell of this kind is ready, and trusted.
    pub fn has(&self, kind: &str, trusted: impl Fn(&Warm) -> bool) -> bool {
        let pools = self.pools();
        pools
            .values()
            .any(|pool| pool.first(kind, "", &trusted).is_some())
    }

    /// The ready cells that are not trusted.
    pub fn distrusted(&self, trusted: impl Fn(&Warm) -> bool) -> Vec<String> {
        let pools = self.pools();
        let warm = pools.values().flat_map(|pool| {
            pool.offered
                .iter()
                .filter_map(|name| pool.cells.get(name)?.warm.as_deref())
        });
        warm.filter(|warm| !trusted(warm))
            .map(|warm| warm.cell.clone())
            .collect()
    }

    /// Whether a pool keeps cells of this kind ready, or would.
    pub fn keeps(&self, kind: &str) -> bool {
        let pools = self.pools();
        let mut wanted = pools.values().filter_map(|pool| pool.wanted.as_ref());
        wanted.any(|wanted| wanted.kind == kind && wanted.count > 0)
    }

    /// Whether a ready cell that has waited as long as it may is renewed now; then it is being emptied. A tenth of a pool at a time, so that one that
    /// was filled at once is not empty at once when its cells are old.
    pub fn renews(&self, pool: &str, cell: &str) -> bool {
        let mut pools = self.pools();
        let Some(pool) = pools.get_mut(pool) else {
            return true;
        };
        let wanted = pool.wanted.as_ref().map_or(0, |wanted| wanted.count);
        let ready = pool.sum().ready;
        let renews = wanted.saturating_sub(ready) < wanted.div_ceil(RENEWED);
        if renews {
            pool.set(cell, State::Emptying, None);
        }
        renews
    }

    /// Takes a trusted cell of this kind for a preview: the next one after the name that the preview's own cell would have. So operators beside
    /// each other try one cell for one preview, and another one for each other preview.
    pub fn take(&self, kind: &str, own: &str, trusted: impl Fn(&Warm) -> bool) -> Option<Warm> {
        let mut pools = self.pools();
        let (pool, name) = pools
            .values_mut()
            .find_map(|pool| pool.first(kind, own, &trusted).map(|name| (pool, name)))?;
        let warm = pool.cells.get(&name)?.warm.as_deref().cloned();
        pool.set(&name, State::Claimed, None);
        if let (Some(known), Some(warm)) = (pool.cells.get_mut(&name), &warm) {
            known.taken = Some(Box::new((warm.pod.nonce.clone(), Instant::now())));
        }
        warm
    }
}

impl Pool {
    /// The first cell of this kind that is ready and trusted, in the order of their names from this one on and then from the beginning.
    fn first(&self, kind: &str, from: &str, trusted: impl Fn(&Warm) -> bool) -> Option<String> {
        self.wanted.as_ref().filter(|wanted| wanted.kind == kind)?;
        let is_of = |name: &String| {
            let warm = self.cells.get(name).and_then(|known| known.warm.as_ref());
            warm.is_some_and(|warm| warm.kind == kind && trusted(warm))
        };
        let after = self
            .offered
            .range::<str, _>((Bound::Included(from), Bound::Unbounded));
        let before = self
            .offered
            .range::<str, _>((Bound::Unbounded, Bound::Excluded(from)));
        after.chain(before).find(|name| is_of(name)).cloned()
    }

    fn sum(&self) -> Counts {
        let count = |state| self.counts.get(&state).copied().unwrap_or_default();
        Counts {
            warming: count(State::Making) + count(State::Warming),
            empty: count(State::Empty) + count(State::Emptying),
            ready: count(State::Ready),
            claimed: count(State::Claimed),
        }
    }

    /// How many may be made now, and after what time one more.
    fn tokens(&mut self, now: Instant) -> (usize, Duration) {
        let Some(wanted) = &self.wanted else {
            return (0, LONGEST_PAUSE);
        };
        if let Some(failing) = self.failing.as_ref().filter(|failing| failing.until > now) {
            return (0, failing.until - now);
        }
        let bucket = self
            .bucket
            .get_or_insert_with(|| Bucket::full(&wanted.refill, now));
        bucket.count(&wanted.refill, now)
    }

    fn token(&mut self, now: Instant) -> Turn {
        let Some(wanted) = &self.wanted else {
            return Turn::Enough;
        };
        if let Some(failing) = self.failing.as_ref().filter(|failing| failing.until > now) {
            return Turn::After(failing.until - now);
        }
        let bucket = self
            .bucket
            .get_or_insert_with(|| Bucket::full(&wanted.refill, now));
        match bucket.take(&wanted.refill, now) {
            Ok(()) => Turn::Now,
            Err(after) => Turn::After(after),
        }
    }

    fn set(&mut self, cell: &str, state: State, warm: Option<Warm>) -> bool {
        let before = self.cells.get(cell).map(|known| (known.state, known.surplus));
        // What is one too many stays so until it is gone; one that a preview took is not.
        let surplus = before.is_some_and(|(_, surplus)| surplus) && state != State::Claimed;
        if let Some((before, _)) = before {
            self.leave(cell, before);
        }
        *self.counts.entry(state).or_default() += 1;
        if let Some(warm) = &warm {
            self.ready.insert((warm.since, cell.to_owned()));
            self.offered.insert(cell.to_owned());
        }
        if state == State::Ready {
            self.failing = None;
        }
        let same = self.cells.get(cell).filter(|known| known.state == state);
        let known = Known {
            since: same.map_or_else(Instant::now, |known| known.since),
            // Who finds it ready has looked at it.
            doubted: warm.is_none() && self.cells.get(cell).is_some_and(|known| known.doubted),
            taken: None,
            state,
            warm: warm.map(Box::new),
            surplus,
        };
        self.cells.insert(cell.to_owned(), known);
        before.is_none_or(|(before, _)| before != state)
    }

    fn remove(&mut self, cell: &str) {
        if let Some(state) = self.cells.get(cell).map(|known| known.state) {
            self.leave(cell, state);
            self.cells.remove(cell);
        }
    }

    fn leave(&mut self, cell: &str, state: State) {
        if let Some(count) = self.counts.get_mut(&state) {
            *count = count.saturating_sub(1);
        }
        if let Some(warm) = self.cells.get(cell).and_then(|known| known.warm.as_ref()) {
            self.ready.remove(&(warm.since, cell.to_owned()));
            self.offered.remove(cell);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(cell: &str, since: Instant) -> Warm {
        Warm {
            cell: cell.to_owned(),
            pool: OfPool {
                uid: "pool".into(),
                namespace: "shop".into(),
                name: "pool".into(),
            },
            kind: "t".into(),
            pod: PodIdentity {
                uid: "p".into(),
                ip: None,
                port: 80,
                nonce: None,
            },
            node: None,
            seal: String::new(),
            isolation: serde_json::from_value(serde_json::json!({
                "provenAt": "2026-01-01T00:00:00Z", "podUid": "p", "rounds": 1, "targets": []
            }))
            .unwrap(),
            since,
        }
    }

    fn table(count: usize, refill: Refill) -> Table {
        let table = Table::default();
        table.want(
            "pool",
            Wanted {
                count,
                refill,
                kind: "t".into(),
            },
        );
        table
    }

    fn anywhere(_: &Warm) -> bool {
        true
    }

    fn fast() -> Refill {
        Refill {
            per_second: 1000,
            burst: 1000,
        }
    }

    /// Between a change of listing or policy and the look at each cell that follows it, claims go on.
    #[test]
    fn what_was_ready_for_another_kind_is_not_taken_for_the_one_that_is_wanted_now() {
        let table = table(2, fast());
        let now = Instant::now();
        table.set("pool", "old", State::Ready, Some(warm("old", now)));
        let wanted = Wanted {
            count: 2,
            refill: fast(),
            kind: "new".into(),
        };
        assert!(table.want("pool", wanted));
        assert!(!table.has("new", anywhere) && table.take("new", "", anywhere).is_none());
        assert!(
            !table.has("t", anywhere) && table.take("t", "", anywhere).is_none(),
            "nobody wants it"
        );
        let new = Warm {
            kind: "new".into(),
            ..warm("new", now + Duration::from_secs(1))
        };
        table.set("pool", "new", State::Ready, Some(new));
        assert_eq!(
            table.take("new", "", anywhere).map(|warm| warm.cell).as_deref(),
            Some("new")
        );
    }

    #[test]
    fn a_cell_that_was_just_taken_is_left_alone_and_what_was_doubted_of_it_is_kept() {
        let table = table(1, fast());
        let now = Instant::now();
        let mut ready = warm("a", now);
        ready.pod.nonce = Some("n".into());
        table.set("pool", "a", State::Ready, Some(ready.clone()));
        assert!(!table.was_just_taken("pool", "a", "n", now));
        table.take("t", "", anywhere);
        assert!(table.was_just_taken("pool", "a", "n", now));
        assert!(
            !table.was_just_taken("pool", "a", "another", now),
            "it was freed since"
        );
        assert!(
            !table.was_just_taken("pool", "a", "n", now + BEHIND * 2),
            "in vain"
        );
        assert!(table.doubt("a", Doubt::Confinement));
        table.set("pool", "a", State::Going, None);
        table.set("pool", "a", State::Claimed, None);
        assert!(table.was_doubted("pool", "a") && !table.was_doubted("pool", "a"));
        assert!(table.doubt("a", Doubt::Confinement));
        table.set("pool", "a", State::Ready, Some(ready));
        table.take("t", "", anywhere);
        assert!(
            !table.was_doubted("pool", "a"),
            "who found it ready has looked at it"
        );
    }

    #[test]
    fn which_one_is_taken_is_a_matter_of_the_previews_name_and_none_is_twice() {
        let table = table(3, fast());
        for cell in ["c", "a", "b"] {
            table.set("pool", cell, State::Ready, Some(warm(cell, Instant::now())));
        }
        assert!(table.has("t", anywhere) && !table.has("another", anywhere));
        let taken: Vec<_> = std::iter::from_fn(|| table.take("t", "b", anywhere))
            .map(|warm| warm.cell)
            .collect();
        assert_eq!(taken, ["b", "c", "a"]);
        assert_eq!(table.counts("pool").claimed, 3);
    }

    #[test]
    fn what_was_there_at_the_beginning_is_known_once_each_was_looked_at() {
        let table = Table::default();
        assert!(table.is_known());
        let there = ["pool", "a", "b", "c"].map(str::to_owned);
        table.begin(there);
        table.want(
            "pool",
            Wanted {
                count: 2,
                refill: fast(),
                kind: "t".into(),
            },
        );
        table.set("pool", "a", State::Ready, Some(warm("a", Instant::now())));
        table.forget("pool", "b");
        assert!(!table.is_known());
        assert_eq!(table.give_up_waiting(), 1);
        assert!(table.is_known());
    }

    #[test]
    fn what_is_missing_is_made_at_the_rate_and_an_empty_cell_is_filled_first() {
        let refill = Refill {
            per_second: 2,
            burst: 2,
        };
        let table = table(5, refill);
        table.set("pool", "empty", State::Empty, None);
        let now = Instant::now();
        assert_eq!(table.fill("pool", "empty", now), Turn::Now);
        let first = table.make("pool", now).unwrap();
        assert_eq!(first, names::pool_cell("pool", 0));
        assert_eq!(
            table.make("pool", now),
            Err(Turn::After(Duration::from_millis(500)))
        );
        let later = now + Duration::from_secs(10);
        assert_eq!(table.make("pool", later), Ok(names::pool_cell("pool", 1)));
        assert_eq!(table.make("pool", later), Ok(names::pool_cell("pool", 2)));
        // No more than the burst, however long it was quiet.
        assert!(matches!(table.make("pool", later), Err(Turn::After(_))));
        let much_later = later + Duration::from_secs(10);
        assert_eq!(table.make("pool", much_later), Ok(names::pool_cell("pool", 3)));
        assert_eq!(table.make("pool", much_later), Err(Turn::Enough));
    }

    #[test]
    fn a_pool_that_was_filled_at_once_is_renewed_a_tenth_at_a_time() {
        let table = table(20, fast());
        let cells: Vec<_> = (10..30).map(|number| number.to_string()).collect();
        for cell in &cells {
            table.set("pool", cell, State::Ready, Some(warm(cell, Instant::now())));
        }
        let renewed = |table: &Table| cells.iter().filter(|cell| table.renews("pool", cell)).count();
        assert_eq!(renewed(&table), 2);
        assert_eq!(table.counts("pool").ready, 18);
        assert_eq!(
            table.make("pool", Instant::now()),
            Err(Turn::Enough),
            "they come back"
        );
        for cell in &cells[..2] {
            table.set("pool", cell, State::Ready, Some(warm(cell, Instant::now())));
        }
        assert!(table.renews("pool", &cells[2]));
        let single = self::table(1, fast());
        single.set("pool", "a", State::Ready, Some(warm("a", Instant::now())));
        assert!(single.renews("pool", "a"), "or it would never be");
    }

    #[test]
    fn what_fails_together_is_one_failure_and_nothing_is_made_meanwhile() {
        let table = table(3, fast());
        let now = Instant::now();
        for _ in 0..10 {
            table.failed("pool", "the node went", now);
        }
        table.set("pool", "empty", State::Empty, None);
        assert_eq!(table.to_fill("pool", now), (vec![], Some(FIRST_PAUSE)));
        let later = now + FIRST_PAUSE;
        assert_eq!(table.to_fill("pool", later), (vec!["empty".to_owned()], None));
        table.failed("pool", "again", later);
        assert_eq!(table.make("pool", later), Err(Turn::After(FIRST_PAUSE * 2)));
    }

    #[test]
    fn what_is_too_many_goes_but_for_empty_ones_and_never_what_a_preview_has() {
        let table = table(1, fast());
        let now = Instant::now();
        table.set("pool", "empty", State::Empty, None);
        table.set("pool", "claimed", State::Claimed, None);
        table.set("pool", "ready", State::Ready, Some(warm("ready", now)));
        table.set("pool", "warming", State::Warming, None);
        assert!(!table.needs("pool", "empty") && table.needs("pool", "warming"));
        assert_eq!(table.trim("pool"), ["warming"]);
        assert!(table.trim("pool").is_empty(), "each once");
        assert!(table.is_surplus("pool", "warming") && !table.is_surplus("pool", "ready"));
        assert_eq!(table.take("t", "", anywhere).unwrap().cell, "ready");
    }

    #[test]
    fn a_cell_that_is_doubted_is_not_taken_and_one_that_is_gone_is_forgotten_with_its_pool() {
        let table = table(1, fast());
        table.set("pool", "a", State::Ready, Some(warm("a", Instant::now())));
        assert!(
            table.doubt("a", Doubt::Confinement)
                && !table.doubt("a", Doubt::Confinement)
                && !table.doubt("another", Doubt::Confinement)
        );
        assert!(table.take("t", "", anywhere).is_none());
        assert_eq!(table.state("pool", "a"), Some(State::Warming));
        table.set("pool", "a", State::Ready, Some(warm("a", Instant::now())));
        assert!(table.take("t", "", anywhere).is_some() && !table.was_doubted("pool", "a"));
        assert!(
            table.doubt("a", Doubt::Confinement)
                && table.was_doubted("pool", "a")
                && !table.was_doubted("pool", "a")
        );
        table.rest("pool");
        table.set("pool", "new", State::Making, None);
        for cell in ["a", "new"] {
            table.is_not_there(cell, Instant::now());
        }
        assert_eq!(table.cells("pool"), ["new"], "its watch has not told of it yet");
        table.is_not_there("new", Instant::now() + TOLD);
        assert!(table.totals().is_empty());
    }

    #[test]
    fn a_cell_is_not_ready_if_it_was_doubted_while_it_was_looked_at() {
        let (table, now) = (table(2, fast()), Instant::now());
        for of in [Doubt::Confinement, Doubt::Content] {
            table.set("pool", "a", State::Warming, None);
            let begun = table.confinement.begin("a");
            assert!(!table.doubt("a", of), "nobody could have it");
            assert!(!table.ready("pool", begun, warm("a", now)));
            assert_eq!(table.state("pool", "a"), Some(State::Warming));
            let begun = table.confinement.begin("a");
            assert!(table.ready("pool", begun, warm("a", now)));
            assert_eq!(table.state("pool", "a"), Some(State::Ready));
        }
    }

    #[test]
    fn once_a_watch_was_lost_no_cell_that_waits_is_ready_and_what_previews_have_stays_theirs() {
        let (table, now) = (table(3, fast()), Instant::now());
        table.set("pool", "a", State::Ready, Some(warm("a", now)));
        table.set("pool", "b", State::Claimed, None);
        // A look at it is under way, and nothing else is known of it.
        let begun = table.confinement.begin("c");
        table.doubt_all(Doubt::Confinement);
        assert!(table.take("t", "", anywhere).is_none());
        assert_eq!(table.state("pool", "a"), Some(State::Warming));
        assert!(!table.ready("pool", begun, warm("c", now)));
        assert_eq!(table.state("pool", "b"), Some(State::Claimed));
        assert!(!table.was_doubted("pool", "b"));
    }
}
