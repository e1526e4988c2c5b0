//! Test binaries: builds all of them in one go, asks each what it holds, runs them, reads how each test ended.
//!
//! They are run directly and not by `cargo test`: so every test is known by name before it runs, one that dies
//! without a word is missed, and each binary has a log and a time limit of its own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use vitrine_devcluster::cargo;

use super::{Run, SOAK, SOAK_LIMIT};
use crate::command::{Finished, Job};
use crate::error::Error;
use crate::libtest::{self, Report};
use crate::progress::{Progress, clock};
use crate::results::{self, Outcome, TestResult};
use crate::workspace::{Member, Target};

const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);
const LIST_LIMIT: Duration = Duration::from_secs(30);
const DOC_LIMIT: Duration = Duration::from_secs(20 * 60);

/// A test binary and the tests in it.
pub struct TestBinary {
    /// The package it belongs to.
    pub package: String,
    /// `lib`, `bin:NAME` or an integration test's name.
    pub label: String,
    executable: PathBuf,
    /// The package's folder: where cargo would run it.
    directory: PathBuf,
    env: Vec<(OsString, OsString)>,
    tests: Vec<String>,
}

impl TestBinary {
    /// The names of its tests, as the command line and docs/requirements.md call them.
    pub fn references(&self) -> impl Iterator<Item = String> {
        self.tests
            .iter()
            .map(|test| results::reference(&self.package, &self.label, test))
    }

    /// Runs the selected tests, and says in a line how they went.
    pub fn run(&self, selected: &[String], how: &How, logs: &Path, progress: &Progress) -> Ran {
        let log = logs.join(format!("{}-{}.log", self.package, self.label.replace(':', "-")));
        let mut job = Job::new(self.title(), &self.executable, &self.directory)
            .log(log.clone())
            .limit(how.limit)
            .args(["--color", "never"]);
        if let Some(threads) = how.threads {
            // What tests on clusters print is figures: they belong into the log also when the test passes.
            job = job.args(["--show-output".to_owned(), format!("--test-threads={threads}")]);
        }
        job.env = self.env.iter().chain(how.env).cloned().collect();
        if selected.len() < self.tests.len() {
            job = job.args(["--exact"]).args(selected);
        }
        let ran = job.run(progress).map(|finished| {
            let report = libtest::parse_run(selected, &finished.stdout);
            progress.line(&format!(
                "      {}: {} in {}",
                self.title(),
                summary(&report),
                clock(finished.elapsed)
            ));
            (finished, report)
        });
        Ran { ran, log }
    }

    fn title(&self) -> String {
        match self.label.as_str() {
            "lib" => format!("{} (unit tests)", self.package),
            label => format!("{} {label}", self.package),
        }
    }
}

/// How a binary is to run.
pub struct How<'a> {
    /// Variables for it, beside its own.
    pub env: &'a [(OsString, OsString)],
    /// How long it has.
    pub limit: Duration,
    /// Tests at once, if they are on clusters or give evidence; as many as there are cores otherwise.
    pub threads: Option<usize>,
}

/// How a binary ran.
pub struct Ran {
    ran: Result<(Finished, Report), Error>,
    log: PathBuf,
}

