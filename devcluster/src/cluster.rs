//! The handle of a cluster, as its owner and everybody else hold it. Starts the supervisor, talks to it, and cleans
//! up after it; the cluster's parts themselves are the supervisor's business.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::config::{self, ClusterConfig, GVISOR, Lifetime};
use crate::control::{self, Action, Event, Hits, Orders, Output, Place, Reply, Request, Status, Timings};
use crate::error::{Error, Result, tail_of};
use crate::paths::{self, StateDir};
use crate::progress::{Progress, Step};
use crate::reap::{self, Exclusive, Life};
use crate::tools::{self, Tools};
use crate::{host, image};

/// How long an orderly shutdown may take before the supervisor is killed: the slowest part has 10 s to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(40);

/// How long the supervisor's two ancestors, which only wait for it, may take to end after it.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(5);

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    state: StateDir,
    tools: Tools,
    kubeconfig: PathBuf,
    owned: Option<Owned>,
}

/// What only the owner has.
#[derive(Debug)]
struct Owned {
    // The supervisor's standard input. When the last copy of this end is gone, the cluster ends.
    lifeline: Option<ChildStdin>,
    child: Child,
}

impl Cluster {
    /// Brings a cluster up: checks and installs what the machine lacks, builds what is not built, starts all parts
    /// of the level and waits until they are ready.
    pub fn up(config: &ClusterConfig, lifetime: Lifetime, progress: &dyn Progress) -> Result<Self> {
        config.validate()?;
        host::ensure(host::for_level(config.level), progress)?;
        let mut groups = tools::groups_of(config.level).to_vec();
        if config.has_gvisor() {
            groups.push(GVISOR);
        }
        let tools = tools::ensure(&groups, progress)?;
        let supervisor = supervisor_program(progress)?;

        let exclusive = Exclusive::take()?;
        for error in reap::dead_clusters(&exclusive)? {
            progress.note(&format!("warning: {error}"));
        }
        let name = config.name.clone();
        let state = StateDir::of(&name)?;
        if reap::life(&state)? != Life::Absent {
            return Err(Error::AlreadyRunning { name });
        }
        let orders = Orders {
            name: name.clone(),
            level: config.level,
            fake_nodes: config.fake_nodes,
            unthrottled: config.unthrottled,
            api_port: config.api_port,
            keep_logs: config.keep_logs.clone(),
            tools: tools.clone(),
        };
        prepare_state(&state, &orders)?;
        let mut child = start_supervisor(&supervisor, &state)?;
        let lifeline = child.stdin.take();
        let cluster = Self {
            kubeconfig: state.kubeconfig(),
            name,
            state,
            tools,
            owned: Some(Owned { lifeline, child }),
        };
        cluster.follow_start(lifetime, Some(exclusive), progress)
    }

    /// Follows the supervisor's events until the cluster is ready.
    fn follow_start(
        mut self,
        lifetime: Lifetime,
        mut exclusive: Option<Exclusive>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let events = self.owned.as_mut().and_then(|owned| owned.child.stdout.take());
        let mut running: Vec<(Step, Instant)> = Vec::new();
        let mut broken = None;
        for line in events.map(BufReader::new).into_iter().flat_map(BufRead::lines) {
            let Ok(event) = line
                .map_err(|_| ())
                .and_then(|line| serde_json::from_str(&line).map_err(|_| ()))
            else {
                continue;
            };
            match event {
                Event::Locked => exclusive = None,
                Event::Taken => {
                    return Err(Error::AlreadyRunning {
                        name: self.name.clone(),
                    });
                }
                Event::Started { what, index, of } => {
                    let step = Step::new(what, index, of);
                    progress.started(&step);
                    running.push((step, Instant::now()));
                }
                Event::Finished {
                    what,
                    index,
                    of,
                    seconds,
                } => {
                    let step = Step::new(what, index, of);
                    running.retain(|(other, _)| *other != step);
                    progress.finished(&step, Duration::from_secs_f64(seconds));
                }
                Event::Ready => {
                    if lifetime == Lifetime::Detached {
                        self.detach()?;
                    }
                    return Ok(self);
                }
                Event::Broken { detail } => broken = Some(detail),
            }
        }
        drop(exclusive);
        for (step, begun) in &running {
            progress.failed(step, begun.elapsed());
        }
        let detail = broken.unwrap_or_else(|| {
            format!(
                "its supervisor died; the end of its log:\n{}",
                tail_of(&self.state.log("supervisor"), 15)
            )
        });
        let logs = paths::failed_logs_dir(&self.name)?;
        keep_logs(&self.state.logs(), &logs);
        let error = Error::BringUp {
            name: self.name.clone(),
            detail,
            logs,
        };
        // The failure to start is the news; what cannot be removed is reported by the next command again.
        let _ = self.end();
        Err(error)
    }

