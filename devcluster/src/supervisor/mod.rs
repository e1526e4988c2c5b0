//! The process that holds a cluster together: makes its namespaces, starts its parts, answers the control socket,
//! and takes everything down. Lives in a private mount and pid namespace (see [`init`]), and in this machine's own
//! network namespace, from where it relays.

pub(crate) mod dns;
pub(crate) mod files;
pub(crate) mod init;
pub(crate) mod mounts;
pub(crate) mod namespaces;
mod node;
pub(crate) mod outside;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod relay;
mod scale;
mod server;
mod start;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, OnceCell};

use crate::cgroup;
use crate::control::{DETACH, Event, Orders, Timings};
use crate::error::{Error, Result};
use crate::paths::StateDir;
use crate::reap;
use crate::tools::Tools;

/// How long another process's look at the lock may keep us from taking it: such a look takes microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What all parts of the supervisor share.
pub(crate) struct Cluster {
    pub(crate) orders: Orders,
    /// The state folder as this machine sees it.
    pub(crate) state: StateDir,
    /// The tools at the places where this namespace sees them.
    pub(crate) tools: Tools,
    pub(crate) parts: process::Parts,
    pub(crate) relays: relay::Relays,
    pub(crate) begun: Instant,
    pub(crate) timings: std::sync::Mutex<Timings>,
    pub(crate) ready: AtomicBool,
    pub(crate) api_port: OnceCell<u16>,
    pub(crate) node: OnceCell<namespaces::Namespace>,
    pub(crate) outside: OnceCell<outside::Record>,
    /// Raised by whoever wants the cluster to end.
    pub(crate) end: Notify,
}

/// Says something to the owner. Nobody may be listening any more, which is no trouble.
pub(crate) fn say(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
}

/// The whole life of a cluster; the answer is the exit code.
pub(crate) fn run(state: &Path) -> Result<i32> {
    let begun = Instant::now();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let state = StateDir::at(state);
    let Some(lock) = take_lock(&state)? else {
        say(&Event::Taken);
        return Ok(1);
    };
    say(&Event::Locked);
    let result = live(begun, &state);
    if let Err(error) = &result {
        tracing::error!("{error}");
        say(&Event::Broken {
            detail: error.to_string(),
        });
    }
    drop(lock);
    Ok(i32::from(result.is_err()))
}

fn take_lock(state: &StateDir) -> Result<Option<File>> {
    let path = state.lock();
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    while file.try_lock().is_err() {
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Some(file))
}

fn live(begun: Instant, state: &StateDir) -> Result<()> {
    let path = state.config();
    let orders = fs::read(&path).map_err(Error::file("read", &path))?;
    let orders: Orders = serde_json::from_slice(&orders)
        .map_err(|error| Error::Other(format!("failed to read `{}`: {error}", path.display())))?;
    if cgroup::is_inhabited(&orders.name) {
        let detail =
            "processes live in its cgroup: of one just killed, or of one of that name of another user"
                .to_owned();
        return Err(Error::Leftover {
            name: orders.name,
            detail,
        });
    }
    // Before any other thread exists, and before anything is started.
    let tools = mounts::set_up(state, &orders.tools, orders.keep_logs.as_deref())?;
    let fail =
        |error: std::io::Error| Error::Other(format!("failed to start the supervisor's runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(fail)?;
    let cluster = Arc::new(Cluster {
        parts: process::Parts::new(state.clone()),
        orders,
        state: state.clone(),
        tools,
        relays: relay::Relays::default(),
        begun,
        timings: std::sync::Mutex::default(),
        ready: AtomicBool::new(false),
        api_port: OnceCell::new(),
        node: OnceCell::new(),
        outside: OnceCell::new(),
        end: Notify::new(),
    });
    let result = runtime.block_on(serve(&cluster));
    cluster.parts.abandon();
    runtime.block_on(stop_starters(&cluster));
    runtime.shutdown_timeout(Duration::from_secs(1));
    clean_up(&cluster, result.is_err())?;
    result
}

/// From start to the wish to end.
async fn serve(cluster: &Arc<Cluster>) -> Result<()> {
    server::listen(cluster)?;
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let ended = async {
        tokio::select! {
            () = cluster.end.notified() => "asked to",
            () = lifeline_cut() => "its owner is gone",
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(ended);
    tokio::select! {
        why = &mut ended => {
            tracing::info!("ending before all was up: {why}");
            return Ok(());
        }
        result = start::all(cluster) => result?,
    }
    cluster.ready.store(true, Ordering::Release);
    say(&Event::Ready);
    let why = ended.await;
    tracing::info!("ending: {why}");
    Ok(())
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|error| Error::Other(format!("failed to listen for signals: {error}")))
}

/// Ends when the owner's end of our standard input is closed without a farewell: the owner finished, panicked or was
/// killed. An owner that said [`DETACH`] before lets the cluster live.
async fn lifeline_cut() {
    let (cut, was_cut) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        // A broken pipe is as much the owner's end as a closed one.
        let _ = std::io::stdin().take(DETACH.len() as u64).read_to_end(&mut said);
        let _ = cut.send(said == DETACH);
    });
    if was_cut.await.unwrap_or(false) {
        std::future::pending().await
    }
}

/// Ends the parts that would start others again. Nothing needs to end by itself: nothing of it survives.
async fn stop_starters(cluster: &Cluster) {
    // kubelet first, or it would start pods again.
    for part in [plan::KUBELET, plan::CONTAINERD] {
        if cluster.parts.status().contains_key(part) {
            let _ = cluster.parts.act(part, crate::control::Action::Kill).await;
        }
    }
}

/// Kills what is left, removes cgroups and the state folder.
fn clean_up(cluster: &Cluster, keep_state: bool) -> Result<()> {
    kill_everything()?;
    cgroup::remove(&cluster.orders.name)?;
    mounts::detach_all(&cluster.state);
    if cluster.orders.keep_logs.is_some() {
        crate::cluster::copy_files(&StateDir::inside().logs(), Path::new(mounts::KEPT_LOGS));
    }
    // After a failed start the owner still wants the logs; and what is still mounted must not be walked through.
    let remaining = mounts::remaining(&cluster.state);
    if keep_state || !remaining.is_empty() {
        return Ok(());
    }
    reap::remove_state(&cluster.orders.name, cluster.state.path())
}

/// Every process of the pid namespace but the first one and this one.
fn kill_everything() -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let others = other_processes();
        if others.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Other(format!("processes do not end: {others:?}")));
        }
        for pid in others {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As /proc of our own pid namespace lists them, zombies excepted: those are the first process's to bury.
fn other_processes() -> Vec<i32> {
    let own = Pid::this().as_raw();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| {
        entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
    });
    pids.filter(|pid| *pid != 1 && *pid != own && !is_zombie(*pid))
        .collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "PID (NAME) STATE …", where NAME may hold anything but the last parenthesis. A vanished one is as good.
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
