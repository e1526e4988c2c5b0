//! A test's turn on a shared cluster: it lasts as long as the lock that it holds. Says in the test's output how long that was.

use std::time::Instant;

/// A lock, and since when it is held.
#[derive(Debug)]
pub struct Turn<Lock> {
    _lock: Lock,
    begun: Instant,
}

impl<Lock> Turn<Lock> {
    /// The turn begins with the lock.
    pub fn begin(lock: Lock) -> Self {
        Self {
            _lock: lock,
            begun: Instant::now(),
        }
    }
}

impl<Lock> Drop for Turn<Lock> {
    fn drop(&mut self) {
        // libtest tells the time of a whole binary only, most of which may be waits for a turn.
        println!("took {:.1} s", self.begun.elapsed().as_secs_f64());
    }
}