    /// Lets the cluster live on without this process.
    fn detach(&mut self) -> Result<()> {
        let lifeline = self.owned.as_mut().and_then(|owned| owned.lifeline.as_mut());
        if let Some(lifeline) = lifeline {
            let fail = |error: std::io::Error| Error::Control {
                name: self.name.clone(),
                detail: error.to_string(),
            };
            lifeline.write_all(control::DETACH).map_err(fail)?;
        }
        self.owned = None;
        Ok(())
    }

    /// A cluster that runs already.
    pub fn attach(name: &str) -> Result<Self> {
        config::validate_name(name)?;
        reap_quietly()?;
        let state = StateDir::of(name)?;
        if reap::life(&state)? != Life::Alive {
            return Err(Error::NotRunning {
                name: name.to_owned(),
            });
        }
        // Whoever started it may have been of another version; it must still be possible to end it.
        let orders = fs::read(state.config())
            .ok()
            .and_then(|text| serde_json::from_slice::<Orders>(&text).ok());
        let tools = orders.map(|orders| orders.tools).unwrap_or_default();
        Ok(Self {
            name: name.to_owned(),
            kubeconfig: state.kubeconfig(),
            state,
            tools,
            owned: None,
        })
    }

    /// The names of all running clusters.
    pub fn list() -> Result<Vec<String>> {
        reap_quietly()?;
        let mut alive = Vec::new();
        for name in reap::names()? {
            if reap::life(&StateDir::of(&name)?)? == Life::Alive {
                alive.push(name);
            }
        }
        Ok(alive)
    }

    /// Waits until an owned cluster ends by itself or by somebody else.
    pub fn wait(&mut self) -> Result<()> {
        let Some(owned) = &mut self.owned else {
            return Ok(());
        };
        let fail = |error: std::io::Error| Error::Control {
            name: self.name.clone(),
            detail: error.to_string(),
        };
        owned.child.wait().map(drop).map_err(fail)
    }

    /// Ends the cluster and leaves nothing behind.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // This very file: when the cluster is gone, somebody else may start one of the same name.
        let lock = fs::File::open(self.state.lock()).ok();
        let pid = self.supervisor_pid();
        let ancestors = pid.as_ref().map(|pid| ancestors(*pid)).unwrap_or_default();
        let asked = control::ask(&self.name, &self.state.control_socket(), &Request::Down);
        if let Some(owned) = &mut self.owned {
            owned.lifeline = None;
        }
        let deadline = Instant::now() + SHUTDOWN_DEADLINE;
        while lock.as_ref().is_some_and(|file| file.try_lock_shared().is_err()) {
            if Instant::now() > deadline {
                self.kill_supervisor(pid?)?;
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(lock);
        if let Some(mut owned) = self.owned.take() {
            let _ = owned.child.wait();
        }
        // They follow the supervisor within milliseconds; "gone" should mean gone.
        let deadline = Instant::now() + FOLLOW_DEADLINE;
        while ancestors.iter().any(|pid| is_running(*pid)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let exclusive = Exclusive::take()?;
        let removed = match reap::life(&self.state)? {
            Life::Dead => reap::remains(&self.name, &self.state),
            Life::Alive | Life::Absent => Ok(()),
        };
        drop(exclusive);
        match (asked, removed) {
            (_, Err(error)) => Err(error),
            (Err(error @ Error::Refused { .. }), Ok(())) => Err(error),
            _ => Ok(()),
        }
    }

    /// For a supervisor that does not end. Its processes die with it: they are in its pid namespace.
    fn kill_supervisor(&self, pid: i32) -> Result<()> {
        let killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        killed.map_err(|error| Error::Leftover {
            name: self.name.clone(),
            detail: format!("its supervisor (process {pid}) cannot be killed: {error}"),
        })
    }

    /// The supervisor's process, as this process's pid namespace numbers it.
    pub fn supervisor_pid(&self) -> Result<i32> {
        let fail = |detail: String| Error::Control {
            name: self.name.clone(),
            detail,
        };
        let stream =
            control::connect(&self.state.control_socket()).map_err(|error| fail(error.to_string()))?;
        let peer = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials);
        peer.map(|credentials| credentials.pid())
            .map_err(|error| fail(error.to_string()))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig, for this machine, with everything inside it.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A tool of the cluster's own: `binary("kubernetes", "kubectl")`.
    pub fn binary(&self, group: &str, name: &str) -> Result<PathBuf> {
        self.tools.binary(group, name)
    }

    /// The API server's record of every write.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.state.audit_log()
    }

    /// The folder with one log a part.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.logs()
    }

