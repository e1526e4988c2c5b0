//! `cargo xtask test`: every test of the workspace in a fixed order of stages. Writes under `target/vitrine/` only.
//!
//! A failing stage does not stop the next one: a run costs minutes, and its worth is the whole list of what fails.
//! The last line is always `N passed, N failed`, for people and for machines.

mod binaries;
mod checks;
mod e2e;
mod queue;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::progress::Progress;
use crate::results::{self, Outcome, TestResult};
use crate::soak::Seeds;
use crate::trace;
use crate::workspace::{Member, Workspace};
use binaries::TestBinary;
use report::{Failure, StageReport};

/// The options of `test`.
#[derive(clap::Args)]
pub struct Args {
    /// Run only what has this in its name, as `vitrine-crds::`, `isolation` or `workspace::check::lint`
    filter: Option<String>,
    /// Print the names (but of documentation tests) and run nothing
    #[arg(long)]
    list: bool,
}

/// The stages, in their order.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Format,
    Lint,
    Dependencies,
    Alone,
    Build,
    Pure,
    Tools,
    Devcluster,
    E2e,
    Requirements,
}

const STAGES: [(Stage, &str, &str); 10] = [
    (Stage::Format, "format", "cargo fmt --all --check"),
    (
        Stage::Lint,
        "lint",
        "cargo clippy on every target, a warning is an error",
    ),
    (
        Stage::Dependencies,
        "dependencies",
        "cargo deny check bans licenses sources",
    ),
    (Stage::Alone, "alone", "every crate compiles without the others"),
    (Stage::Build, "build", "all test binaries"),
    (Stage::Pure, "pure", "tests that need nothing but themselves"),
    (
        Stage::Tools,
        "tools",
        "the programs of the clusters, built once a version",
    ),
    (Stage::Devcluster, "devcluster", "the launcher's own tests"),
    (Stage::E2e, "e2e", "behaviour on real clusters"),
    (
        Stage::Requirements,
        "requirements",
        "docs/requirements.md and docs/threat-model.md against what ran",
    ),
];

/// Packages that need a machine they may change; all others are pure.
const DEVCLUSTER: &str = "vitrine-devcluster";
/// The program of the images.
const OPERATOR: &str = "vitrine-operator";
const E2E: &str = "vitrine-e2e";

/// Pure tests take milliseconds; a binary that is still running after this hangs.
const PURE_LIMIT: Duration = Duration::from_secs(5 * 60);
const DEVCLUSTER_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Two hundred rounds of something that takes half a minute, and as much again.
const SOAK_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Tells tests to run with the counts that evidence needs.
const SOAK: &str = "VITRINE_SOAK";

/// Runs one test binary with the counts that evidence needs; whether it passed, and what it printed.
pub fn soak(name: &str, seeds: Option<Seeds>) -> Result<(bool, String), Error> {
    let workspace = Workspace::load()?;
    let has = |member: &&Member| {
        member
            .targets
            .iter()
            .any(|target| target.test && target.label() == name)
    };
    let Some(package) = workspace.members.iter().find(has).map(|member| &member.name) else {
        return Err(Error::shape(name, "there is no test binary of that name"));
    };
    let mut run = Run::prepare(Some(format!("{package}::{name}::")))?;
    run.soak = Some(seeds.map_or_else(|| "1".to_owned(), |seeds| seeds.to_string()));
    let passed = run.everything();
    let log = run.log(&format!("{package}-{name}"));
    let text = std::fs::read_to_string(&log).map_err(Error::file("read", &log))?;
    Ok((passed, text))
}

/// Everything that one run knows.
struct Run {
    workspace: Workspace,
    progress: Progress,
    filter: Option<String>,
    /// Said where tests run with the counts that evidence needs.
    soak: Option<String>,
    logs: PathBuf,
    results: Vec<TestResult>,
    failures: Vec<Failure>,
    stages: Vec<StageReport>,
}

/// Runs it; `false` if anything failed.
pub fn run(args: &Args) -> Result<bool, Error> {
    match Run::prepare(args.filter.clone()) {
        Ok(mut run) if args.list => run.list(),
        Ok(mut run) => Ok(run.everything()),
        Err(error) if args.list => Err(error),
        Err(error) => {
            // Whoever reads only the last line must learn of it too.
            eprintln!("error: {error}");
            println!("0 passed, 1 failed");
            Ok(false)
        }
    }
}

impl Run {
    fn prepare(filter: Option<String>) -> Result<Self, Error> {
        let workspace = Workspace::load()?;
        let logs = workspace.scratch()?.join("logs");
        Ok(Self {
            workspace,
            progress: Progress::start(),
            filter,
            soak: None,
            logs,
            results: Vec::new(),
            failures: Vec::new(),
            stages: Vec::new(),
        })
    }

