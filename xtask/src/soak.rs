//! `cargo xtask soak NAME…`: the same tests as `cargo xtask test`, with the counts that evidence needs. Writes docs/evidence/.

use std::process::Command;
use std::time::Instant;

use crate::error::Error;
use crate::test;
use crate::workspace::Workspace;

/// The options of `soak`.
#[derive(clap::Args)]
pub struct Args {
    /// Test binaries of tests/e2e, as `crash` or `steady`
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs them; `false` if one failed. A failure leaves the evidence of the last success as it is.
pub fn run(args: &Args) -> Result<bool, Error> {
    let root = Workspace::load()?.root;
    let folder = root.join("docs/evidence");
    std::fs::create_dir_all(&folder).map_err(Error::file("make", &folder))?;
    let mut good = true;
    for name in &args.names {
        // What is going to be built now, not what somebody edits meanwhile.
        let (begun, commit) = (Instant::now(), commit(&root));
        let (passed, output) = test::soak(name)?;
        good &= passed;
        if passed {
            let path = folder.join(format!("{name}.md"));
            let text = evidence(name, &commit, begun.elapsed().as_secs(), &output);
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

fn evidence(name: &str, commit: &str, seconds: u64, output: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    // Paths of the machine that ran it are nobody's business.
    let lines: Vec<_> = output.lines().filter(|line| !line.contains("/target/")).collect();
    format!(
        "# {name}\n\n`cargo xtask soak {name}` on commit {commit}, {cores} cores, {seconds} s in all.\n\n```\n{}\n```\n",
        lines.join("\n").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_names_its_command_and_commit_and_no_path_of_the_machine() {
        let text = evidence("crash", "abc", 5, "running /somewhere/target/debug/x\n44 cases\n");
        assert!(text.contains("cargo xtask soak crash") && text.contains("abc") && text.contains("44 cases"));
        assert!(!text.contains("/somewhere"));
    }
}
