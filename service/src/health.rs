//! What must be so before a service takes requests. In memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// What is missing, by name.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Says that something is missing, and why.
    pub fn missing(&self, what: &'static str, why: impl Into<String>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(what, why.into());
    }

    /// Says that it is there.
    pub fn present(&self, what: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
    }

    /// What is missing, a line each; empty when ready.
    pub fn reasons(&self) -> String {
        let missing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        missing
            .iter()
            .map(|(what, why)| format!("{what}: {why}\n"))
            .collect()
    }
}
