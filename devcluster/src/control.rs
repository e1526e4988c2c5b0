//! What a cluster's supervisor and those who ask it say to each other: the events of its start on its standard
//! output, and requests on its control socket. Newline-delimited JSON. Opens the socket; changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::Level;
use crate::error::{Error, Result};
use crate::tools::Tools;

/// What the owner leaves in the state folder for the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) name: String,
    pub(crate) level: Level,
    pub(crate) fake_nodes: u32,
    pub(crate) unthrottled: bool,
    pub(crate) api_port: u16,
    pub(crate) keep_logs: Option<std::path::PathBuf>,
    pub(crate) tools: Tools,
}

/// What the supervisor says while it starts, one line each on its standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// It holds the cluster's lock: nobody else will start or reap this cluster.
    Locked,
    /// Another supervisor holds the lock.
    Taken,
    /// A step began.
    Started { what: String, index: usize, of: usize },
    /// A step ended well.
    Finished {
        what: String,
        index: usize,
        of: usize,
        seconds: f64,
    },
    /// All is up.
    Ready,
    /// It gave up and ends.
    Broken { detail: String },
}

/// What the owner writes on the supervisor's standard input to let the cluster live on without it. Until then the end
/// of that pipe is the end of the cluster.
pub(crate) const DETACH: &[u8] = b"detach\n";

/// What is done to a part of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Ask it to end (SIGTERM), insist after a while, and leave it down.
    Stop,
    /// Start it again.
    Start,
    /// SIGKILL, and leave it down.
    Kill,
    /// SIGSTOP: it is there and does nothing.
    Pause,
    /// SIGCONT.
    Resume,
    /// Stop and start.
    Restart,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the node's network namespace: its addresses, iptables, conntrack.
    Node,
    /// In the network namespace of the outside world.
    Outside,
    /// With the cluster's mounts and processes, and this machine's own network.
    HostMounts,
}

/// A request to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Request {
    Status,
    Down,
    Component {
        name: String,
        action: Action,
    },
    Exec {
        place: Place,
        argv: Vec<String>,
        stdin: Option<String>,
    },
    ImportImage {
        file: String,
        name: String,
        /// If there is one with this digest, nothing is done.
        digest: Option<String>,
    },
    Hits,
    Forward {
        listen: u16,
        target: SocketAddr,
    },
    Unforward {
        listen: u16,
    },
    Expose {
        place: Place,
        listen: SocketAddr,
        target: SocketAddr,
    },
}

/// The supervisor's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", content = "body", rename_all = "kebab-case")]
pub(crate) enum Reply {
    Status(Status),
    Done,
    Output(Output),
    Hits(Hits),
    Port { port: u16 },
    Failed { message: String },
}

/// How a cluster is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// How much of Kubernetes it runs.
    pub level: Level,
    /// Whether its start is complete.
    pub ready: bool,
    /// The API server's port on 127.0.0.1 of this machine.
    pub api_port: u16,
    /// How long it took to come up.
    pub timings: Timings,
    /// Its parts by name.
    pub components: BTreeMap<String, ComponentStatus>,
    /// Ports of 127.0.0.1 that lead into the cluster.
    pub forwards: BTreeMap<u16, SocketAddr>,
    /// What listens inside and leads to this machine, as (where, target).
    pub exposed: Vec<(SocketAddr, SocketAddr)>,
}

/// Seconds from the supervisor's first instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Until the API server's `/readyz`.
    pub api_ready_seconds: Option<f64>,
    /// Until the node's condition Ready.
    pub node_ready_seconds: Option<f64>,
    /// Until everything.
    pub ready_seconds: Option<f64>,
}

/// How one part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Running, paused, stopped or failed.
    pub state: ComponentState,
    /// Its process, as the cluster's own process namespace numbers it.
    pub pid: Option<i32>,
    /// How often it ended without being asked to, and was started again.
    pub restarts: u32,
}

/// A part's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ComponentState {
    /// Its process lives.
    Running,
    /// Its process lives and is stopped by SIGSTOP.
    Paused,
    /// It was asked to end.
    Stopped,
    /// It ended by itself and is about to be started again.
    Failed,
}

/// What a command said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// What reached the outside world.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// The newest connections and datagrams, oldest first. Bounded: see `dropped`.
    pub recent: Vec<Hit>,
    /// How many there were since the cluster started.
    pub total: u64,
    /// How many of them are no longer in `recent`.
    pub dropped: u64,
}

/// One connection, or one datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// Its number, from 1.
    pub id: u64,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// When it was accepted, milliseconds since 1970.
    pub at_ms: u64,
    /// Who came.
    pub source: SocketAddr,
    /// To which of the outside world's addresses.
    pub destination: SocketAddr,
    /// How many bytes it sent so far.
    pub bytes: u64,
    /// When the last of them came, milliseconds since 1970.
    pub last_byte_ms: Option<u64>,
    /// Whether it is still open.
    pub open: bool,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Connects to a Unix socket however long its path is: the kernel takes 108 bytes, so the way leads through the
/// folder's descriptor.
pub(crate) fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(folder)?;
    UnixStream::connect(
        Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name),
    )
}

/// One request, one answer.
pub(crate) fn ask(name: &str, socket: &Path, request: &Request) -> Result<Reply> {
    let fail = |detail: String| Error::Control {
        name: name.to_owned(),
        detail,
    };
    let mut stream = connect(socket).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Error::NotRunning {
            name: name.to_owned(),
        },
        _ => fail(error.to_string()),
    })?;
    let mut line = serde_json::to_vec(request).map_err(|error| fail(error.to_string()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(|error| fail(error.to_string()))?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .map_err(|error| fail(error.to_string()))?;
    if answer.is_empty() {
        return Err(fail("it ended before it answered".to_owned()));
    }
    match serde_json::from_str(&answer)
        .map_err(|error| fail(format!("unreadable answer ({error}): {answer}")))?
    {
        Reply::Failed { message } => Err(Error::Refused {
            name: name.to_owned(),
            message,
        }),
        reply => Ok(reply),
    }
}
