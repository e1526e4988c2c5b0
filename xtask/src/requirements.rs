//! Reads docs/requirements.md and judges it against results. Pure: text in, rows and problems out, no I/O.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::results::{Outcomes, TestResult};

/// The areas by the prefix of their ids, and how many rows each has. Ids are never reused and never dropped, so
/// this table only ever grows.
const AREAS: [(&str, usize); 18] = [
    ("CAT", 37),
    ("SBX", 16),
    ("CHK", 33),
    ("FIN", 13),
    ("LIC", 27),
    ("DEL", 24),
    ("AUD", 12),
    ("PAY", 15),
    ("REV", 16),
    ("DIS", 10),
    ("ANA", 8),
    ("KEY", 20),
    ("UI", 12),
    ("SEC", 15),
    ("OBS", 11),
    ("BDR", 6),
    ("CIC", 16),
    ("RUN", 12),
];

const SUMMARY_BEGIN: &str = "<!-- summary:begin";
const SUMMARY_END: &str = "<!-- summary:end -->";
const COLUMNS: usize = 6;

/// How much of a requirement is proven.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum State {
    /// No test proves any of it.
    Open,
    /// The named tests prove a part.
    Part,
    /// The named tests prove it.
    Done,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line of the document it stands on.
    pub line: usize,
    /// Its id, as `SBX-04`.
    pub id: String,
    /// The heading it stands under.
    pub area: String,
    /// How much of it is proven.
    pub state: State,
    /// The tests it names.
    pub tests: Vec<String>,
    /// What is not proven yet.
    pub missing: String,
}

/// The rows of the document, and what about it could not be read.
#[derive(Debug, Default)]
pub struct Document {
    /// In the document's order.
    pub rows: Vec<Row>,
    /// Each with its line.
    pub problems: Vec<String>,
}

/// Counts of one area.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Rows whose tests prove them.
    pub done: usize,
    /// Rows whose tests prove a part.
    pub part: usize,
    /// The rest.
    pub open: usize,
}

impl Count {
    /// All rows.
    pub fn total(self) -> usize {
        self.done + self.part + self.open
    }

    fn add(&mut self, state: State) {
        match state {
            State::Done => self.done += 1,
            State::Part => self.part += 1,
            State::Open => self.open += 1,
        }
    }
}

/// Reads the document. A line of a table that is no row is a problem, never skipped: a row lost to a typing error
/// would look like a requirement that nobody asked for.
pub fn parse(text: &str) -> Document {
    let mut document = Document::default();
    let mut area = String::new();
    let mut in_summary = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with(SUMMARY_BEGIN) {
            in_summary = true;
        } else if line.starts_with(SUMMARY_END) {
            in_summary = false;
        } else if let Some(heading) = line.strip_prefix("## ") {
            heading.trim().clone_into(&mut area);
        } else if line.starts_with('|')
            && !in_summary
            && !line.starts_with("| ID |")
            && !line.starts_with("|---")
        {
            match parse_row(line, index + 1, &area) {
                Ok(row) => document.rows.push(row),
                Err(why) => document.problems.push(format!("line {}: {why}", index + 1)),
            }
        }
    }
    document
}

