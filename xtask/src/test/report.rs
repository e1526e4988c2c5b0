//! What a run prints about its failures and at its end. Prints only.

use std::path::Path;
use std::time::Duration;

use crate::progress::{Progress, clock};
use crate::results::{Outcome, TestResult};

/// Of one failure, as many lines are shown; all of them are in the log that its last line names.
const LINES_A_FAILURE: usize = 80;

/// Something that failed.
pub struct Failure {
    /// The test or check.
    pub reference: String,
    /// Why, line by line.
    pub why: Vec<String>,
}

impl Failure {
    /// Prints it as it happens.
    pub fn explain(&self, progress: &Progress) {
        progress.line(&format!("      FAILED {}", self.reference));
        let skipped = self.why.len().saturating_sub(LINES_A_FAILURE);
        if skipped > 0 {
            progress.line(&format!("        ({skipped} lines before this)"));
        }
        for line in &self.why[skipped..] {
            progress.line(&format!("        {line}"));
        }
    }
}

/// How many ended how.
#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn of(results: &[TestResult]) -> Self {
        let mut counts = Self::default();
        for result in results {
            match result.outcome {
                Outcome::Ok => counts.passed += 1,
                Outcome::Failed => counts.failed += 1,
                Outcome::Ignored => counts.skipped += 1,
            }
        }
        counts
    }
}

/// One line of the closing table.
pub struct StageReport {
    name: String,
    counts: Counts,
    elapsed: Duration,
}

impl StageReport {
    /// Of the results that the stage added.
    pub fn new(name: &str, results: &[TestResult], elapsed: Duration) -> Self {
        Self {
            name: name.to_owned(),
            counts: Counts::of(results),
            elapsed,
        }
    }
}

/// The closing table, the list of failures and the last line.
pub fn close(
    progress: &Progress,
    stages: &[StageReport],
    failures: &[Failure],
    results: &[TestResult],
    path: &Path,
) {
    progress.line("");
    progress.line(&format!(
        "{:<16}{:>8}{:>8}{:>9}{:>9}",
        "stage", "passed", "failed", "skipped", "time"
    ));
    for StageReport {
        name,
        counts: Counts {
            passed,
            failed,
            skipped,
        },
        elapsed,
    } in stages
    {
        progress.line(&format!(
            "{name:<16}{passed:>8}{failed:>8}{skipped:>9}{:>9}",
            clock(*elapsed)
        ));
    }
    progress.line(&format!(
        "in all {}; results in {}",
        clock(progress.elapsed()),
        path.display()
    ));
    for failure in failures {
        progress.line(&format!("failed: {}", failure.reference));
    }
    progress.line(&last_line(&Counts::of(results)));
}

fn last_line(
    Counts {
        passed,
        failed,
        skipped,
    }: &Counts,
) -> String {
    match skipped {
        0 => format!("{passed} passed, {failed} failed"),
        _ => format!("{passed} passed, {failed} failed, {skipped} skipped"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_names_skipped_tests_only_if_there_are_any() {
        assert_eq!(
            last_line(&Counts {
                passed: 2,
                failed: 0,
                skipped: 0
            }),
            "2 passed, 0 failed"
        );
        assert_eq!(
            last_line(&Counts {
                passed: 2,
                failed: 1,
                skipped: 3
            }),
            "2 passed, 1 failed, 3 skipped"
        );
    }
}
