//! Runs the real operator as a process on this machine, against a cluster whose nodes run nothing. Starts and ends processes.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    eventually::eventually,
    house::{House, OPERATORS},
    proxy::Proxy,
};

/// How an operator is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: its identity as a candidate for leadership, and what its writes show up under.
    pub name: String,
    /// Whether one operator at a time works.
    pub leader_elect: bool,
}

impl Options {
    /// One that works at once, whoever else does.
    pub fn alone(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            leader_elect: false,
        }
    }
}

/// A running operator. Killed when it is dropped.
pub struct Operator {
    victim: Victim,
    /// Where it answers.
    pub address: SocketAddr,
    /// The user that its writes show up under.
    pub user: String,
    log: PathBuf,
}

/// The handle by which an operator can be killed.
#[derive(Clone)]
pub struct Victim(Arc<Mutex<Child>>);

impl Victim {
    /// As `kill -9`; returns when the process is gone.
    pub fn kill(&self) {
        let mut child = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The user that an operator's writes show up under.
pub fn user(name: &str) -> String {
    format!("vitrine-e2e:{name}")
}

impl Operator {
    /// Starts one, through a proxy if there is one. Does not wait for it to be ready.
    ///
    /// # Panics
    /// If it cannot be started: then no test can go on.
    pub fn start(house: &House, options: &Options, proxy: Option<&Proxy>) -> Self {
        let folder = house.folder();
        let kubeconfig = folder.join(format!("{}.kubeconfig", options.name));
        std::fs::write(&kubeconfig, kubeconfig_of(house, options, proxy)).expect("the kubeconfig is written");
        let log = folder.join(format!("{}.log", options.name));
        let log_file = File::options().create(true).append(true).open(&log);
        let address = free_port();
        let child = Command::new(house.program())
            .args(["run", "--namespace", vitrine_kit::install::NAMESPACE])
            .args(["--slots-namespace", house.slots(), "--image", house.image()])
            .args(["--identity", &options.name])
            .arg(format!("--leader-elect={}", options.leader_elect))
            .args(["--prober-url", house.prober()])
            .arg(format!("--listen={address}"))
            .env("KUBECONFIG", &kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file.expect("the log is opened"))
            .spawn()
            .expect("the operator starts");
        Self {
            victim: Victim(Arc::new(Mutex::new(child))),
            address,
            user: user(&options.name),
            log,
        }
    }

    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn ready(house: &House, options: &Options, proxy: Option<&Proxy>) -> Self {
        let operator = Self::start(house, options, proxy);
        eventually(
            "the operator is ready",
            Duration::from_secs(20),
            async || match operator.get("/readyz") {
                Some((200, _)) => Ok(()),
                other => Err(format!("{other:?}\n{}", operator.last_words())),
            },
        )
        .await;
        operator
    }

    /// By what it can be killed.
    pub fn victim(&self) -> Victim {
        self.victim.clone()
    }

    /// As `kill -9`.
    pub fn kill(&self) {
        self.victim.kill();
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn terminate(&self, patience: Duration) -> ExitStatus {
        let mut child = self.victim.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = i32::try_from(child.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("the operator can be told to end");
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("the operator can be waited for") {
                return status;
            }
            assert!(
                begun.elapsed() < patience,
                "the operator runs on {} s after SIGTERM:\n{}",
                patience.as_secs(),
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        let mut child = self.victim.0.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(child.try_wait(), Ok(None))
    }

    /// Status and body of one of its pages; `None` while nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.address, path)
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        last_lines(&self.log, 15)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The administrator's kubeconfig, acting as the operator; through the proxy, which has the administrator's key itself.
fn kubeconfig_of(house: &House, options: &Options, proxy: Option<&Proxy>) -> String {
    let text = std::fs::read_to_string(house.cluster.kubeconfig()).expect("the cluster has a kubeconfig");
    let mut config: Value = serde_yaml::from_str(&text).expect("a kubeconfig is YAML");
    if let Some(proxy) = proxy {
        let file = house.folder().join("proxy.crt");
        std::fs::write(&file, &proxy.certificate).expect("the certificate is written");
        config["clusters"][0]["cluster"] =
            json!({"server": format!("https://{}", proxy.address), "certificate-authority": file});
        config["users"][0]["user"] = json!({});
    }
    let me = &mut config["users"][0]["user"];
    me["as"] = json!(user(&options.name));
    me["as-groups"] = json!([OPERATORS, "system:authenticated"]);
    config.to_string()
}

/// One HTTP GET, short and without keeping the connection.
pub fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a listener has an address")
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