fn parse_row(line: &str, number: usize, area: &str) -> Result<Row, String> {
    let inner = line
        .trim()
        .strip_prefix('|')
        .and_then(|rest| rest.strip_suffix('|'));
    let cells: Vec<&str> = inner
        .ok_or("a row must start and end with `|`")?
        .split('|')
        .map(str::trim)
        .collect();
    let [id, requirement, source, state, tests, missing] = cells[..] else {
        return Err(format!("a row has {COLUMNS} cells, this one {}", cells.len()));
    };
    let well_formed = id.split_once('-').is_some_and(|(prefix, digits)| {
        !prefix.is_empty()
            && prefix.bytes().all(|byte| byte.is_ascii_uppercase())
            && digits.len() == 2
            && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !well_formed {
        return Err(format!("{id:?} is not an id like `SBX-04`"));
    }
    if requirement.is_empty() || source.is_empty() {
        return Err(format!("{id} has no requirement or no source"));
    }
    let state = match state {
        "open" => State::Open,
        "part" => State::Part,
        "done" => State::Done,
        other => {
            return Err(format!(
                "the state of {id} is {other:?}; it must be open, part or done"
            ));
        }
    };
    let tests = parse_tests(tests).map_err(|why| format!("the tests of {id}: {why}"))?;
    Ok(Row {
        line: number,
        id: id.to_owned(),
        area: area.to_owned(),
        state,
        tests,
        missing: missing.to_owned(),
    })
}

/// Names in backticks, separated by commas.
fn parse_tests(cell: &str) -> Result<Vec<String>, String> {
    let mut tests = Vec::new();
    for name in cell.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let name = name
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'))
            .ok_or_else(|| format!("{name:?} must stand in backticks"))?;
        if !name.contains("::") {
            return Err(format!("{name:?} is not a name like `package::module::test`"));
        }
        tests.push(name.to_owned());
    }
    Ok(tests)
}

/// Everything wrong with the document, given what ran. Empty means that it is true.
pub fn check(document: &Document, results: &[TestResult]) -> Vec<String> {
    let mut problems = document.problems.clone();
    problems.extend(check_ids(&document.rows));
    let outcomes = Outcomes::of(results);
    for row in &document.rows {
        let mut problem = |what: String| problems.push(format!("line {}: {}: {what}", row.line, row.id));
        match (row.state, row.tests.is_empty(), row.missing.is_empty()) {
            (State::Open, false, _) => problem("is open but names tests; is it part or done?".to_owned()),
            (State::Part | State::Done, true, _) => problem("names no test; then it is open".to_owned()),
            (State::Part, false, true) => problem("is part but does not say what is missing".to_owned()),
            (State::Done, false, false) => problem("is done but says that something is missing".to_owned()),
            _ => {}
        }
        for why in row.tests.iter().filter_map(|test| outcomes.why_not(test)) {
            problem(why);
        }
    }
    problems
}

fn check_ids(rows: &[Row]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for row in rows {
        if !seen.insert(row.id.as_str()) {
            problems.push(format!("line {}: {} stands here a second time", row.line, row.id));
        }
    }
    let expected: BTreeSet<String> = AREAS
        .iter()
        .flat_map(|(prefix, count)| (1..=*count).map(move |number| format!("{prefix}-{number:02}")))
        .collect();
    problems.extend(
        expected
            .iter()
            .filter(|id| !seen.contains(id.as_str()))
            .map(|id| format!("{id} has no row")),
    );
    problems.extend(rows.iter().filter(|row| !expected.contains(&row.id)).map(|row| {
        format!(
            "line {}: {} is not a known id; a new requirement is also counted in xtask/src/requirements.rs",
            row.line, row.id
        )
    }));
    problems
}

/// Counts by area in the document's order, and over all.
pub fn count(rows: &[Row]) -> (Vec<(String, Count)>, Count) {
    let mut areas: Vec<(String, Count)> = Vec::new();
    let mut all = Count::default();
    for row in rows {
        all.add(row.state);
        match areas.iter_mut().find(|(area, _)| *area == row.area) {
            Some((_, count)) => count.add(row.state),
            None => {
                let mut count = Count::default();
                count.add(row.state);
                areas.push((row.area.clone(), count));
            }
        }
    }
    (areas, all)
}

/// The document with its summary renewed. `None` if the markers are not there.
pub fn with_summary(text: &str, rows: &[Row]) -> Option<String> {
    let begin = text.find(SUMMARY_BEGIN)?;
    let table = begin + text[begin..].find('\n')? + 1;
    let end = table + text[table..].find(SUMMARY_END)?;
    let (areas, all) = count(rows);
    let mut summary = String::from("\n| Area | Done | Part | Open | Total |\n|---|--:|--:|--:|--:|\n");
    for (area, count) in areas.iter().chain([&("**All**".to_owned(), all)]) {
        let Count { done, part, open } = *count;
        // Writing to a String cannot fail.
        let _ = writeln!(
            summary,
            "| {area} | {done} | {part} | {open} | {} |",
            count.total()
        );
    }
    Some(format!("{}{summary}\n{}", &text[..table], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Outcome;

    /// A correct document: every id, all open, with the given rows in place of their own.
    fn document(replaced: &[(&str, &str)]) -> String {
        let mut text =
            String::from("# R\n\n## Summary\n\n<!-- summary:begin -->\n| old |\n<!-- summary:end -->\n");
        for (prefix, count) in AREAS {
            let _ = write!(
                text,
                "\n## Area {prefix}\n\n| ID | Requirement | Source | State | Tests | Missing |\n|---|---|---|---|---|---|\n"
            );
            for number in 1..=count {
                let id = format!("{prefix}-{number:02}");
                match replaced.iter().find(|(replaced, _)| *replaced == id) {
                    Some((_, row)) => text.push_str(row),
                    None => {
                        let _ = write!(text, "| {id} | Something | S1 | open |  | all of it |");
                    }
                }
                text.push('\n');
            }
        }
        text
    }

    fn ran(package: &str, binary: &str, name: &str, outcome: Outcome) -> TestResult {
        TestResult {
            package: package.into(),
            binary: binary.into(),
            name: name.into(),
            outcome,
            seconds: None,
        }
    }

    fn problems(replaced: &[(&str, &str)], results: &[TestResult]) -> Vec<String> {
        check(&parse(&document(replaced)), results)
    }

    #[track_caller]
    fn one(problems: Vec<String>, part: &str) {
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(part), "{problems:?}");
    }

    #[test]
    fn there_are_303_requirements() {
        assert_eq!(AREAS.iter().map(|(_, count)| count).sum::<usize>(), 303);
    }

    #[test]
    fn a_document_of_all_rows_open_has_no_problem() {
        let text = document(&[]);
        let document = parse(&text);
        assert_eq!(document.rows.len(), 303);
        assert_eq!(check(&document, &[]), Vec::<String>::new());
    }

    #[test]
    fn a_proven_row_is_done_by_unit_and_integration_tests() {
        let row = "| SBX-04 | Quotas | S1 | done | `vitrine-policies::quota::over`, `vitrine-e2e::quota::over` |  |";
        let results = [
            ran("vitrine-policies", "lib", "quota::over", Outcome::Ok),
            ran("vitrine-e2e", "quota", "over", Outcome::Ok),
        ];
        assert_eq!(problems(&[("SBX-04", row)], &results), Vec::<String>::new());
        let (areas, all) = count(&parse(&document(&[("SBX-04", row)])).rows);
        assert_eq!(
            all,
            Count {
                done: 1,
                part: 0,
                open: 302
            }
        );
        assert_eq!(
            areas[1],
            (
                "Area SBX".to_owned(),
                Count {
                    done: 1,
                    part: 0,
                    open: 15
                }
            )
        );
    }

    #[test]
    fn a_test_that_did_not_run_is_a_problem() {
        let row = "| SBX-04 | Quotas | S1 | done | `vitrine-e2e::quota::over` |  |";
        one(
            problems(&[("SBX-04", row)], &[]),
            "`vitrine-e2e::quota::over` did not run",
        );
    }

    #[test]
    fn an_ignored_test_proves_nothing() {
        let row = "| SBX-04 | Quotas | S1 | part | `vitrine-e2e::quota::over` | the rest |";
        let results = [ran("vitrine-e2e", "quota", "over", Outcome::Ignored)];
        one(problems(&[("SBX-04", row)], &results), "is ignored");
    }

    #[test]
    fn a_failed_test_is_a_problem_even_if_its_namesake_passed() {
        let row = "| SBX-04 | Quotas | S1 | part | `a::b` | the rest |";
        let results = [
            ran("a", "lib", "b", Outcome::Ok),
            ran("a", "bin:a", "b", Outcome::Failed),
        ];
        one(problems(&[("SBX-04", row)], &results), "failed");
    }

    #[test]
    fn a_doubled_id_is_a_problem() {
        let row = "| SBX-04 | A | S1 | open |  | x |\n| SBX-04 | B | S1 | open |  | x |";
        one(problems(&[("SBX-04", row)], &[]), "a second time");
    }

    #[test]
    fn a_missing_row_is_a_problem() {
        one(problems(&[("SBX-16", "")], &[]), "SBX-16 has no row");
    }

    #[test]
    fn an_unknown_id_is_a_problem() {
        let row = "| SBX-16 | A | S1 | open |  | x |\n| SBX-17 | B | S1 | open |  | x |";
        one(problems(&[("SBX-16", row)], &[]), "SBX-17 is not a known id");
    }

    #[test]
    fn a_malformed_row_is_a_problem_and_not_skipped() {
        for (row, why) in [
            ("| SBX-04 | Quotas | S1 | open |  |", "6 cells"),
            ("| SBX-4 | Quotas | S1 | open |  | x |", "not an id"),
            ("| SBX-04 | Quotas | S1 | finished |  | x |", "open, part or done"),
            ("| SBX-04 | Quotas | S1 | done | a::b |  |", "backticks"),
            ("| SBX-04 | Quotas | S1 | done | `b` |  |", "not a name like"),
            ("| SBX-04 |  | S1 | open |  | x |", "no requirement"),
            ("| SBX-04 | Quotas | S1 | open |  | x", "start and end"),
        ] {
            let found = problems(&[("SBX-04", row)], &[]);
            assert!(found[0].contains(why), "{row}: {found:?}");
            assert!(
                found.contains(&"SBX-04 has no row".to_owned()),
                "{row}: {found:?}"
            );
        }
    }

    #[test]
    fn state_and_cells_must_agree() {
        let results = [ran("a", "lib", "b", Outcome::Ok)];
        for (row, why) in [
            (
                "| SBX-04 | Quotas | S1 | open | `a::b` | x |",
                "is open but names tests",
            ),
            ("| SBX-04 | Quotas | S1 | done |  |  |", "names no test"),
            (
                "| SBX-04 | Quotas | S1 | part | `a::b` |  |",
                "does not say what is missing",
            ),
            (
                "| SBX-04 | Quotas | S1 | done | `a::b` | x |",
                "says that something is missing",
            ),
        ] {
            one(problems(&[("SBX-04", row)], &results), why);
        }
    }

    #[test]
    fn the_summary_is_renewed_and_then_stays() {
        let text = document(&[]);
        let renewed = with_summary(&text, &parse(&text).rows).unwrap();
        assert!(renewed.contains("| **All** | 0 | 0 | 303 | 303 |"), "{renewed}");
        assert!(!renewed.contains("| old |"));
        assert_eq!(with_summary(&renewed, &parse(&renewed).rows).unwrap(), renewed);
        assert_eq!(with_summary("no markers", &[]), None);
    }
}
