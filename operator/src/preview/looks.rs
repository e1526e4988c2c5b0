//! Which live previews have to be looked at as a whole, and of which it is known from the watches that nothing is to be done. In
//! memory, reads what the watches have stored.
//!
//! A whole look is seven reads, and each event of a preview or of its slots would cause one. So a whole look follows what a watch tells
//! of its cell, and a watch that was lost; and comes by itself now and then, for what none has told.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use tokio::{sync::Notify, time::Instant};
use vitrine_crds::{Phase, PreviewSandbox, preview_policy::Expiry};
use vitrine_policies::{
    abuse,
    cell::{Tenant, record, seal},
    names,
};

use super::{
    Context, Guarded,
    decide::{self, Deserted, SAFETY},
    dereference, is_waiting,
};

/// How long a live preview goes without a whole look if no watch tells anything, …
const WHOLE: Duration = Duration::from_secs(600);
/// … and for each that lives so much at least: five looks, 35 reads a second. Ten minutes for ten thousand would be 130 reads a second.
const EACH: Duration = Duration::from_millis(200);
/// How long a watch may take to tell what this process has written itself.
const BEHIND: Duration = Duration::from_secs(1);
/// Those of which nothing is known yet are looked at one after the other, twenty a second: ten thousand within ten minutes.
const PACE: Duration = Duration::from_millis(50);

/// When each live preview is to be looked at as a whole, by `namespace/name`.
#[derive(Debug)]
pub struct Looks {
    inner: Mutex<Inner>,
    /// That something may have happened to network policies of which no watch has told.
    unheard: Notify,
}

#[derive(Debug)]
struct Inner {
    due: HashMap<String, Due>,
    touched: HashSet<String>,
    /// Those that are ready, by their uid, and since when; until the watch has told so.
    opened: HashMap<String, (String, Instant)>,
    /// Those that this process has let go of, by their uid, and since when: as long as the watch may not have told of it.
    released: HashMap<String, Instant>,
    /// How often all were to be looked at again.
    times: u64,
    /// When the next of which nothing is known is due.
    next: Instant,
}

/// When one is due.
#[derive(Clone, Copy, Debug)]
enum Due {
    At(Instant),
    /// So much of the time between two looks after this one: how long that is, is a matter of how many live then.
    After(Instant, f32),
}

/// After how many times that all were to be looked at again a look began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun(u64);

impl Default for Looks {
    fn default() -> Self {
        let inner = Mutex::new(Inner {
            due: HashMap::new(),
            touched: HashSet::new(),
            opened: HashMap::new(),
            released: HashMap::new(),
            times: 0,
            next: Instant::now(),
        });
        Self {
            inner,
            unheard: Notify::new(),
        }
    }
}

impl Looks {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of this preview may be other than it was.
    pub fn touch(&self, preview: &ObjectRef<Guarded>) {
        let name = key(preview.namespace.as_deref().unwrap_or_default(), &preview.name);
        self.inner().touched.insert(name);
    }

    /// Whether something of this preview may be other than it was.
    pub fn is_touched(&self, namespace: &str, name: &str) -> bool {
        self.inner().touched.contains(&key(namespace, name))
    }

    /// A watch begins to tell only now: what it would have told before, nobody knows.
    pub fn all_again(&self) {
        let mut inner = self.inner();
        inner.due.clear();
        inner.times += 1;
        inner.next = Instant::now();
    }

    /// The watch on network policies begins to tell only now.
    pub fn may_be_unsealed(&self) {
        self.unheard.notify_one();
    }

    /// Waits until the watch on network policies has begun to tell since this was asked last.
    pub async fn unheard(&self) {
        self.unheard.notified().await;
    }

    /// A whole look begins; which is to be said when it is done.
    pub fn begin(&self, namespace: &str, name: &str) -> Begun {
        let mut inner = self.inner();
        inner.touched.remove(&key(namespace, name));
        Begun(inner.times)
    }

    /// It has found nothing to do, or done it.
    pub fn done(&self, namespace: &str, name: &str, begun: Begun) {
        let (mut inner, key) = (self.inner(), key(namespace, name));
        if inner.times != begun.0 {
            return;
        }
        // So that those that were made at once are not looked at at once for ever.
        let share = 0.75 + 0.25 * rand::random::<f32>();
        inner.due.insert(key, Due::After(Instant::now(), share));
    }