/// A line of `cargo build --message-format=json`.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact(Artifact),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Artifact {
    package_id: String,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Run {
    /// Builds every test binary and lists what is in it. What does not build or list is a failure.
    pub(super) fn build(&mut self) -> Vec<TestBinary> {
        // `--tests` makes what `cargo test` would make, and unlike it knows `--keep-going`.
        let job = self
            .cargo_job("cargo build --tests", "build")
            .limit(BUILD_LIMIT)
            .machine_output()
            .args([
                "build",
                "--workspace",
                "--tests",
                // What the clusters and their images are made of, beside what integration tests call.
                "--bins",
                "--keep-going",
                "--message-format",
                "json-render-diagnostics",
            ]);
        let (artifacts, success, why) = match job.run(&self.progress) {
            Ok(finished) => {
                let why = format!(
                    "{}\nwhole output: {}",
                    finished.tail.join("\n"),
                    job.log.display()
                );
                (artifacts(&finished.stdout), finished.success, why)
            }
            Err(error) => (Vec::new(), false, error.to_string()),
        };
        if !self.missing(&artifacts, &why) && !success {
            self.fail(None, results::WORKSPACE, results::CHECK, "build", why);
        }
        let mut binaries: Vec<TestBinary> = Vec::new();
        for artifact in artifacts.iter().filter(|artifact| artifact.profile.test) {
            let member = self
                .workspace
                .members
                .iter()
                .find(|member| member.id == artifact.package_id);
            let (Some(member), Some(executable)) = (member, &artifact.executable) else {
                continue;
            };
            let binary = TestBinary {
                package: member.name.clone(),
                label: artifact.target.label(),
                executable: executable.clone(),
                directory: member.directory().to_owned(),
                env: environment(member, &artifacts),
                tests: Vec::new(),
            };
            match self.tests_of(&binary) {
                Ok(tests) => binaries.push(TestBinary { tests, ..binary }),
                Err(why) => self.fail(None, &binary.package, &binary.label, "(list)", why),
            }
        }
        // Unit tests first: what they find explains what the others find.
        binaries.sort_by_key(|binary| {
            (
                binary.package.clone(),
                binary.label != "lib",
                binary.label.clone(),
            )
        });
        binaries
    }

    /// Files a failure for every test binary that should be there and is not; `false` if there is none.
    fn missing(&mut self, artifacts: &[Artifact], why: &str) -> bool {
        let built: BTreeSet<(&str, String)> = artifacts
            .iter()
            .filter(|artifact| artifact.profile.test)
            .map(|artifact| (artifact.package_id.as_str(), artifact.target.label()))
            .collect();
        let mut missing = Vec::new();
        for member in &self.workspace.members {
            for target in member.targets.iter().filter(|target| target.test) {
                if !built.contains(&(member.id.as_str(), target.label())) {
                    missing.push((member.name.clone(), target.label()));
                }
            }
        }
        for (index, (package, label)) in missing.iter().enumerate() {
            let why = if index == 0 {
                why
            } else {
                "did not build, see above"
            };
            self.fail(None, package, label, "(build)", why.to_owned());
        }
        !missing.is_empty()
    }

    fn tests_of(&self, binary: &TestBinary) -> Result<Vec<String>, String> {
        let job = Job::new(binary.title(), &binary.executable, &binary.directory)
            .args(["--list", "--format", "terse"])
            .log(self.log("list"))
            .limit(LIST_LIMIT);
        match job.run(&self.progress) {
            Ok(finished) if finished.success => Ok(libtest::parse_list(&finished.stdout)),
            Ok(Finished { how, tail, .. }) => {
                Err(format!("failed to list its tests: {how}\n{}", tail.join("\n")))
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs the selected tests of some binaries, one binary after the other.
    pub(super) fn run_binaries<'a>(
        &mut self,
        binaries: impl Iterator<Item = &'a TestBinary>,
        env: &[(OsString, OsString)],
        limit: Duration,
    ) {
        for binary in binaries {
            let selected = self.selected(binary);
            if !selected.is_empty() {
                self.run_binary(binary, &selected, env, limit);
            }
        }
    }

    /// The tests of a binary that the filter leaves.
    pub(super) fn selected(&self, binary: &TestBinary) -> Vec<String> {
        let named = binary.tests.iter().zip(binary.references());
        named
            .filter(|(_, reference)| self.selects(reference))
            .map(|(test, _)| test.clone())
            .collect()
    }

    pub(super) fn run_binary(
        &mut self,
        binary: &TestBinary,
        selected: &[String],
        env: &[(OsString, OsString)],
        limit: Duration,
    ) {
        let mut env = env.to_vec();
        env.extend(self.soak.as_ref().map(|soak| (SOAK.into(), soak.into())));
        let how = How {
            env: &env,
            limit: if self.soak.is_some() { SOAK_LIMIT } else { limit },
            threads: self.soak.as_ref().map(|_| 1),
        };
        let ran = binary.run(selected, &how, &self.logs, &self.progress);
        self.take(binary, selected, ran);
    }

    /// Takes how a binary ran into the results.
    pub(super) fn take(&mut self, binary: &TestBinary, selected: &[String], ran: Ran) {
        let (finished, report) = match ran.ran {
            Ok(ran) => ran,
            Err(error) => {
                return self.fail(None, &binary.package, &binary.label, "(start)", error.to_string());
            }
        };
        let why = format!("{}; whole output: {}", finished.how, ran.log.display());
        // libtest tells no time of a single test on a stable toolchain; alone in its binary, the binary's is its own.
        let seconds = (selected.len() == 1).then_some(finished.elapsed);
        self.file(&binary.package, &binary.label, &report, &finished, seconds, &why);
    }

    /// Documentation tests can be neither listed nor run without cargo.
    pub(super) fn run_doc_tests(&mut self) {
        if self.filter.is_some() {
            return;
        }
        let job = self.cargo_job("cargo test --doc", "doc").limit(DOC_LIMIT).args([
            "test",
            "--workspace",
            "--doc",
            "--no-fail-fast",
        ]);
        let finished = match job.run(&self.progress) {
            Ok(finished) => finished,
            Err(error) => return self.fail(None, results::WORKSPACE, "doc", "(start)", error.to_string()),
        };
        let why = format!("{}; whole output: {}", finished.how, job.log.display());
        let mut report = libtest::parse_lines(&finished.stdout);
        let mut members: Vec<(String, PathBuf)> = Vec::new();
        for member in &self.workspace.members {
            let folder = member
                .directory()
                .strip_prefix(&self.workspace.root)
                .unwrap_or(member.directory());
            members.push((member.name.clone(), folder.to_owned()));
        }
        for (package, folder) in members {
            let outcomes = report
                .outcomes
                .extract_if(.., |name, _| Path::new(name).starts_with(&folder))
                .collect();
            let own = Report {
                outcomes,
                explanation: report.explanation.clone(),
            };
            if !own.outcomes.is_empty() {
                self.progress
                    .line(&format!("      {package} (documentation): {}", summary(&own)));
                // Whether the command as a whole failed is judged once, below.
                let judged = Finished {
                    success: true,
                    ..finished.clone()
                };
                self.file(&package, "doc", &own, &judged, None, &why);
            }
        }
        let explained = self
            .results
            .iter()
            .any(|result| result.binary == "doc" && result.outcome == Outcome::Failed);
        if !report.outcomes.is_empty() || (!finished.success && !explained) {
            self.fail(
                None,
                results::WORKSPACE,
                "doc",
                "(run)",
                format!("{}\n{why}", finished.tail.join("\n")),
            );
        }
    }

    /// Takes a report into the results. A binary that failed without a failed test is itself a failure.
    fn file(
        &mut self,
        package: &str,
        label: &str,
        report: &Report,
        finished: &Finished,
        seconds: Option<Duration>,
        why: &str,
    ) {
        let mut explained = false;
        for (name, outcome) in &report.outcomes {
            if *outcome == Outcome::Failed {
                // The explanation covers all failures of the binary; it is printed with the first of them.
                let why = match report.explanation.as_slice() {
                    _ if explained => "see above".to_owned(),
                    [] => format!(
                        "it did not say how it ended; its last lines:\n{}\n{why}",
                        finished.tail.join("\n")
                    ),
                    lines => format!("{}\n{why}", lines.join("\n")),
                };
                self.fail(seconds, package, label, name, why);
                explained = true;
            } else {
                self.results.push(TestResult {
                    package: package.to_owned(),
                    binary: label.to_owned(),
                    name: name.clone(),
                    outcome: *outcome,
                    seconds: seconds.map(|seconds| seconds.as_secs_f64()),
                });
            }
        }
        if !finished.success && !explained {
            self.fail(
                None,
                package,
                label,
                "(end)",
                format!("{}\n{why}", finished.tail.join("\n")),
            );
        }
    }
}

fn artifacts(output: &str) -> Vec<Artifact> {
    // Lines of build scripts and of newer cargos are none of ours.
    let messages = output.lines().filter_map(|line| serde_json::from_str(line).ok());
    messages
        .filter_map(|message| {
            if let Message::CompilerArtifact(artifact) = message {
                Some(artifact)
            } else {
                None
            }
        })
        .collect()
}

/// What `cargo test` sets and tests look at.
fn environment(member: &Member, artifacts: &[Artifact]) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![
        ("CARGO".into(), cargo::program()),
        ("CARGO_MANIFEST_DIR".into(), member.directory().into()),
        ("CARGO_MANIFEST_PATH".into(), member.manifest_path.clone().into()),
        ("CARGO_PKG_NAME".into(), member.name.clone().into()),
        ("CARGO_PKG_VERSION".into(), member.version.clone().into()),
    ];
    let own = artifacts
        .iter()
        .filter(|artifact| artifact.package_id == member.id && !artifact.profile.test);
    env.extend(own.filter_map(|artifact| {
        let executable = artifact.executable.clone()?;
        Some((
            format!("CARGO_BIN_EXE_{}", artifact.target.name).into(),
            executable.into(),
        ))
    }));
    // With a build folder of its own (`build.build-dir`), a test does not find the launcher beside itself; and without its tests the
    // operator would be compiled once more, for other features of what it depends on.
    let programs = [
        (super::DEVCLUSTER, "VITRINE_DEVCLUSTER"),
        (super::OPERATOR, "VITRINE_OPERATOR"),
    ];
    env.extend(programs.iter().filter_map(|(name, variable)| {
        let built = artifacts
            .iter()
            .find(|artifact| artifact.target.name == *name && !artifact.profile.test)?;
        Some((variable.into(), built.executable.clone()?.into()))
    }));
    env
}

fn summary(report: &Report) -> String {
    let count = |outcome| report.outcomes.values().filter(|seen| **seen == outcome).count();
    let mut summary = format!("{} passed", count(Outcome::Ok));
    for (outcome, word) in [(Outcome::Failed, "failed"), (Outcome::Ignored, "ignored")] {
        if count(outcome) > 0 {
            summary.push_str(&format!(", {} {word}", count(outcome)));
        }
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_build_are_read_and_others_passed_over() {
        let output = concat!(
            r#"{"reason":"compiler-artifact","package_id":"p","target":{"name":"t","kind":["test"],"test":true},"profile":{"test":true},"executable":"/x"}"#,
            "\nnoise\n",
            r#"{"reason":"build-script-executed","package_id":"q"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let artifacts = artifacts(output);
        assert_eq!(artifacts.len(), 1);
        assert_eq!(artifacts[0].executable.as_deref(), Some(Path::new("/x")));
        assert_eq!(artifacts[0].target.label(), "t");
    }
}
