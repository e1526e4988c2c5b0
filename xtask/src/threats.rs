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
    let mut attacks: u32 = 0;
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
        match number.parse::<u32>() {
            Ok(number) if number != attacks => problem(format!("this is line {attacks} and says {number}")),
            Ok(number) if number <= TRIED => {
                let own = format!("::a{number:02}_");
                if !named.iter().any(|name| name.contains(&own)) {
                    problem(format!("no test of a file a{number:02}_… makes this attack"));
                }
            }
            Ok(_) => {}
            Err(_) => problem(format!("{number} is not the number of one attack")),
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

    /// The line, after those that come before it in the table.
    fn nth(number: u32, tests: &str) -> Vec<String> {
        let sound = |n: u32| format!("| {n} | x | none | `vitrine-e2e::attacks::a{n:02}_x::it_fails` |\n");
        let before: String = (1..number).map(sound).collect();
        let mut found = problems(&format!("{before}| {number} | x | none | {tests} |"));
        // Those before it did not run here.
        found.retain(|problem| problem.starts_with(&format!("line {}:", number + 4)));
        found
    }

    #[test]
    fn an_attack_is_shown_to_fail_by_a_test_that_passed() {
        for number in [1, 27] {
            let found = nth(number, "`vitrine-e2e::attacks::a01_ipv6::it_fails`");
            assert_eq!(found, Vec::<String>::new());
        }
        for (number, tests, why) in [
            (27, "–", "no test shows"),
            (2, "`vitrine-e2e::attacks::a02_policy::it_fails`", "failed"),
            (3, "`vitrine-e2e::attacks::a03_gone::it_fails`", "did not run"),
            (
                3,
                "`vitrine-e2e::attacks::a01_ipv6::it_fails`",
                "no test of a file a03_",
            ),
        ] {
            let found = nth(number, tests);
            assert!(found.len() == 1 && found[0].contains(why), "{number}: {found:?}");
        }
    }

    #[test]
    fn every_line_is_one_attack_and_none_is_left_out() {
        for (row, why) in [
            (
                "| 1 | IPv6 | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
                "4 cells",
            ),
            (
                "| 1, 2 | IPv6 | none | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
                "of one attack",
            ),
            (
                "| 2 | IPv6 | none | `vitrine-e2e::attacks::a01_ipv6::it_fails` |",
                "this is line 1 and says 2",
            ),
            ("", "no table"),
        ] {
            let found = problems(row);
            assert!(found.len() == 1 && found[0].contains(why), "{row}: {found:?}");
        }
    }
}
