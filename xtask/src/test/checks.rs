//! The checks of the whole workspace: format, lints, dependencies, every crate alone. Each runs one cargo command.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vitrine_devcluster::cargo;

use super::Run;
use crate::clusters;
use crate::command::{Finished, Job};
use crate::error::Error;
use crate::results::{CHECK, WORKSPACE};
use crate::tools;
use crate::workspace::Workspace;

pub const FORMAT: &str = "format";
pub const LINT: &str = "lint";
pub const DEPENDENCIES: &str = "dependencies";
pub const TOOLS: &str = "tools";
pub const REQUIREMENTS: &str = "requirements";

/// The check that a crate's own Cargo.toml is enough for it.
pub fn alone(package: &str) -> String {
    format!("alone::{package}")
}

/// All checks, in the order in which they run.
pub fn names(workspace: &Workspace) -> Vec<String> {
    let mut names = [FORMAT, LINT, DEPENDENCIES].map(str::to_owned).to_vec();
    names.extend(workspace.members.iter().map(|member| alone(&member.name)));
    names.extend([TOOLS, REQUIREMENTS].map(str::to_owned));
    names
}

/// How results and the command line call a check.
pub fn reference(check: &str) -> String {
    crate::results::reference(WORKSPACE, CHECK, check)
}

impl Run {
    pub(super) fn check_format(&mut self) {
        let job = self
            .cargo_job("cargo fmt", FORMAT)
            .args(["fmt", "--all", "--check"]);
        self.check(FORMAT, &job, "run `cargo fmt --all`");
    }

    pub(super) fn check_lints(&mut self) {
        let job = self.cargo_job("cargo clippy", LINT).args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]);
        self.check(LINT, &job, "see `cargo clippy --workspace --all-targets`");
    }

    pub(super) fn check_dependencies(&mut self) {
        let began = Instant::now();
        match tools::cargo_deny(&self.logs, &self.progress) {
            Ok(deny) => {
                let job = Job::new("cargo deny", deny, &self.workspace.root)
                    .args([
                        "--log-level",
                        "error",
                        "--color",
                        "never",
                        "check",
                        "bans",
                        "licenses",
                        "sources",
                    ])
                    .env("CARGO", cargo::program())
                    .log(self.log(DEPENDENCIES));
                self.check(DEPENDENCIES, &job, "deny.toml says what is allowed and why");
            }
            Err(error) => self.fail(
                Some(began.elapsed()),
                WORKSPACE,
                CHECK,
                DEPENDENCIES,
                error.to_string(),
            ),
        }
    }

    /// In one build of the workspace a crate sees features that only its neighbours asked for.
    pub(super) fn check_alone(&mut self) {
        let packages: Vec<String> = self
            .workspace
            .members
            .iter()
            .map(|member| member.name.clone())
            .collect();
        for package in packages {
            let name = alone(&package);
            if self.selects_check(&name) {
                let job = self
                    .cargo_job(
                        &format!("cargo check --package {package}"),
                        &format!("alone-{package}"),
                    )
                    .args(["check", "--package", &package]);
                self.check(
                    &name,
                    &job,
                    "does its Cargo.toml name every feature that it uses?",
                );
            }
        }
    }

    /// That all programs of the clusters can be built; cached outside the checkout, so mostly nothing is done.
    pub(super) fn check_tools(&mut self) {
        let began = Instant::now();
        match clusters::build_tools() {
            Ok(()) => self.pass_check(TOOLS, began.elapsed()),
            Err(error) => self.fail(Some(began.elapsed()), WORKSPACE, CHECK, TOOLS, error.to_string()),
        }
    }

    /// A cargo command in the workspace whose output is for a log.
    pub(super) fn cargo_job(&self, what: &str, log: &str) -> Job {
        Job::new(what, cargo::program(), &self.workspace.root)
            .env("CARGO_TERM_COLOR", "never")
            .env("CARGO_TERM_PROGRESS_WHEN", "never")
            .log(self.log(log))
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    pub(super) fn check(&mut self, name: &str, job: &Job, advice: &str) {
        let finished = job.run(&self.progress);
        self.judge(name, job, finished, advice);
    }

    fn judge(&mut self, name: &str, job: &Job, finished: Result<Finished, Error>, advice: &str) {
        match finished {
            Ok(finished) if finished.success => self.pass_check(name, finished.elapsed),
            Ok(Finished {
                how, tail, elapsed, ..
            }) => {
                let why = format!(
                    "{}\n{how}; {advice}\nwhole output: {}",
                    tail.join("\n"),
                    job.log.display()
                );
                self.fail(Some(elapsed), WORKSPACE, CHECK, name, why);
            }
            Err(error) => self.fail(Some(Duration::ZERO), WORKSPACE, CHECK, name, error.to_string()),
        }
    }
}
