//! Reads docs/threat-model.md and judges it against results. Pure: text in, problems out, no I/O.

use crate::results::{Outcomes, TestResult};

/// A line of the table: its number, the attack, what stops it, and the tests that show it.
const COLUMNS: usize = 4;
/// Attacks up to this line were tried against the design on a live cluster: each is a file of its own, `aNN_…`.
const TRIED: u32 = 26;

/// Everything wrong with the document, given what ran: an attack that no test shows to fail, and a test that is named and did not
/// pass.
pub fn check(text: &str, results: &[TestResult]) -> Vec<String> {
    let outcomes = Outcomes::of(results);
    let mut problems = Vec::new();
    let mut attacks = 0;
    for (index, line) in text.lines().enumerate() {
        let is_attack = line
            .strip_prefix("| ")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
        if !is_attack {
            continue;
        }
        attacks += 1;
        let mut problem = |what: String| problems.push(format!("line {}: {what}", index + 1));
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [number, _, _, tests] = cells[..] else {
            problem(format!("an attack has {COLUMNS} cells, this one {}", cells.len()));
            continue;
        };
        let named: Vec<&str> = tests.split('`').filter(|name| name.contains("::")).collect();
        if named.is_empty() {
            problem("no test shows this attack to fail".to_owned());
        }
        if let Ok(number) = number.parse::<u32>()
            && number <= TRIED
        {
            let own = format!("::a{number:02}_");
            if !named.iter().any(|name| name.contains(&own)) {
                problem(format!("no test of a file a{number:02}_… makes this attack"));
            }
        }
        for why in named.iter().filter_map(|test| outcomes.why_not(test)) {
            problem(why);
        }
    }
    if attacks == 0 {
        problems.push("there is no table of attacks".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Outcome;

    fn problems(rows: &str) -> Vec<String> {
        let ran = |name: &str, outcome| TestResult {
            package: "vitrine-e2e".into(),
            binary: "attacks".into(),
            name: name.into(),
            outcome,
            seconds: None,
        };
        let text = format!("# T\n\n| # | attack | what stops it | shown by |\n|---|---|---|---|\n{rows}");
        check(
            &text,
            &[
                ran("a01_ipv6::it_fails", Outcome::Ok),
                ran("a02_policy::it_fails", Outcome::Failed),
            ],
        )
    }

    #[test]
    fn an_attack_is_shown_to_fail_by_a_test_that_passed() {
        for row in [
            "| 1 | IPv6 | none | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
            "| 27 | more | none | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
        ] {
            assert_eq!(problems(row), Vec::<String>::new());
        }
        for (row, why) in [
            ("| 27 | IPv6 | none | – |", "line 5: no test shows"),
            (
                "| 2 | IPv6 | none | `vitrine-e2e::attacks::a02_policy::it_fails` |",
                "failed",
            ),
            (
                "| 3 | IPv6 | none | `vitrine-e2e::attacks::a03_gone::it_fails` |",
                "did not run",
            ),
            (
                "| 3 | IPv6 | none | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
                "no test of a file a03_",
            ),
            (
                "| 19, 20 | IPv6 | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
                "4 cells",
            ),
            ("", "no table"),
        ] {
            let found = problems(row);
            assert!(found.len() == 1 && found[0].contains(why), "{row}: {found:?}");
        }
    }
}
