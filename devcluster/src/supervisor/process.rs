//! Runs short commands, and keeps the parts of the cluster running. Starts and signals processes of the cluster's
//! own pid namespace only.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use crate::control::{Action, ComponentState, ComponentStatus, Output};
use crate::error::{Error, Result, last_lines, tail_of};
use crate::paths::StateDir;

/// How long a part may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How long after an unexpected end a part is started again: as quick as a service manager's default.
const RESTART_DELAY: Duration = Duration::from_millis(500);
/// Lines of a log in an error.
const TAIL: usize = 15;

/// Runs a command to its end and fails if it does.
pub(crate) async fn run(argv: &[&str], stdin: Option<&str>) -> Result<Output> {
    let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
    let output = output(&argv, stdin, &[]).await?;
    if output.code == 0 {
        return Ok(output);
    }
    let said = last_lines(&output.stderr, 8);
    Err(Error::Command {
        command: argv.join(" "),
        detail: format!("exit code {}: {}", output.code, said.trim_end()),
    })
}

/// Runs a command to its end, whatever that is.
pub(crate) async fn output(argv: &[String], stdin: Option<&str>, env: &[(String, String)]) -> Result<Output> {
    let fail = |detail: String| Error::Command {
        command: argv.join(" "),
        detail,
    };
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| fail("the command line is empty".to_owned()))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(env.iter().cloned())
        .kill_on_drop(true);
    command.stdin(if stdin.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| fail(error.to_string()))?;
    let input = child.stdin.take().zip(stdin.map(str::to_owned));
    let feed = async move {
        if let Some((mut pipe, text)) = input {
            // A command that does not read its input is no failure.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
    };
    let ((), result) = tokio::join!(feed, child.wait_with_output());
    let result = result.map_err(|error| fail(error.to_string()))?;
    Ok(Output {
        code: exit_code(result.status),
        stdout: String::from_utf8_lossy(&result.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&result.stderr).into_owned(),
    })
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// How a part is started.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
}

#[derive(Debug)]
struct Part {
    spec: Spec,
    state: ComponentState,
    pid: Option<Pid>,
    restarts: u32,
    /// Raised with every start and every order, so that a late restart notices that it is no longer wanted.
    generation: u64,
}

/// All parts of the cluster.
#[derive(Clone)]
pub(crate) struct Parts {
    parts: Arc<Mutex<BTreeMap<&'static str, Part>>>,
    changed: Arc<Notify>,
    /// The state folder as this machine sees it, for messages.
    shown: StateDir,
}

impl Parts {
    pub(crate) fn new(shown: StateDir) -> Self {
        Self {
            parts: Arc::default(),
            changed: Arc::default(),
            shown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a part for the first time.
    pub(crate) fn start(&self, spec: Spec) -> Result<()> {
        let name = spec.name;
        let part = Part {
            spec,
            state: ComponentState::Stopped,
            pid: None,
            restarts: 0,
            generation: 0,
        };
        self.lock().insert(name, part);
        self.spawn(name)
    }

    fn spawn(&self, name: &'static str) -> Result<()> {
        let mut parts = self.lock();
        let part = parts.get_mut(name).ok_or_else(|| unknown(name, &[]))?;
        let fail = |detail: String| Error::Command {
            command: part.spec.argv.join(" "),
            detail,
        };
        let log = log_of(name);
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("open", &log))?;
        let err = out.try_clone().map_err(Error::file("open", &log))?;
        let (program, arguments) = part
            .spec
            .argv
            .split_first()
            .ok_or_else(|| fail("empty".to_owned()))?;
        let mut command = Command::new(program);
        command.args(arguments).envs(part.spec.env.iter().cloned());
        // A process group of its own: a signal to the supervisor's group is for the supervisor.
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0);
        let child = command.spawn().map_err(|error| fail(error.to_string()))?;
        part.pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .map(Pid::from_raw);
        part.state = ComponentState::Running;
        part.generation += 1;
        let generation = part.generation;
        drop(parts);
        tokio::spawn(self.clone().attend(name, generation, child));
        self.changed.notify_waiters();
        Ok(())
    }

    /// Waits for the end of one process of a part, and starts it again if nobody asked for that end.
    async fn attend(self, name: &'static str, generation: u64, mut child: Child) {
        let status = child.wait().await;
        let unexpected = {
            let mut parts = self.lock();
            let Some(part) = parts.get_mut(name) else { return };
            if part.generation != generation {
                part.pid = None;
                false
            } else {
                part.pid = None;
                part.state = ComponentState::Failed;
                part.restarts += 1;
                true
            }
        };
        self.changed.notify_waiters();
        if !unexpected {
            return;
        }
        tracing::warn!(component = name, ?status, "ended unexpectedly");
        tokio::time::sleep(RESTART_DELAY).await;
        let still_wanted = self
            .lock()
            .get(name)
            .is_some_and(|part| part.generation == generation);
        if still_wanted && let Err(error) = self.spawn(name) {
            tracing::error!(component = name, "cannot be started again: {error}");
        }
    }