    /// It was made ready in a cell that was whole before this began.
    pub fn opened(&self, namespace: &str, name: &str, uid: &str, begun: Begun) {
        self.done(namespace, name, begun);
        let opened = (uid.to_owned(), Instant::now());
        self.inner().opened.insert(key(namespace, name), opened);
    }

    /// Nothing is to be done for it any more.
    pub fn released(&self, uid: &str, now: Instant) {
        let mut inner = self.inner();
        let young = |at: &Instant| now.saturating_duration_since(*at) < BEHIND;
        inner.released.retain(|_, at| young(at));
        inner.released.insert(uid.to_owned(), now);
    }

    /// Whether it was let go of, and the watch may not have told so yet.
    fn is_released(&self, uid: &str, now: Instant) -> bool {
        let at = self.inner().released.get(uid).copied();
        at.is_some_and(|at| now.saturating_duration_since(at) < BEHIND)
    }

    /// Whether it is ready, and the watch has not told so yet.
    fn is_behind(&self, namespace: &str, name: &str, uid: Option<&String>, now: Instant) -> bool {
        let inner = self.inner();
        let opened = inner.opened.get(&key(namespace, name));
        opened.is_some_and(|(of, at)| Some(of) == uid && now.saturating_duration_since(*at) < BEHIND)
    }

    /// The watch has told that it is ready.
    fn caught_up(&self, namespace: &str, name: &str) {
        self.inner().opened.remove(&key(namespace, name));
    }

    /// It is not live, as far as the watch knows. That something of it may be other than it was, is for who looks at it.
    fn is_not_live(&self, namespace: &str, name: &str) {
        let (mut inner, key) = (self.inner(), key(namespace, name));
        inner.due.remove(&key);
        // It was ready, and the watch should have told of it long since: what it shows is not to be built on.
        if inner.opened.remove(&key).is_some() {
            inner.touched.insert(key);
        }
    }

