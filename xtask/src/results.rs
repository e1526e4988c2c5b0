//! The result file: what ran and how it ended. Reads and writes `target/vitrine/test-results.json` only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::workspace::Workspace;

/// How a test ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It passed.
    Ok,
    /// It failed, or did not come to an end.
    Failed,
    /// It was not run.
    Ignored,
}

/// One test, or one check of the whole workspace.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TestResult {
    /// The package it belongs to; `workspace` for a check.
    pub package: String,
    /// `lib`, `bin:NAME`, `doc`, an integration test's name, or `check`.
    pub binary: String,
    /// Its path inside the binary.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, where that is known: libtest does not tell it on a stable toolchain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

/// The package under which checks of the whole workspace are filed.
pub const WORKSPACE: &str = "workspace";
/// The binary under which checks are filed.
pub const CHECK: &str = "check";

impl TestResult {
    /// The name by which docs/requirements.md and the command line call it.
    pub fn reference(&self) -> String {
        reference(&self.package, &self.binary, &self.name)
    }

    /// Whether it is a check (format, lints, …) and not a test: a run of checks alone has proven nothing.
    pub fn is_check(&self) -> bool {
        self.package == WORKSPACE
    }
}

/// How tests ended, by the name that documents call them.
pub struct Outcomes(BTreeMap<String, Vec<Outcome>>);

impl Outcomes {
    /// Of these results.
    pub fn of(results: &[TestResult]) -> Self {
        let mut outcomes: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
        for result in results {
            outcomes
                .entry(result.reference())
                .or_default()
                .push(result.outcome);
        }
        Self(outcomes)
    }

    /// Why a test that a document names proves nothing; `None` if it ran and passed.
    pub fn why_not(&self, test: &str) -> Option<String> {
        match self.0.get(test).map(Vec::as_slice) {
            None => Some(format!(
                "`{test}` did not run; is it spelled as `cargo xtask test --list` has it?"
            )),
            Some(seen) if seen.contains(&Outcome::Failed) => Some(format!("`{test}` failed")),
            Some(seen) if seen.contains(&Outcome::Ignored) => Some(format!("`{test}` is ignored")),
            Some(_) => None,
        }
    }
}

/// `package::binary::name`, or `package::name` for unit tests, whose name already starts with their module.
pub fn reference(package: &str, binary: &str, name: &str) -> String {
    if binary == "lib" || binary.starts_with("bin:") {
        format!("{package}::{name}")
    } else {
        format!("{package}::{binary}::{name}")
    }
}

/// Where the results of the last whole run are.
pub fn whole_run(workspace: &Workspace) -> PathBuf {
    workspace.target.join("vitrine/test-results.json")
}

/// Where the results of the last filtered run are: apart, so that they never pass for a whole one.
pub fn filtered_run(workspace: &Workspace) -> PathBuf {
    workspace.target.join("vitrine/test-results.filtered.json")
}

/// Writes a result file.
pub fn write(path: &Path, results: &[TestResult]) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(results)
        .map_err(|error| Error::shape("the results of this run", error))?;
    text.push('\n');
    // Renamed into place: a run that is stopped while writing must not leave half a file that looks like results.
    let draft = path.with_extension("json.draft");
    std::fs::write(&draft, text).map_err(Error::file("write", &draft))?;
    std::fs::rename(&draft, path).map_err(Error::file("write", path))
}

/// Reads a result file.
pub fn read(path: &Path) -> Result<Vec<TestResult>, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::shape(
            path.display().to_string(),
            "no whole run has been recorded; run `cargo xtask test` first",
        ),
        _ => Error::file("read", path)(error),
    })?;
    serde_json::from_str(&text).map_err(|error| Error::shape(path.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_tests_are_called_by_package_and_module_others_by_their_binary_too() {
        assert_eq!(
            reference("vitrine-crds", "lib", "time::reads"),
            "vitrine-crds::time::reads"
        );
        assert_eq!(
            reference("xtask", "bin:xtask", "results::tests::x"),
            "xtask::results::tests::x"
        );
        assert_eq!(
            reference("vitrine-e2e", "isolation", "holds"),
            "vitrine-e2e::isolation::holds"
        );
    }

    #[test]
    fn a_result_file_reads_back_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("xtask-results-{}.json", std::process::id()));
        let results = vec![TestResult {
            package: "a".into(),
            binary: "lib".into(),
            name: "b".into(),
            outcome: Outcome::Ignored,
            seconds: None,
        }];
        write(&path, &results).unwrap();
        assert_eq!(read(&path).unwrap(), results);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_missing_result_file_says_what_to_run() {
        let error = read(Path::new("/nowhere/results.json")).unwrap_err().to_string();
        assert!(error.contains("cargo xtask test"), "{error}");
    }
}