    /// Carries out an order.
    pub(crate) async fn act(&self, name: &str, action: Action) -> Result<()> {
        let name = {
            let parts = self.lock();
            let known: Vec<&str> = parts.keys().copied().collect();
            parts
                .get_key_value(name)
                .map(|(name, _)| *name)
                .ok_or_else(|| unknown(name, &known))?
        };
        match action {
            Action::Start if self.pid(name).is_some() => Ok(()),
            Action::Start => self.spawn(name),
            Action::Stop => self.end(name, Signal::SIGTERM).await,
            Action::Kill => self.end(name, Signal::SIGKILL).await,
            Action::Pause => self.signal(name, Signal::SIGSTOP, Some(ComponentState::Paused)),
            Action::Resume => self.signal(name, Signal::SIGCONT, Some(ComponentState::Running)),
            Action::Restart => {
                self.end(name, Signal::SIGTERM).await?;
                self.spawn(name)
            }
        }
    }

    fn pid(&self, name: &str) -> Option<Pid> {
        self.lock().get(name).and_then(|part| part.pid)
    }

    fn signal(&self, name: &str, signal: Signal, then: Option<ComponentState>) -> Result<()> {
        let mut parts = self.lock();
        let part = parts.get_mut(name).ok_or_else(|| unknown(name, &[]))?;
        let pid = part
            .pid
            .ok_or_else(|| Error::Other(format!("component {name} is not running")))?;
        kill(pid, signal)
            .map_err(|error| Error::Other(format!("failed to send {signal} to {name}: {error}")))?;
        if let Some(state) = then {
            part.state = state;
        }
        Ok(())
    }

    /// Ends a part and leaves it down.
    async fn end(&self, name: &'static str, signal: Signal) -> Result<()> {
        {
            let mut parts = self.lock();
            let part = parts.get_mut(name).ok_or_else(|| unknown(name, &[]))?;
            let was_paused = part.state == ComponentState::Paused;
            part.state = ComponentState::Stopped;
            part.generation += 1;
            let Some(pid) = part.pid else { return Ok(()) };
            // A process that ends in this very moment is as good.
            let _ = kill(pid, signal);
            if was_paused {
                let _ = kill(pid, Signal::SIGCONT);
            }
        }
        if tokio::time::timeout(STOP_DEADLINE, self.gone(name))
            .await
            .is_err()
        {
            tracing::warn!(component = name, "does not end on {signal}: killing it");
            let _ = self.signal(name, Signal::SIGKILL, None);
            let killed = tokio::time::timeout(STOP_DEADLINE, self.gone(name)).await;
            killed.map_err(|_| Error::Other(format!("component {name} does not end, not even killed")))?;
        }
        Ok(())
    }

    async fn gone(&self, name: &str) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.pid(name).is_none() {
                return;
            }
            changed.await;
        }
    }

    /// From now on no part is started again, however it ends.
    pub(crate) fn abandon(&self) {
        for part in self.lock().values_mut() {
            part.state = ComponentState::Stopped;
            part.generation += 1;
        }
    }

    /// An error that shows the end of a part's log.
    pub(crate) fn error(&self, name: &str, what: impl Into<String>) -> Error {
        let tail = tail_of(&log_of(name), TAIL);
        Error::Component {
            component: name.to_owned(),
            what: what.into(),
            tail,
            log: self.shown.log(name),
        }
    }

    /// Fails if a part ended by itself: during the start that is never a passing trouble worth hiding.
    pub(crate) fn check(&self, name: &'static str) -> Result<()> {
        let restarts = self.lock().get(name).map_or(0, |part| part.restarts);
        if restarts > 0 {
            Err(self.error(name, "ended by itself"))
        } else {
            Ok(())
        }
    }

    /// How all parts are.
    pub(crate) fn status(&self) -> BTreeMap<String, ComponentStatus> {
        let of = |part: &Part| ComponentStatus {
            state: part.state,
            pid: part.pid.map(Pid::as_raw),
            restarts: part.restarts,
        };
        self.lock()
            .iter()
            .map(|(name, part)| ((*name).to_owned(), of(part)))
            .collect()
    }
}

fn log_of(name: &str) -> PathBuf {
    StateDir::inside().log(name)
}

fn unknown(name: &str, known: &[&str]) -> Error {
    Error::Other(format!(
        "no component {name:?} in this cluster: it has {}",
        known.join(", ")
    ))
}
