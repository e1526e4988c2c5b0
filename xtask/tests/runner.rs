//! The runner against a small workspace of its own in which everything goes wrong that can: what it calls passed
//! must have passed. Writes below the temporary folder only.

#![allow(
    clippy::unwrap_used,
    reason = "in tests; clippy does not see that helpers of an integration test are that"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A workspace that is deleted with the value.
struct Sample(PathBuf);

impl Sample {
    fn new(name: &str, crates: &[(&str, &[(&str, &str)])]) -> Self {
        let root = std::env::temp_dir().join(format!("xtask-runner-{}-{name}", std::process::id()));
        let members = crates
            .iter()
            .map(|(name, _)| format!("{name:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        write(
            &root.join("Cargo.toml"),
            &format!("[workspace]\nresolver = \"3\"\nmembers = [{members}]\n"),
        );
        for (name, files) in crates {
            let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
            write(&root.join(name).join("Cargo.toml"), &manifest);
            for (file, text) in *files {
                write(&root.join(name).join(file), text);
            }
        }
        Self(root)
    }

    /// Give it a filter: without one the checks of the whole workspace run too, and they need the network. Every
    /// test has `::` in its name.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command
            .arg("test")
            .args(args)
            .env("CARGO_MANIFEST_DIR", self.0.join("sound"))
            // Cargo names what it builds by the path in the workspace: in a shared build folder two samples would
            // take each other's binaries.
            .env_remove("CARGO_BUILD_BUILD_DIR");
        command
            .env("CARGO_TARGET_DIR", self.0.join("target"))
            .output()
            .unwrap()
    }

    fn results(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.0.join("target/vitrine/test-results.filtered.json")).unwrap();
        let results: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let field = |result: &serde_json::Value, name: &str| result[name].as_str().unwrap().to_owned();
        let called = |result| {
            format!(
                "{}::{}::{}",
                field(result, "package"),
                field(result, "binary"),
                field(result, "name")
            )
        };
        let mut results: Vec<_> = results
            .iter()
            .map(|result| (called(result), field(result, "outcome")))
            .collect();
        results.sort();
        results
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn last_line(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

const SOUND: (&str, &[(&str, &str)]) = (
    "sound",
    &[(
        "src/lib.rs",
        "#[cfg(test)]
        mod unit {
            #[test]
            fn passes() {}
            #[test]
            #[should_panic]
            fn panics_as_it_should() { panic!() }
            #[test]
            fn noisy_child() {
                std::process::Command::new(\"printf\").arg(\"test unit::passes ... FAILED-but-not-really\").status().unwrap();
            }
        }",
    )],
);

#[test]
fn what_passed_failed_or_never_ended_is_told_apart() {
    let broken: (&str, &[(&str, &str)]) = (
        "broken",
        &[
            ("src/lib.rs", ""),
            (
                "tests/mixed.rs",
                "#[test] fn passes() {}
                #[test] fn fails() { panic!(\"a reason to read\") }
                #[test] #[ignore = \"needs a moon\"] fn ignored() {}",
            ),
            ("tests/dies.rs", "#[test] fn aborts() { std::process::abort() }"),
            (
                "tests/leaves.rs",
                "#[test] fn ends_the_process() { std::process::exit(0) }",
            ),
            (
                "tests/does_not_build.rs",
                "#[test] fn never() { this is not Rust }",
            ),
        ],
    );
    let sample = Sample::new("mixed", &[SOUND, broken]);
    let output = sample.run(&["::"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = [
        ("broken::dies::aborts", "failed"),
        ("broken::does_not_build::(build)", "failed"),
        ("broken::leaves::ends_the_process", "failed"),
        ("broken::mixed::fails", "failed"),
        ("broken::mixed::ignored", "ignored"),
        ("broken::mixed::passes", "ok"),
        ("sound::lib::unit::noisy_child", "ok"),
        ("sound::lib::unit::panics_as_it_should", "ok"),
        ("sound::lib::unit::passes", "ok"),
    ];
    let mut results = sample.results();
    results.retain(|(name, _)| !name.starts_with("workspace::"));
    assert_eq!(
        results,
        expected.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())),
        "{text}"
    );
    assert!(text.contains("a reason to read"), "{text}");
    assert!(!output.status.success());
}

#[test]
fn a_filtered_run_runs_what_it_names_and_ends_with_the_counts() {
    let sample = Sample::new("filtered", &[SOUND]);
    let output = sample.run(&["sound::unit::passes"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(last_line(&output), "1 passed, 0 failed");
    assert_eq!(
        sample.results(),
        [("sound::lib::unit::passes".to_owned(), "ok".to_owned())]
    );
}

#[test]
fn a_run_without_a_test_fails() {
    let sample = Sample::new("empty", &[("sound", &[("src/lib.rs", "")])]);
    let output = sample.run(&["nothing_has_this_name"]);
    assert!(!output.status.success());
    assert_eq!(last_line(&output), "0 passed, 1 failed");
}

#[test]
fn a_list_names_every_test_and_runs_none() {
    let sample = Sample::new("list", &[SOUND]);
    let output = sample.run(&["--list", "sound::"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = text.lines().filter(|line| line.starts_with("sound::")).collect();
    assert_eq!(
        names,
        [
            "sound::unit::noisy_child",
            "sound::unit::panics_as_it_should",
            "sound::unit::passes"
        ]
    );
    assert!(output.status.success());
}

#[test]
fn a_workspace_that_cannot_be_read_is_a_failure_in_the_last_line_too() {
    let sample = Sample::new(
        "unreadable",
        &[("sound", &[("Cargo.toml", "not toml"), ("src/lib.rs", "")])],
    );
    let output = sample.run(&["::"]);
    assert!(!output.status.success());
    assert_eq!(last_line(&output), "0 passed, 1 failed");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo metadata"));
}
