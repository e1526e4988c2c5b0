//! The command line of a cluster, for this crate's own binary and for whoever forwards to it. Prints; the work is
//! done by [`Cluster`].

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::config::{ClusterConfig, Level, Lifetime};
use crate::control::{Action, Place};
use crate::error::{Error, Result};
use crate::{Cluster, progress, tools};

/// The name of the cluster that nobody named.
pub const DEFAULT_NAME: &str = "vitrine";

/// How often `logs -f` looks for more.
const FOLLOW_PERIOD: Duration = Duration::from_millis(200);

/// Which cluster.
#[derive(Debug, Clone, Args)]
pub struct Name {
    /// The cluster's name on this machine
    #[arg(long, default_value = DEFAULT_NAME)]
    pub name: String,
}

/// What can be done with clusters.
#[derive(Debug, Clone, Subcommand)]
pub enum ClusterCommand {
    /// Bring a cluster up; it stays until `down`
    Up {
        /// Which cluster
        #[command(flatten)]
        name: Name,
        /// How much of Kubernetes runs
        #[arg(long, value_enum, default_value_t = Level::Full)]
        level: Level,
        /// Let pods run under gVisor (RuntimeClass `gvisor`), at level full
        #[arg(long)]
        gvisor: bool,
        /// Fake nodes, at level scale
        #[arg(long, default_value_t = 3)]
        nodes: u32,
        /// Let nothing in Kubernetes hold requests back, as benches have it
        #[arg(long)]
        unthrottled: bool,
        /// One line a step, without anything that moves
        #[arg(long)]
        quiet: bool,
        /// Stay, and end the cluster when this command ends, however that happens
        #[arg(long)]
        foreground: bool,
    },
    /// End a cluster and leave nothing behind
    Down {
        /// Which cluster
        #[command(flatten)]
        name: Name,
    },
    /// Show how a cluster and its parts are
    Status {
        /// Which cluster
        #[command(flatten)]
        name: Name,
    },
    /// Print the shell line that points kubectl at a cluster
    Env {
        /// Which cluster
        #[command(flatten)]
        name: Name,
    },
    /// Show the log of one part, or which logs there are
    Logs {
        /// Which cluster
        #[command(flatten)]
        name: Name,
        /// The part: apiserver, kubelet, supervisor, …
        component: Option<String>,
        /// Go on as it grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Name the running clusters
    List,
    /// Build all tools of all levels, so that the next `up` is quick
    Tools {
        /// Only these groups
        groups: Vec<String>,
        /// One line a step, without anything that moves
        #[arg(long)]
        quiet: bool,
    },
    /// Run a command inside a cluster
    Exec {
        /// Which cluster
        #[command(flatten)]
        name: Name,
        /// Where
        #[arg(long, value_enum, default_value_t = Place::Node)]
        place: Place,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
    /// Stop, start, kill, pause, resume or restart one part
    Component {
        /// Which cluster
        #[command(flatten)]
        name: Name,
        /// Which part
        component: String,
        /// What to do
        #[arg(value_enum)]
        action: Action,
    },
    /// Bring an image to the node, without a registry
    Load {
        /// Which cluster
        #[command(flatten)]
        name: Name,
        /// The image's name, as it stands in the tar
        image: String,
        /// An OCI layout
        tar: PathBuf,
    },
    /// Show what reached the outside world
    Hits {
        /// Which cluster
        #[command(flatten)]
        name: Name,
    },
}

/// Carries a command out; the answer is the exit code.
pub fn run(command: ClusterCommand) -> Result<i32> {
    let mut out = std::io::stdout().lock();
    let text = match command {
        ClusterCommand::Up {
            name,
            level,
            gvisor,
            nodes,
            unthrottled,
            quiet,
            foreground,
        } => {
            let config = ClusterConfig {
                fake_nodes: nodes,
                unthrottled,
                gvisor,
                ..ClusterConfig::new(name.name, level)
            };
            let lifetime = if foreground {
                Lifetime::Owned
            } else {
                Lifetime::Detached
            };
            let cluster = Cluster::up(&config, lifetime, &*progress::for_stderr(quiet))?;
            let text = describe_up(&cluster)?;
            if foreground {
                return stay(cluster, &text, &mut out);
            }
            text
        }
        ClusterCommand::Down { name } => {
            Cluster::attach(&name.name)?.down()?;
            format!("cluster {} is gone\n", name.name)
        }
        ClusterCommand::Status { name } => describe(&Cluster::attach(&name.name)?)?,
        ClusterCommand::Env { name } => export_line(&Cluster::attach(&name.name)?),
        ClusterCommand::Logs {
            name,
            component,
            follow,
        } => {
            let cluster = Cluster::attach(&name.name)?;
            match component {
                None => log_names(&cluster.logs())?,
                Some(part) => {
                    show_log(&cluster.logs().join(format!("{part}.log")), follow, &mut out)?;
                    String::new()
                }
            }
        }
        ClusterCommand::List => Cluster::list()?.iter().map(|name| format!("{name}\n")).collect(),
        ClusterCommand::Tools { groups, quiet } => build_tools(&groups, quiet)?,
        ClusterCommand::Exec { name, place, argv } => {
            let output = Cluster::attach(&name.name)?.exec(place, &argv)?;
            let _ = out.write_all(output.stdout.as_bytes());
            let _ = std::io::stderr().write_all(output.stderr.as_bytes());
            return Ok(output.code);
        }
        ClusterCommand::Component {
            name,
            component,
            action,
        } => {
            Cluster::attach(&name.name)?.component(&component, action)?;
            String::new()
        }
        ClusterCommand::Load { name, image, tar } => {
            Cluster::attach(&name.name)?.import_tar(&image, &tar)?;
            String::new()
        }
        ClusterCommand::Hits { name } => {
            let hits = Cluster::attach(&name.name)?.hits()?;
            serde_json::to_string_pretty(&hits).map_err(|error| Error::Other(error.to_string()))? + "\n"
        }
    };
    // A closed pipe (`| head`) is no failure.
    let _ = out.write_all(text.as_bytes());
    Ok(0)
}

/// Holds an owned cluster until somebody ends it or this process. The default effect of a signal is enough: the cluster
/// notices the end of its owner.
fn stay(mut cluster: Cluster, text: &str, out: &mut impl Write) -> Result<i32> {
    let _ = writeln!(out, "{text}# the cluster ends with this command: Ctrl-C").and_then(|()| out.flush());
    cluster.wait()?;
    Ok(0)
}

fn export_line(cluster: &Cluster) -> String {
    format!(
        "export KUBECONFIG={}\n",
        shell_quoted(&cluster.kubeconfig().to_string_lossy())
    )
}

/// Quotes only what needs it, so that the usual line stays readable.
fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn describe_up(cluster: &Cluster) -> Result<String> {
    let kubectl = cluster.binary("kubernetes", "kubectl")?;
    Ok(format!(
        "{}{}# kubectl: {}\n",
        describe(cluster)?,
        export_line(cluster),
        kubectl.display()
    ))
}

fn describe(cluster: &Cluster) -> Result<String> {
    let status = cluster.status()?;
    let mut text = format!(
        "cluster {} (level {}): {}, API server at https://127.0.0.1:{}\n",
        status.name,
        status.level,
        if status.ready { "ready" } else { "starting" },
        status.api_port
    );
    let times = [
        ("API server ready", status.timings.api_ready_seconds),
        ("node ready", status.timings.node_ready_seconds),
        ("all ready", status.timings.ready_seconds),
    ];
    for (what, seconds) in times {
        if let Some(seconds) = seconds {
            text += &format!("  {what} after {seconds:.1} s\n");
        }
    }
    for (name, part) in &status.components {
        let pid = part.pid.map_or_else(String::new, |pid| format!(" pid {pid}"));
        let state = format!("{:?}", part.state).to_lowercase();
        let restarts = if part.restarts == 0 {
            String::new()
        } else {
            format!(", {} unexpected ends", part.restarts)
        };
        text += &format!("  {name:<20} {state}{pid}{restarts}\n");
    }
    for (port, target) in &status.forwards {
        text += &format!("  127.0.0.1:{port} leads to {target}\n");
    }
    Ok(text)
}

fn log_names(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).map_err(Error::file("read", folder))?;
    let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    names.sort();
    Ok(names.iter().map(|path| format!("{}\n", path.display())).collect())
}

fn show_log(path: &Path, follow: bool, out: &mut impl Write) -> Result<()> {
    let mut file = std::fs::File::open(path).map_err(Error::file("open", path))?;
    let mut position = 0;
    loop {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(position))
            .map_err(Error::file("read", path))?;
        position +=
            u64::try_from(file.read_to_end(&mut bytes).map_err(Error::file("read", path))?).unwrap_or(0);
        let written = out.write_all(&bytes).and_then(|()| out.flush());
        // The reader went away, or the cluster did.
        if !follow || written.is_err() || !path.exists() {
            return Ok(());
        }
        std::thread::sleep(FOLLOW_PERIOD);
    }
}

fn build_tools(groups: &[String], quiet: bool) -> Result<String> {
    let known = tools::groups()?;
    let names: Vec<&str> = if groups.is_empty() {
        known.iter().map(|group| group.group.as_str()).collect()
    } else {
        groups.iter().map(String::as_str).collect()
    };
    let built = tools::ensure(&names, &*progress::for_stderr(quiet))?;
    let mut text = String::new();
    for name in names {
        text += &format!("{}\n", built.folder(name)?.display());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unusual_paths_are_quoted() {
        assert_eq!(shell_quoted("/root/.local/state"), "/root/.local/state");
        assert_eq!(shell_quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
