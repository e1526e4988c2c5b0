//! What is to be looked at, and when: each thing once, however often it was asked for, and never twice at the same time. In memory.
//!
//! As client-go's workqueue. kube's scheduler and its store keep more than a kilobyte for each object that waits, and ten thousand
//! previews wait for their time to be over.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// Of those that are looked at one after the other: ten thousand in five seconds, and a look takes a tenth of this.
const EACH: Duration = Duration::from_micros(500);

/// When something is to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action(Option<Duration>);

impl Action {
    /// When it has changed.
    pub const fn await_change() -> Self {
        Self(None)
    }

    /// After a time, if it has not changed before.
    pub const fn requeue(after: Duration) -> Self {
        Self(Some(after))
    }
}

/// What a look leads to.
pub enum Look<F> {
    /// Nothing is to be done.
    Rest(Action),
    /// This is.
    Step(F),
}

impl<F> Look<F> {
    /// The same, with the step made of what it was to be made of.
    pub fn map<G>(self, step: impl FnOnce(F) -> G) -> Look<G> {
        match self {
            Self::Rest(action) => Look::Rest(action),
            Self::Step(of) => Look::Step(step(of)),
        }
    }
}

/// Of things that have a name.
#[derive(Debug, Default)]
pub struct Workqueue {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<Arc<str>, Entry>,
    /// Those that wait, the next one first.
    due: BTreeSet<(Instant, Arc<str>)>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// When it is to be looked at.
    due: Option<Instant>,
    /// It is being looked at.
    running: bool,
}

/// What is next.
enum Next {
    Now(Arc<str>),
    At(Instant),
    Nothing,
    Closed,
}

impl Workqueue {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is to be looked at now, or, if it is being looked at, once more after that.
    pub fn add(&self, name: impl AsRef<str> + Into<Arc<str>>) {
        self.add_at(name, Instant::now());
    }

    /// All of these are to be looked at, one after the other: whoever comes meanwhile does not wait for the last of them.
    pub fn add_each(&self, names: impl IntoIterator<Item = Arc<str>>) {
        let mut at = Instant::now();
        for name in names {
            self.add_at(name, at);
            at += EACH;
        }
    }

    /// Something is to be looked at after a time, if it is not to be sooner.
    pub fn add_after(&self, name: impl AsRef<str> + Into<Arc<str>>, after: Duration) {
        self.add_at(name, Instant::now() + after);
    }