    /// It is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let (mut inner, key) = (self.inner(), key(namespace, name));
        inner.due.remove(&key);
        inner.touched.remove(&key);
        inner.opened.remove(&key);
    }

    /// How long a preview may wait for a whole look; `None` if it is due.
    fn left(&self, namespace: &str, name: &str, now: Instant) -> Option<Duration> {
        let (mut inner, key) = (self.inner(), key(namespace, name));
        if inner.touched.contains(&key) {
            return None;
        }
        let due = match inner.due.get(&key) {
            Some(Due::At(due)) => *due,
            Some(Due::After(looked, share)) => {
                let lives = u32::try_from(inner.due.len()).unwrap_or(u32::MAX);
                *looked + WHOLE.max(EACH.saturating_mul(lives)).mul_f32(*share)
            }
            None => {
                let due = inner.next.max(now);
                inner.next = due + PACE;
                inner.due.insert(key, Due::At(due));
                due
            }
        };
        due.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// How long nothing is to be done for a preview as far as the watches know; `None` if it has to be looked at as a whole. `preview` is
/// as the watch has it.
pub fn quiet(context: &Context, preview: &PreviewSandbox, now: Timestamp) -> Option<Duration> {
    let (namespace, name) = (preview.namespace().unwrap_or_default(), preview.name_any());
    if preview.phase() != Phase::Ready {
        let uid = preview.metadata.uid.as_ref();
        if uid.is_some_and(|uid| context.looks.is_released(uid, Instant::now())) {
            return Some(BEHIND);
        }
        if is_waiting(preview) && context.looks.is_behind(&namespace, &name, uid, Instant::now()) {
            return Some(BEHIND);
        }
        context.looks.is_not_live(&namespace, &name);
        return None;
    }
    context.looks.caught_up(&namespace, &name);
    let held = preview.finalizers().iter().any(|f| f == names::PREVIEW_FINALIZER);
    if !held {
        return None;
    }
    let left = context.looks.left(&namespace, &name, Instant::now())?;
    let (uid, status) = (preview.uid()?, preview.status.as_ref()?);
    let envelope = status.envelope.as_ref()?;
    let lives = decide::until(status.expires_at.as_ref()?.0, now)?;
    if preview.spec.ttl.is_some_and(|asked| asked > envelope.ttl) || status.abuse.is_some() {
        return None;
    }
    let watched = &context.watched;
    // The cell that it lives in is still its own, and stays.
    let cell = watched.cells.get(status.cell.as_deref()?)?;
    let live = Namespace {
        metadata: cell.metadata.clone(),
        ..Namespace::default()
    };
    let tenant = Tenant::of(preview)?;
    if cell.metadata.deletion_timestamp.is_some() || !seal::holds(&record::had_by(&tenant), &live) {
        return None;
    }
    let own = |slot: &String| watched.slots.is_held_by(slot, &uid);
    if !status.slots.iter().all(own)
        || watched.holds_beside(&uid, &status.slots)
        || !watched.cells_beside(&uid, status.cell.as_deref()).is_empty()
    {
        return None;
    }
    let mut wake = left.min(lives);
    let Some(policy) = watched.policy() else {
        return Some(wake);
    };
    // What gateways and nodes count no watch tells.
    let traffic = &policy.spec.traffic;
    if policy.spec.abuse.is_some() || traffic.unopened.is_some() || traffic.idle.is_some() {
        wake = wake.min(SAFETY);
    }
    if policy.spec.maintenance.expiry == Expiry::Suspended {
        // When its time is about to be over, it may be given more.
        let quiet = lives.checked_sub(decide::AHEAD).filter(|left| !left.is_zero())?;
        return Some(wake.min(quiet));
    }
    match decide::deserted(status, &policy, context.watchers.of(&uid).as_ref()) {
        None => {}
        Some(Deserted::From(time)) => wake = wake.min(decide::until(time, now)?),
        Some(Deserted::Since(..)) => return None,
    }
    if let Some(rules) = &policy.spec.abuse {
        let signs = dereference::signs(context, Some(&policy), preview, status);
        if abuse::judge(rules, &signs).measure.is_some() {
            return None;
        }
    }
    Some(wake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_there_are_the_less_often_each_is_looked_at() {
        let looks = Looks::default();
        for number in 0..6000 {
            let name = number.to_string();
            let begun = looks.begin("shop", &name);
            looks.done("shop", &name, begun);
        }
        let (now, last) = (Instant::now(), "5999");
        let left = looks.left("shop", last, now).unwrap();
        assert!(left > WHOLE && left <= WHOLE * 2, "{left:?}");
    }

    #[test]
    fn what_is_touched_is_due_at_once_and_what_is_unknown_one_after_the_other() {
        let (looks, now) = (Looks::default(), Instant::now() + PACE);
        assert_eq!(looks.left("shop", "a", now), None, "nothing is known of it");
        assert_eq!(looks.left("shop", "b", now), Some(PACE));
        assert_eq!(looks.left("shop", "c", now), Some(PACE * 2));
        let begun = looks.begin("shop", "a");
        looks.done("shop", "a", begun);
        let left = looks.left("shop", "a", now).unwrap();
        assert!(left > WHOLE / 2 && left <= WHOLE, "{left:?}");
        looks.touch(&ObjectRef::new("a").within("shop"));
        assert_eq!(looks.left("shop", "a", now), None);
        looks.begin("shop", "a");
        assert!(looks.left("shop", "a", now).is_some());
        let begun = looks.begin("shop", "new");
        looks.opened("shop", "new", "uid", begun);
        let (uid, another, now) = ("uid".to_owned(), "another".to_owned(), Instant::now());
        assert!(looks.is_behind("shop", "new", Some(&uid), now));
        assert!(!looks.is_behind("shop", "new", Some(&another), now));
        assert!(!looks.is_behind("shop", "new", Some(&uid), now + BEHIND));
        looks.caught_up("shop", "new");
        assert!(!looks.is_behind("shop", "new", Some(&uid), now));
        looks.released("uid", now);
        assert!(looks.is_released("uid", now) && !looks.is_released("another", now));
        assert!(!looks.is_released("uid", now + BEHIND));
        looks.released("another", now + BEHIND);
        assert_eq!(
            looks.inner().released.len(),
            1,
            "what is told long since is forgotten"
        );
        looks.all_again();
        looks.done("shop", "a", begun);
        let left = looks.left("shop", "a", now);
        assert!(
            left.is_none_or(|left| left <= PACE),
            "the look began before: {left:?}"
        );
    }
}