    /// The node's address inside the cluster. This machine has no route to it: see [`Cluster::forward`].
    #[must_use]
    pub fn node_address(&self) -> Ipv4Addr {
        config::NODE_ADDRESS
    }

    /// How it is.
    pub fn status(&self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How long its parts took to come up.
    pub fn timings(&self) -> Result<Timings> {
        Ok(self.status()?.timings)
    }

    /// Stops, starts, kills, pauses or resumes one part.
    pub fn component(&self, name: &str, action: Action) -> Result<()> {
        self.expect_done(&Request::Component {
            name: name.to_owned(),
            action,
        })
    }

    /// Runs a command inside the cluster. A command that fails is an answer, not an error.
    pub fn exec<S: AsRef<str>>(&self, place: Place, argv: &[S]) -> Result<Output> {
        self.exec_with_input(place, argv, None)
    }

    /// Like [`Cluster::exec`], with something on its standard input.
    pub fn exec_with_input<S: AsRef<str>>(
        &self,
        place: Place,
        argv: &[S],
        stdin: Option<&str>,
    ) -> Result<Output> {
        let argv = argv.iter().map(|argument| argument.as_ref().to_owned()).collect();
        match self.ask(&Request::Exec {
            place,
            argv,
            stdin: stdin.map(str::to_owned),
        })? {
            Reply::Output(output) => Ok(output),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Makes an image known to the node, under its name and under `name@sha256:…`, without a registry.
    pub fn import_image(&self, image: &image::Image) -> Result<()> {
        self.import(&image.name, &image.tar, Some(&image.digest))
    }

    /// As [`Self::import_image`], for an OCI layout that holds an image of that name.
    pub fn import_tar(&self, name: &str, tar: &Path) -> Result<()> {
        self.import(name, tar, None)
    }

    fn import(&self, name: &str, tar: &Path, digest: Option<&str>) -> Result<()> {
        // Several threads of one process may import at once.
        static IMPORTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = IMPORTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = format!("import-{}-{number}.tar", std::process::id());
        let inside = self.state.join(&file);
        if fs::hard_link(tar, &inside).is_err() {
            fs::copy(tar, &inside).map_err(Error::file("copy to", &inside))?;
        }
        let done = self.expect_done(&Request::ImportImage {
            file,
            name: name.to_owned(),
            digest: digest.map(str::to_owned),
        });
        let _ = fs::remove_file(&inside);
        done
    }

    /// What reached the outside world so far.
    pub fn hits(&self) -> Result<Hits> {
        match self.ask(&Request::Hits)? {
            Reply::Hits(hits) => Ok(hits),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Leads a port of 127.0.0.1 of this machine to an address inside the cluster, as the node reaches it.
    /// Port 0 lets the kernel choose; the answer is the port.
    pub fn forward(&self, listen: u16, target: SocketAddr) -> Result<u16> {
        match self.ask(&Request::Forward { listen, target })? {
            Reply::Port { port } => Ok(port),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends a forward.
    pub fn unforward(&self, listen: u16) -> Result<()> {
        self.expect_done(&Request::Unforward { listen })
    }

    /// The other way round: listens inside the cluster and leads to an address of this machine, so that a server of a
    /// test can be called from a pod, from the API server, or at the address of a fake pod. Lasts as long as the cluster.
    pub fn expose(&self, place: Place, listen: SocketAddr, target: SocketAddr) -> Result<()> {
        self.expect_done(&Request::Expose {
            place,
            listen,
            target,
        })
    }

    fn ask(&self, request: &Request) -> Result<Reply> {
        control::ask(&self.name, &self.state.control_socket(), request)
    }

    fn expect_done(&self, request: &Request) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        Error::Control {
            name: self.name.clone(),
            detail: format!("unexpected answer {reply:?}"),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned.is_some()
            && let Err(error) = self.end()
        {
            // Nobody is left to be told but the log: the next cluster command tries again.
            tracing::warn!("{error}");
        }
    }
}

/// The first process of the cluster's pid namespace, and the `unshare` that waits for it.
fn ancestors(supervisor: i32) -> Vec<i32> {
    let parent = |pid: i32| -> Option<i32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))?
            .trim()
            .parse()
            .ok()
    };
    std::iter::successors(parent(supervisor), |pid| parent(*pid))
        .take(2)
        .filter(|pid| *pid > 1)
        .collect()
}

/// A zombie runs no more; whoever started it has to bury it.
fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Every command cleans up after dead clusters; one that resists is no reason to fail what was asked.
fn reap_quietly() -> Result<()> {
    for error in reap::dead_clusters(&Exclusive::take()?)? {
        tracing::warn!("{error}");
    }
    Ok(())
}

fn prepare_state(state: &StateDir, orders: &Orders) -> Result<()> {
    // Keys and the administrator's kubeconfig are in there.
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(state.path())
        .map_err(Error::file("create", state.path()))?;
    builder
        .create(state.logs())
        .map_err(Error::file("create", state.logs()))?;
    if let Some(folder) = &orders.keep_logs {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let text = serde_json::to_vec_pretty(orders).map_err(|error| Error::Other(error.to_string()))?;
    fs::write(state.config(), text).map_err(Error::file("write", state.config()))
}

fn start_supervisor(program: &Path, state: &StateDir) -> Result<Child> {
    let log = state.log("supervisor");
    let log_file = fs::File::create(&log).map_err(Error::file("create", &log))?;
    // A session of its own: Ctrl-C in the owner's terminal is for the owner, and reaches the cluster by the
    // lifeline. `unshare` makes the namespaces; when it dies, the kernel kills the first process in them, and
    // with that one all others.
    let mut command = Command::new("setsid");
    command.args([
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
    ]);
    command
        .args(["--kill-child=SIGKILL", "--mount-proc"])
        .arg(program)
        .args(["init", "--state"])
        .arg(state.path());
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(log_file).current_dir("/");
    command.spawn().map_err(|error| Error::Command {
        command: "setsid unshare".to_owned(),
        detail: error.to_string(),
    })
}

/// Copies logs; they only serve people, so what cannot be copied is left out.
pub(crate) fn keep_logs(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let _ = fs::create_dir_all(to);
    copy_files(from, to);
}

/// Copies the plain files of a folder.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = fs::copy(entry.path(), to.join(entry.file_name()));
        }
    }
}

const PROGRAM: &str = "vitrine-devcluster";

/// The program that supervises: this crate's own binary, which lies beside whoever uses this library in Cargo's
/// target folder. Built again when it is missing or older than its sources, because Cargo does not build a
/// dependency's binaries.
fn supervisor_program(progress: &dyn Progress) -> Result<PathBuf> {
    if let Some(set) = std::env::var_os("VITRINE_DEVCLUSTER") {
        return Ok(PathBuf::from(set));
    }
    let own = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    if own.file_name().is_some_and(|name| name == PROGRAM) {
        return Ok(own);
    }
    // `target/debug/xtask`, or a test in `target/debug/deps/`.
    let mut folder = own.parent().unwrap_or(Path::new("/"));
    if folder
        .file_name()
        .is_some_and(|name| name == "deps" || name == "examples")
    {
        folder = folder.parent().unwrap_or(folder);
    }
    let program = folder.join(PROGRAM);
    if is_current(&program) {
        return Ok(program);
    }
    let release = folder.file_name().is_some_and(|name| name == "release");
    let step = Step::new(format!("build {PROGRAM}"), 1, 1);
    crate::progress::run(progress, &step, || build_supervisor(release))?;
    if program.is_file() {
        return Ok(program);
    }
    Err(Error::Other(format!(
        "`{}` is missing: run `cargo build -p {PROGRAM}`, or set VITRINE_DEVCLUSTER to it",
        program.display()
    )))
}

fn build_supervisor(release: bool) -> Result<()> {
    let mut command = crate::cargo::command();
    command.args(["build", "--quiet", "--package", PROGRAM, "--bin", PROGRAM]);
    if release {
        command.arg("--release");
    }
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    let fail = |detail| Error::Command {
        command: format!("cargo build -p {PROGRAM}"),
        detail,
    };
    let output = command.output().map_err(|error| fail(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail(crate::error::last_lines(
        &String::from_utf8_lossy(&output.stderr),
        20,
    )))
}

/// Whether a binary is at least as new as the sources of this crate, where these are at hand.
fn is_current(program: &Path) -> bool {
    fn newest(folder: &Path) -> SystemTime {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let times = entries.map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => newest(&entry.path()),
            _ => entry
                .metadata()
                .and_then(|meta| meta.modified())
                .unwrap_or(SystemTime::UNIX_EPOCH),
        });
        times.max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
    let built = fs::metadata(program).and_then(|meta| meta.modified());
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    built.is_ok_and(|built| {
        ["src", "kwok"]
            .iter()
            .all(|folder| built >= newest(&sources.join(folder)))
    })
}