    fn add_at(&self, name: impl AsRef<str> + Into<Arc<str>>, at: Instant) {
        let mut inner = self.inner();
        if inner.add(name, at) {
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Nothing is given out from now on.
    pub fn close(&self) {
        self.inner().closed = true;
        self.changed.notify_one();
    }

    /// The next one, once its time has come; `None` after the queue was closed. For one who asks.
    async fn next(&self) -> Option<Arc<str>> {
        loop {
            let changed = self.changed.notified();
            let next = self.inner().next(Instant::now());
            match next {
                Next::Now(name) => return Some(name),
                Next::Closed => return None,
                Next::Nothing => changed.await,
                Next::At(at) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
            }
        }
    }

    fn done(&self, name: &str) {
        if self.inner().done(name) {
            self.changed.notify_one();
        }
    }

    /// Has things looked at until the queue is closed and what was begun is done. A look is short; of the steps that looks lead to, at most so
    /// many are under way at once. Either says when the next look is due. Most looks lead to nothing: a task for each took a kilobyte, for
    /// ten thousand at a start.
    pub async fn work<F>(self: Arc<Self>, most: usize, look: impl Fn(&Arc<str>) -> Look<F>)
    where
        F: Future<Output = Action> + Send + 'static,
    {
        let mut under_way = JoinSet::new();
        loop {
            tokio::select! {
                next = self.next(), if under_way.len() < most => {
                    let Some(name) = next else { break };
                    // Done also if look or step panics: what nobody looks at any more would be lost.
                    let running = Running { queue: self.clone(), name };
                    match catch_unwind(AssertUnwindSafe(|| look(&running.name))) {
                        Ok(Look::Rest(action)) => running.again(action),
                        Ok(Look::Step(step)) => {
                            under_way.spawn(async move { running.again(step.await) });
                        }
                        // The panic has said what went wrong, and with what.
                        Err(_) => {}
                    }
                    // Thousands of looks at a stretch: others have their turn in between.
                    tokio::task::coop::consume_budget().await;
                }
                Some(_) = under_way.join_next(), if !under_way.is_empty() => {}
            }
        }
        while under_way.join_next().await.is_some() {}
    }
}

/// Ends a look when it is dropped.
struct Running {
    queue: Arc<Workqueue>,
    name: Arc<str>,
}

impl Running {
    fn again(&self, action: Action) {
        if let Some(after) = action.0 {
            self.queue.add_after(self.name.clone(), after);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.done(&self.name);
    }
}

impl Inner {
    /// Whether who waits for the next one has to look again.
    fn add(&mut self, name: impl AsRef<str> + Into<Arc<str>>, at: Instant) -> bool {
        let name = match self.entries.get_key_value(name.as_ref()) {
            Some((name, _)) => name.clone(),
            None => name.into(),
        };
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.due.is_some_and(|due| due <= at) {
            return false;
        }
        let before = entry.due.replace(at);
        if entry.running {
            return false;
        }
        if let Some(before) = before {
            self.due.remove(&(before, name.clone()));
        }
        let first = self.due.first().is_none_or(|(first, _)| at < *first);
        self.due.insert((at, name));
        first
    }

    fn next(&mut self, now: Instant) -> Next {
        if self.closed {
            return Next::Closed;
        }
        let Some((at, _)) = self.due.first() else {
            return Next::Nothing;
        };
        if *at > now {
            return Next::At(*at);
        }
        let Some((_, name)) = self.due.pop_first() else {
            return Next::Nothing;
        };
        self.entries.insert(
            name.clone(),
            Entry {
                due: None,
                running: true,
            },
        );
        Next::Now(name)
    }

    /// Whether it was asked for meanwhile.
    fn done(&mut self, name: &str) -> bool {
        let Some((name, entry)) = self
            .entries
            .get_key_value(name)
            .map(|(name, e)| (name.clone(), *e))
        else {
            return false;
        };
        let Some(due) = entry.due else {
            self.entries.remove(&name);
            return false;
        };
        self.entries.insert(
            name.clone(),
            Entry {
                due: Some(due),
                running: false,
            },
        );
        self.due.insert((due, name));
        true
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, watch};

    use super::*;

    /// What is given out at a time.
    fn given(inner: &mut Inner, now: Instant) -> Option<String> {
        match inner.next(now) {
            Next::Now(name) => Some(name.to_string()),
            _ => None,
        }
    }

    #[test]
    fn what_was_asked_for_twice_is_given_out_once_and_at_the_earlier_time() {
        let (mut inner, now) = (Inner::default(), Instant::now());
        let later = now + Duration::from_secs(5);
        assert!(inner.add("a", later));
        assert!(
            !inner.add("a", later + Duration::from_secs(1)),
            "it is sooner already"
        );
        assert!(
            !inner.add("b", later + Duration::from_secs(2)),
            "another is first"
        );
        assert_eq!(given(&mut inner, now), None);
        assert!(inner.add("a", now));
        assert_eq!(given(&mut inner, now), Some("a".to_owned()));
        assert_eq!(given(&mut inner, later), None, "once");
        assert_eq!(
            given(&mut inner, later + Duration::from_secs(2)),
            Some("b".to_owned())
        );
    }

    #[test]
    fn what_is_asked_for_while_it_is_looked_at_comes_after_that() {
        let (mut inner, now) = (Inner::default(), Instant::now());
        inner.add("a", now);
        assert_eq!(given(&mut inner, now), Some("a".to_owned()));
        inner.add("a", now);
        assert_eq!(given(&mut inner, now), None, "it is being looked at");
        assert!(inner.done("a"));
        assert_eq!(given(&mut inner, now), Some("a".to_owned()));
        assert!(!inner.done("a"));
        assert!(
            inner.entries.is_empty() && inner.due.is_empty(),
            "nothing is kept of it"
        );
    }

    #[test]
    fn of_many_at_once_each_has_its_time_and_who_was_asked_for_before_keeps_his() {
        let queue = Workqueue::default();
        queue.add("c");
        queue.add_each(["a", "b", "c"].map(Arc::from));
        let due: Vec<_> = queue.inner().due.iter().cloned().collect();
        let names: Vec<_> = due.iter().map(|(_, name)| &**name).collect();
        assert_eq!(names, ["c", "a", "b"]);
        assert_eq!(due[2].0 - due[1].0, EACH);
    }

    #[tokio::test]
    async fn what_was_begun_is_done_at_the_end_and_nothing_else_is_begun() {
        let queue = Arc::new(Workqueue::default());
        let (begun, mut begins) = mpsc::unbounded_channel();
        let (go, gone) = watch::channel(false);
        let work = tokio::spawn(queue.clone().work(2, move |name| {
            let (begun, mut gone, name) = (begun.clone(), gone.clone(), name.to_string());
            Look::Step(async move {
                begun.send(name).unwrap();
                gone.wait_for(|gone| *gone).await.unwrap();
                Action::requeue(Duration::ZERO)
            })
        }));
        for name in ["a", "a", "b", "c"] {
            queue.add(name);
        }
        let first = [begins.recv().await.unwrap(), begins.recv().await.unwrap()];
        assert_eq!(first, ["a", "b"], "two at once, each once");
        queue.add("a");
        queue.close();
        go.send_replace(true);
        work.await.unwrap();
        assert_eq!(begins.recv().await, None, "neither c nor a once more");
    }

    #[tokio::test]
    async fn looks_and_steps_say_when_the_next_look_is_due() {
        let queue = Arc::new(Workqueue::default());
        let (begun, mut begins) = mpsc::unbounded_channel();
        let hour = Action::requeue(Duration::from_secs(3600));
        let work = tokio::spawn(queue.clone().work(1, move |name| {
            begun.send(name.to_string()).unwrap();
            match &**name {
                "soon" => Look::Rest(Action::requeue(Duration::ZERO)),
                "later" => Look::Rest(hour),
                _ => Look::Step(async move { Action::requeue(Duration::ZERO) }),
            }
        }));
        queue.add("later");
        queue.add("soon");
        let mut seen = vec![];
        while seen.len() < 3 {
            seen.push(begins.recv().await.unwrap());
        }
        assert_eq!(seen, ["later", "soon", "soon"]);
        queue.add("step");
        while seen.iter().filter(|name| *name == "step").count() < 2 {
            seen.push(begins.recv().await.unwrap());
        }
        queue.close();
        work.await.unwrap();
    }

    #[tokio::test]
    async fn one_at_which_a_look_panics_can_be_looked_at_again_and_so_can_all_others() {
        let queue = Arc::new(Workqueue::default());
        let (begun, mut begins) = mpsc::unbounded_channel();
        let work = tokio::spawn(queue.clone().work(1, move |name| {
            begun.send(name.to_string()).unwrap();
            assert_ne!(&**name, "bad");
            Look::Step(async move {
                panic!("a step");
            })
        }));
        for name in ["bad", "good", "bad"] {
            queue.add(name);
            assert_eq!(begins.recv().await.as_deref(), Some(name));
        }
        queue.close();
        work.await.unwrap();
    }
}
