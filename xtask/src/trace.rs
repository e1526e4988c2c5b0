//! `cargo xtask trace`: are docs/requirements.md and docs/threat-model.md true? Reads them and the last result file; writes only
//! the former's summary, and only with `--write-summary`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::error::Error;
use crate::requirements::{self, Document};
use crate::results::{self, TestResult};
use crate::threats;
use crate::workspace::Workspace;

const REQUIREMENTS: &str = "docs/requirements.md";
const THREATS: &str = "docs/threat-model.md";

/// The options of `trace`.
#[derive(clap::Args)]
pub struct Args {
    /// Renew the table of counts in docs/requirements.md
    #[arg(long)]
    write_summary: bool,
}

/// Runs it; `false` if there is a problem.
pub fn run(args: &Args) -> Result<bool, Error> {
    let workspace = Workspace::load()?;
    if args.write_summary {
        let (text, document) = read(&workspace)?;
        let renewed = requirements::with_summary(&text, &document.rows)
            .ok_or_else(|| Error::shape(REQUIREMENTS, "the two summary markers are not there"))?;
        let path = path(&workspace);
        std::fs::write(&path, renewed).map_err(Error::file("write", &path))?;
    }
    // The counts first: they need no result file, and on a fresh clone there is none.
    let document = read(&workspace)?.1;
    print_counts(&document);
    let results = results::read(&results::whole_run(&workspace))?;
    let problems = examine(&workspace, &results)?;
    for problem in &problems {
        println!("{problem}");
    }
    let named: BTreeSet<&String> = document.rows.iter().flat_map(|row| &row.tests).collect();
    match problems.len() {
        0 => println!("{} tests are named; each of them ran and passed", named.len()),
        count => println!("{count} problems"),
    }
    Ok(problems.is_empty())
}

/// Everything wrong with the documents.
pub fn examine(workspace: &Workspace, results: &[TestResult]) -> Result<Vec<String>, Error> {
    let (text, document) = read(workspace)?;
    let mut problems = requirements::check(&document, results);
    if requirements::with_summary(&text, &document.rows).as_ref() != Some(&text) {
        problems.push("the summary is not up to date; run `cargo xtask trace --write-summary`".to_owned());
    }
    let path = workspace.root.join(THREATS);
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let of = |document: &str, problems: Vec<String>| -> Vec<String> {
        let problems = problems.into_iter();
        problems.map(|problem| format!("{document}: {problem}")).collect()
    };
    Ok([
        of(REQUIREMENTS, problems),
        of(THREATS, threats::check(&text, results)),
    ]
    .concat())
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root.join(REQUIREMENTS)
}

fn read(workspace: &Workspace) -> Result<(String, Document), Error> {
    let path = path(workspace);
    let text = std::fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    let document = requirements::parse(&text);
    Ok((text, document))
}

fn print_counts(document: &Document) {
    let (areas, all) = requirements::count(&document.rows);
    println!(
        "{:<36}{:>6}{:>6}{:>6}{:>7}",
        "area", "done", "part", "open", "total"
    );
    for (area, count) in areas.iter().chain([&("all".to_owned(), all)]) {
        println!(
            "{area:<36}{:>6}{:>6}{:>6}{:>7}",
            count.done,
            count.part,
            count.open,
            count.total()
        );
    }
}