    fn everything(&mut self) -> bool {
        let stages: Vec<_> = STAGES
            .into_iter()
            .filter(|(stage, _, _)| self.wants(*stage))
            .collect();
        let mut built: Vec<TestBinary> = Vec::new();
        for (index, (stage, name, about)) in stages.iter().enumerate() {
            self.progress.stage(index + 1, stages.len(), name, about);
            let (began, results, failures) = (Instant::now(), self.results.len(), self.failures.len());
            match stage {
                Stage::Format => self.check_format(),
                Stage::Lint => self.check_lints(),
                Stage::Dependencies => self.check_dependencies(),
                Stage::Alone => self.check_alone(),
                Stage::Build => built = self.build(),
                Stage::Pure => {
                    let pure = |binary: &&TestBinary| binary.package != DEVCLUSTER && binary.package != E2E;
                    self.run_binaries(built.iter().filter(pure), &[], PURE_LIMIT);
                    self.run_doc_tests();
                }
                Stage::Devcluster => {
                    let own = |binary: &&TestBinary| binary.package == DEVCLUSTER;
                    self.run_binaries(built.iter().filter(own), &[], DEVCLUSTER_LIMIT);
                }
                Stage::Tools => self.check_tools(),
                Stage::E2e => self.run_e2e(&built),
                Stage::Requirements => self.check_requirements(),
            }
            for failure in &self.failures[failures..] {
                failure.explain(&self.progress);
            }
            self.stages
                .push(StageReport::new(name, &self.results[results..], began.elapsed()));
        }
        if self.results.iter().all(TestResult::is_check) && !self.filter_names_a_check() {
            self.fail(
                None,
                "workspace",
                "check",
                "some test ran",
                "no test ran at all".to_owned(),
            );
        }
        let whole = self.filter.is_none();
        let path = if whole {
            results::whole_run(&self.workspace)
        } else {
            results::filtered_run(&self.workspace)
        };
        let written = results::write(&path, &self.results);
        if let Err(error) = &written {
            self.fail(
                None,
                "workspace",
                "check",
                "results are written",
                error.to_string(),
            );
        }
        report::close(&self.progress, &self.stages, &self.failures, &self.results, &path);
        self.failures.is_empty()
    }

    fn list(&mut self) -> Result<bool, Error> {
        let mut names: Vec<String> = checks::names(&self.workspace)
            .iter()
            .map(|name| checks::reference(name))
            .collect();
        let built = self.build();
        names.extend(
            built
                .iter()
                .flat_map(TestBinary::references)
                .filter(|name| self.selects(name)),
        );
        for name in names {
            println!("{name}");
        }
        for failure in &self.failures {
            failure.explain(&self.progress);
        }
        Ok(self.failures.is_empty())
    }

    /// Whether a stage has anything to do. Stages of tests always do: what they have is known only after the build.
    fn wants(&self, stage: Stage) -> bool {
        let check = |name: &str| self.selects_check(name);
        match stage {
            Stage::Format => check(checks::FORMAT),
            Stage::Lint => check(checks::LINT),
            Stage::Dependencies => check(checks::DEPENDENCIES),
            Stage::Alone => self
                .workspace
                .members
                .iter()
                .any(|member| check(&checks::alone(&member.name))),
            Stage::Build | Stage::Pure | Stage::Devcluster | Stage::E2e => !self.filter_names_a_check(),
            // What a single test needs is built when it is needed.
            Stage::Tools => check(checks::TOOLS),
            // Judging a part of the tests would call every other one missing.
            Stage::Requirements => self.filter.is_none(),
        }
    }

    /// `workspace::check::lint`: then nothing needs to be built.
    fn filter_names_a_check(&self) -> bool {
        self.filter
            .as_ref()
            .is_some_and(|filter| filter.starts_with("workspace::"))
    }

    /// A check runs in a whole run or when it is called by name: `vitrine-crds` means that crate's tests, not also
    /// the check that it compiles alone.
    fn selects_check(&self, name: &str) -> bool {
        self.filter.is_none() || self.filter_names_a_check() && self.selects(&checks::reference(name))
    }

    fn selects(&self, reference: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| reference.contains(filter.as_str()))
    }

    fn check_requirements(&mut self) {
        let began = Instant::now();
        let problems = match trace::examine(&self.workspace, &self.results) {
            Ok(problems) => problems,
            Err(error) => vec![error.to_string()],
        };
        if problems.is_empty() {
            self.pass_check(checks::REQUIREMENTS, began.elapsed());
        } else {
            self.fail(
                Some(began.elapsed()),
                results::WORKSPACE,
                results::CHECK,
                checks::REQUIREMENTS,
                problems.join("\n"),
            );
        }
    }

    fn pass_check(&mut self, name: &str, elapsed: Duration) {
        self.results.push(TestResult {
            package: results::WORKSPACE.to_owned(),
            binary: results::CHECK.to_owned(),
            name: name.to_owned(),
            outcome: Outcome::Ok,
            seconds: Some(elapsed.as_secs_f64()),
        });
    }

    fn fail(&mut self, elapsed: Option<Duration>, package: &str, binary: &str, name: &str, why: String) {
        self.results.push(TestResult {
            package: package.to_owned(),
            binary: binary.to_owned(),
            name: name.to_owned(),
            outcome: Outcome::Failed,
            seconds: elapsed.map(|elapsed| elapsed.as_secs_f64()),
        });
        self.failures.push(Failure {
            reference: results::reference(package, binary, name),
            why: why.lines().map(str::to_owned).collect(),
        });
    }
}
