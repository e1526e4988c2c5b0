//! Reads what a libtest binary prints on a stable toolchain: `--list` and the run itself. Pure, no I/O.
//!
//! The human form is all that is stable, and it can be torn: what a test's child process writes to the inherited
//! standard output lands between `test NAME ... ` and `ok`. So lines are only the first source; what they leave
//! open is settled by the binary's own closing line, and only where that leaves no doubt. Nothing is ever counted
//! as passed that was not said to have passed.

use std::collections::BTreeMap;

use crate::results::Outcome;

/// What a run's output says.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// How each test ended.
    pub outcomes: BTreeMap<String, Outcome>,
    /// The part of the output that explains failures.
    pub explanation: Vec<String>,
}

/// The counts of the closing line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Totals {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// The names in the output of `--list --format terse`.
pub fn parse_list(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

/// The outcomes in the output of a run that was to run `expected`. A test without an outcome is `Failed`.
pub fn parse_run(expected: &[String], output: &str) -> Report {
    let mut report = parse_lines(output);
    report.outcomes.retain(|name, _| expected.contains(name));
    let open: Vec<&String> = expected
        .iter()
        .filter(|name| !report.outcomes.contains_key(*name))
        .collect();
    if open.is_empty() {
        return report;
    }
    let settled = totals(output).is_some_and(|totals| {
        let count = |outcome| report.outcomes.values().filter(|seen| **seen == outcome).count();
        totals.failed == count(Outcome::Failed)
            && totals.ignored == count(Outcome::Ignored)
            && totals.passed == count(Outcome::Ok) + open.len()
    });
    let outcome = if settled { Outcome::Ok } else { Outcome::Failed };
    let open: Vec<String> = open.into_iter().cloned().collect();
    report
        .outcomes
        .extend(open.into_iter().map(|name| (name, outcome)));
    report
}

/// The outcomes in the output of a run whose tests could not be listed first (documentation tests).
pub fn parse_lines(output: &str) -> Report {
    let mut report = Report::default();
    let mut pending: Option<String> = None;
    let mut explaining = false;
    for line in output.lines() {
        if line == "failures:" {
            explaining = true;
        } else if line.starts_with("test result: ") {
            explaining = false;
        }
        if explaining {
            report.explanation.push(line.to_owned());
            continue;
        }
        if let Some((name, tail)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            let name = name.strip_suffix(" - should panic").unwrap_or(name).to_owned();
            match outcome(tail) {
                Some(outcome) => {
                    report.outcomes.insert(name, outcome);
                    pending = None;
                }
                None => pending = Some(name),
            }
        } else if let Some(outcome) = outcome(line)
            && let Some(name) = pending.take()
        {
            report.outcomes.insert(name, outcome);
        }
    }
    report
}

fn outcome(text: &str) -> Option<Outcome> {
    match text.trim_end() {
        "ok" => Some(Outcome::Ok),
        "FAILED" => Some(Outcome::Failed),
        text if text == "ignored" || text.starts_with("ignored, ") => Some(Outcome::Ignored),
        _ => None,
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`
fn totals(output: &str) -> Option<Totals> {
    let line = output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("test result: "))?;
    let (_, counts) = line.split_once(". ")?;
    let mut totals = Totals::default();
    for count in counts.split("; ") {
        match count.split_once(' ')? {
            (number, "passed") => totals.passed = number.parse().ok()?,
            (number, "failed") => totals.failed = number.parse().ok()?,
            (number, "ignored") => totals.ignored = number.parse().ok()?,
            _ => {}
        }
    }
    Some(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ended(report: &Report) -> Vec<(&str, Outcome)> {
        report
            .outcomes
            .iter()
            .map(|(name, outcome)| (name.as_str(), *outcome))
            .collect()
    }

    #[test]
    fn a_list_is_its_tests_without_benchmarks_and_counts() {
        let output = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(parse_list(output), names(&["a::b", "c"]));
    }

    #[test]
    fn every_outcome_is_read_with_its_decorations() {
        let output = "\nrunning 5 tests\ntest a ... ok\ntest b ... ignored\ntest c ... ignored, needs a moon\n\
            test d - should panic ... ok\ntest e ... FAILED\n\nfailures:\n\n---- e stdout ----\ntest a ... FAILED\n\n\
            failures:\n    e\n\ntest result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let report = parse_run(&names(&["a", "b", "c", "d", "e"]), output);
        use Outcome::{Failed, Ignored, Ok};
        assert_eq!(
            ended(&report),
            [
                ("a", Ok),
                ("b", Ignored),
                ("c", Ignored),
                ("d", Ok),
                ("e", Failed)
            ]
        );
        assert!(report.explanation.contains(&"---- e stdout ----".to_owned()));
    }

    #[test]
    fn an_outcome_on_a_later_line_belongs_to_the_test_before_it() {
        let output = "test a ... noise of a child\nmore noise\nok\ntest b ... FAILED\n";
        let report = parse_run(&names(&["a", "b"]), output);
        assert_eq!(ended(&report), [("a", Outcome::Ok), ("b", Outcome::Failed)]);
    }

    #[test]
    fn a_torn_line_is_settled_by_the_closing_line() {
        let output = "noisetest a ... ok\ntest b ... ok\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let report = parse_run(&names(&["a", "b"]), output);
        assert_eq!(ended(&report), [("a", Outcome::Ok), ("b", Outcome::Ok)]);
    }

    #[test]
    fn a_torn_line_is_a_failure_where_the_closing_line_leaves_doubt() {
        let output = "noisetest a ... FAILED\ntest b ... ok\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let report = parse_run(&names(&["a", "b"]), output);
        assert_eq!(ended(&report), [("a", Outcome::Failed), ("b", Outcome::Ok)]);
    }

    #[test]
    fn a_binary_that_dies_half_way_has_failed_every_test_it_did_not_finish() {
        let report = parse_run(&names(&["a", "b"]), "running 2 tests\ntest a ... ok\ntest b ... ");
        assert_eq!(ended(&report), [("a", Outcome::Ok), ("b", Outcome::Failed)]);
    }

    #[test]
    fn documentation_tests_are_read_without_a_list() {
        let report = parse_lines("test crds/src/lib.rs - Thing (line 12) ... ok\n");
        assert_eq!(
            ended(&report),
            [("crds/src/lib.rs - Thing (line 12)", Outcome::Ok)]
        );
    }
}
