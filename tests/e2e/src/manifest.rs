//! An object in a file, for kubectl. Writes to the folder for temporary files.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::Value;

/// A file with an object; deleted with the value.
#[derive(Debug)]
pub struct Manifest(PathBuf);

impl Manifest {
    /// Writes it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new(object: &Value) -> Self {
        // Tests of one process write theirs at once.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("vitrine-{}-{number}.json", std::process::id()));
        std::fs::write(&file, object.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self(file)
    }

    /// Where it is.
    ///
    /// # Panics
    /// If the folder for temporary files has a name that is no text.
    pub fn path(&self) -> &str {
        self.0
            .to_str()
            .unwrap_or_else(|| panic!("{} is no text", self.0.display()))
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
