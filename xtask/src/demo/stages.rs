//! The demo's stages with the time that each took. Prints.

use std::time::{Duration, Instant};

use vitrine_devcluster::progress::{self, Progress, Step};
use vitrine_kit::Result;

/// How many stages the demo has; a mistake shows in its output.
const STAGES: usize = 9 + super::sale::STAGES;

/// The stages so far.
pub struct Stages {
    progress: Box<dyn Progress>,
    begun: Instant,
    done: Vec<(String, Duration)>,
}

impl Stages {
    /// Begins.
    pub fn begin(quiet: bool) -> Self {
        Self {
            progress: progress::for_stderr(quiet),
            begun: Instant::now(),
            done: vec![],
        }
    }

    /// Runs one stage.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn run<T>(
        &mut self,
        what: &str,
        work: impl AsyncFnOnce(&dyn Progress) -> Result<T>,
    ) -> Result<T> {
        let step = Step::new(what, self.done.len() + 1, STAGES);
        let begun = Instant::now();
        self.progress.started(&step);
        let result = work(&*self.progress).await;
        match &result {
            Ok(_) => self.progress.finished(&step, begun.elapsed()),
            Err(_) => self.progress.failed(&step, begun.elapsed()),
        }
        self.done.push((what.to_owned(), begun.elapsed()));
        result
    }

    /// The table of times.
    pub fn table(&self) -> String {
        let mut text =
            String::from("\nstage                                                         seconds\n");
        for (what, elapsed) in &self.done {
            text += &format!("{what:<61} {:>7.1}\n", elapsed.as_secs_f64());
        }
        text + &format!("{:<61} {:>7.1}\n", "in all", self.begun.elapsed().as_secs_f64())
    }
}
