//! `cargo xtask soak NAME…`: the same tests as `cargo xtask test`, with the counts that evidence needs. Writes docs/evidence/.
//! Which counts these are the tests say themselves (`vitrine_parts::soak`).

use std::fmt;
use std::process::Command;
use std::str::FromStr;
use std::time::Instant;

use crate::error::Error;
use crate::test;
use crate::workspace::Workspace;

/// The options of `soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Test binaries, as `crash` of tests/e2e or `kills` of tests/shop
    #[arg(required = true)]
    names: Vec<String>,
    /// Only the rounds with these seeds, as `1-20`: hours of `owners` in parts, each with evidence of its own
    #[arg(long, value_name = "FIRST-LAST")]
    seeds: Option<Seeds>,
}

/// Test binaries whose rounds have seeds that can be chosen (`vitrine_parts::seeds`).
const SEEDED: [&str; 3] = ["owners", "same_history", "stores"];

/// Which rounds of a test are run, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (1..=last).contains(&first).then_some(Self { first, last })
        };
        read().ok_or_else(|| format!("{text:?} names no seeds: say the first and the last one, as 1-20"))
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Runs them; `false` if one failed. A failure leaves the evidence of the last success as it is.
pub fn run(args: &Args) -> Result<bool, Error> {
    if let (Some(_), Some(name)) = (
        args.seeds,
        args.names.iter().find(|name| !SEEDED.contains(&name.as_str())),
    ) {
        return Err(Error::shape(
            "--seeds",
            format!("{name} has no seeds to choose; {} has", SEEDED.join(", ")),
        ));
    }
    let root = Workspace::load()?.root;
    let folder = root.join("docs/evidence");
    std::fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
    let mut good = true;
    for name in &args.names {
        // What is going to be built now, not what somebody edits meanwhile.
        let (begun, commit) = (Instant::now(), commit(&root));
        let (passed, output) = test::soak(name, args.seeds)?;
        good &= passed;
        if passed {
            let (file, command) = match args.seeds {
                Some(seeds) => (format!("{name}-{seeds}.md"), format!("{name} --seeds {seeds}")),
                None => (format!("{name}.md"), name.clone()),
            };
            let path = folder.join(file);
            let text = evidence(name, &command, &commit, begun.elapsed().as_secs(), &output);
            std::fs::write(&path, text).map_err(Error::file("write", &path))?;
            println!("wrote {}", path.display());
        }
    }
    Ok(good)
}

fn commit(root: &std::path::Path) -> String {
    let ask = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(root)
            .output()
            .ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = ask(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // The evidence of the test before this one is no change to what is tested.
    let changed = ask(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":(exclude)docs/evidence",
    ]);
    let changed = changed.is_none_or(|text| !text.is_empty());
    if changed {
        format!("{head}, with changes that were not committed")
    } else {
        head
    }
}

fn evidence(name: &str, command: &str, commit: &str, seconds: u64, output: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    // Paths of the machine that ran it are nobody's business.
    let lines: Vec<_> = output.lines().filter(|line| !line.contains("/target/")).collect();
    format!(
        "# {name}\n\n`cargo xtask soak {command}` on commit {commit}, {cores} cores, {seconds} s in all.\n\n```\n{}\n```\n",
        lines.join("\n").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_names_its_command_and_commit_and_no_path_of_the_machine() {
        let text = evidence(
            "crash",
            "crash --seeds 1-2",
            "abc",
            5,
            "running /somewhere/target/debug/x\n44 cases\n",
        );
        assert!(
            text.contains("cargo xtask soak crash --seeds 1-2`")
                && text.contains("abc")
                && text.contains("44 cases")
        );
        assert!(!text.contains("/somewhere"));
    }

    #[test]
    fn seeds_are_a_first_and_a_last_one() {
        let seeds = "3-20".parse::<Seeds>().unwrap();
        assert_eq!(
            (seeds, seeds.to_string()),
            (Seeds { first: 3, last: 20 }, "3-20".to_owned())
        );
        for wrong in ["", "3", "0-2", "20-3", "a-b", "1-2-3"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
    }
}
