//! Runs other programs: whole output into a log file, a heartbeat meanwhile, an end at a time limit.
//!
//! The only file that starts processes for the other modules (`workspace` asks cargo once, before anything runs).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use vitrine_devcluster::cargo;

use crate::error::Error;
use crate::progress::Progress;

/// How often the time limit and the child's end are looked at.
const POLL: Duration = Duration::from_millis(100);
/// How long output may still come after the child's end: a grandchild that inherited the pipe can hold it open.
const DRAIN: Duration = Duration::from_secs(2);

/// A program to run.
pub struct Job {
    /// What it is, for messages and the heartbeat.
    pub what: String,
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it runs.
    pub directory: PathBuf,
    /// Variables it gets beside ours.
    pub env: Vec<(OsString, OsString)>,
    /// Where its output goes, overwritten.
    pub log: PathBuf,
    /// After how long it is killed.
    pub limit: Duration,
    /// Whether its standard output is for programs, and left out of the last lines that a person is shown.
    pub machine_output: bool,
}

/// How a program ended.
#[derive(Clone)]
pub struct Finished {
    /// Exit code 0.
    pub success: bool,
    /// How it ended, in words.
    pub how: String,
    /// What it wrote to standard output.
    pub stdout: String,
    /// The last lines of its output.
    pub tail: Vec<String>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Of a failed program, as many last lines are kept for the screen.
const TAIL_LINES: usize = 60;

#[derive(Clone, Copy, PartialEq)]
enum Stream {
    Out,
    Err,
}

impl Job {
    /// A job with nothing special about it.
    pub fn new(what: impl Into<String>, program: impl Into<OsString>, directory: &std::path::Path) -> Self {
        Self {
            what: what.into(),
            program: program.into(),
            args: Vec::new(),
            directory: directory.to_owned(),
            env: Vec::new(),
            log: PathBuf::new(),
            limit: Duration::from_secs(3600),
            machine_output: false,
        }
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Says where the output goes.
    pub fn log(mut self, path: PathBuf) -> Self {
        self.log = path;
        self
    }

    /// Says after how long it is killed.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Says that its standard output is for programs.
    pub fn machine_output(mut self) -> Self {
        self.machine_output = true;
        self
    }

    /// Runs it to its end. That it fails is in [`Finished`]; an error means that it could not be run.
    pub fn run(&self, progress: &Progress) -> Result<Finished, Error> {
        let mut log = File::create(&self.log).map_err(Error::file("create", &self.log))?;
        let began = Instant::now();
        let mut command = Command::new(&self.program);
        cargo::forget_package(&mut command);
        let mut child = command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start {
                program: self.program.to_string_lossy().into_owned(),
                source,
            })?;
        let lines = read_lines(&mut child);
        let mut output = Output {
            hide_stdout: self.machine_output,
            ..Output::default()
        };
        let mut last = String::new();
        let status = loop {
            match lines.recv_timeout(POLL) {
                Ok((stream, line)) => {
                    output.take(&mut log, stream, &line);
                    if stream == Stream::Err && !line.trim().is_empty() {
                        last = line.trim().to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
            }
            progress.activity(&format!("{} {last}", self.what), began);
            if let Some(status) = self.ended(&mut child)? {
                break Some(status);
            }
            if began.elapsed() > self.limit {
                // Only the child itself: what it started is its own to clean up, and was told so by its death.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        };
        let deadline = Instant::now() + DRAIN;
        while let Ok((stream, line)) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            output.take(&mut log, stream, &line);
        }
        Ok(Finished {
            success: status.is_some_and(|status| status.success()),
            how: status.map_or_else(
                || format!("killed after its limit of {}", crate::progress::clock(self.limit)),
                |status| status.to_string(),
            ),
            stdout: output.stdout,
            tail: output.tail,
            elapsed: began.elapsed(),
        })
    }

    fn ended(&self, child: &mut Child) -> Result<Option<ExitStatus>, Error> {
        child.try_wait().map_err(|source| Error::Start {
            program: self.program.to_string_lossy().into_owned(),
            source,
        })
    }
}

#[derive(Default)]
struct Output {
    hide_stdout: bool,
    stdout: String,
    tail: Vec<String>,
}

impl Output {
    fn take(&mut self, log: &mut File, stream: Stream, line: &str) {
        // A full disk fails what runs, in its own words; the log is only a help.
        let _ = writeln!(log, "{line}");
        if stream == Stream::Out {
            self.stdout.push_str(line);
            self.stdout.push('\n');
            if self.hide_stdout {
                return;
            }
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.remove(0);
        }
        self.tail.push(line.to_owned());
    }
}

fn read_lines(child: &mut Child) -> Receiver<(Stream, String)> {
    let (sender, receiver) = channel();
    if let Some(stdout) = child.stdout.take() {
        forward(Stream::Out, stdout, sender.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(Stream::Err, stderr, sender);
    }
    receiver
}

fn forward(stream: Stream, source: impl Read + Send + 'static, sender: Sender<(Stream, String)>) {
    // Never joined: it ends with the pipe, and the pipe may outlive the child (see DRAIN).
    std::thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\n', '\r'])
                .to_owned();
            if sender.send((stream, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(script: &str, name: &str) -> Job {
        let directory = std::env::temp_dir();
        let log = directory.join(format!("xtask-command-{}-{name}.log", std::process::id()));
        Job::new("a shell", "sh", &directory)
            .args(["-c", script])
            .log(log)
    }

    #[test]
    fn both_outputs_are_in_the_log_and_only_one_is_stdout() {
        let job = job("echo out; echo err >&2; exit 3", "both");
        let finished = job.run(&Progress::start()).unwrap();
        assert!(!finished.success);
        assert!(finished.how.contains('3'), "{}", finished.how);
        assert_eq!(finished.stdout, "out\n");
        let log = std::fs::read_to_string(&job.log).unwrap();
        assert!(log.contains("out\n") && log.contains("err\n"), "{log}");
        std::fs::remove_file(&job.log).unwrap();
    }

    #[test]
    fn a_program_over_its_limit_is_killed_and_said_so() {
        let job = job("exec sleep 60", "limit").limit(Duration::from_millis(200));
        let finished = job.run(&Progress::start()).unwrap();
        assert!(!finished.success);
        assert!(finished.how.contains("limit"), "{}", finished.how);
        assert!(finished.elapsed < Duration::from_secs(30));
        std::fs::remove_file(&job.log).unwrap();
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_does_not_hold_the_run() {
        let job = job("sleep 20 & echo started", "grandchild");
        let finished = job.run(&Progress::start()).unwrap();
        assert!(finished.success);
        assert_eq!(finished.stdout, "started\n");
        assert!(finished.elapsed < Duration::from_secs(15));
        std::fs::remove_file(&job.log).unwrap();
    }
}
