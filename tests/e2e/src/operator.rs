//! Runs the real operator as a process on this machine, where a test can kill it at any write. Starts and ends processes.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use vitrine_kit::{
    http,
    images::{self, Build},
    install::NAMESPACE,
};
use vitrine_parts::Port;

use crate::{eventually::eventually, proxy::Proxy, soak};

/// The group that every operator of a test is in, where the test binds the chart's roles to it.
pub const OPERATORS: &str = "vitrine-e2e:operators";
/// The namespace of the slots, as the chart has it.
pub const SLOTS: &str = "vitrine-slots";
/// The namespace of receipts without a preview, as the chart has it.
pub const RECEIPTS: &str = "vitrine-receipts";

/// A key for receipts that lasts, as `openssl genpkey -algorithm ed25519` writes it (RFC 8410, section 10.3).
pub const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";

/// Where an operator works, and as whom.
#[derive(Clone, Debug)]
pub struct Post {
    /// For kubeconfigs and logs.
    pub folder: PathBuf,
    /// The cluster's administrator's.
    pub kubeconfig: PathBuf,
    /// Vitrine's image, from which the probe runs.
    pub image: String,
    /// Where the unconfined prober is.
    pub prober: String,
    /// Where previews are, with `{label}`.
    pub url: Option<String>,
    /// As whom it acts.
    pub identity: Identity,
}

/// As whom an operator acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// As a user of its own in the group [`OPERATORS`], so that its writes can be told from those of others.
    Own,
    /// As the installed operator itself.
    Installed,
    /// The same, by this token of its own: nobody is impersonated, which costs the API server something.
    Token(String),
}

/// The operator's program, built once.
///
/// # Panics
/// If it does not compile.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if cfg!(debug_assertions) {
            // A soak runs for hours; unoptimised operators would have most of them for themselves.
            let build = if soak() { Build::Optimised } else { Build::Quick };
            images::operator_program(build).expect("the operator compiles")
        } else {
            // A bench, which is compiled for speed, measures what is compiled so too; `cargo xtask bench` compiles both at once.
            images::target().join("release/vitrine-operator")
        }
    })
}

/// An empty folder for the logs and kubeconfigs of a test.
///
/// # Panics
/// If it cannot be made.
pub fn folder(test: &str) -> PathBuf {
    let folder = images::workspace().join("target/vitrine/e2e").join(test);
    // What an earlier run has left; there may be nothing.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for logs");
    folder
}

/// How an operator is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: its identity as a candidate for leadership, and what its writes show up under.
    pub name: String,
    /// Whether one operator at a time works.
    pub leader_elect: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl Options {
    /// One that works at once, whoever else does.
    pub fn alone(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            leader_elect: false,
            arguments: vec![],
        }
    }

    /// One of several of which one at a time works.
    pub fn electing(name: &str) -> Self {
        Self {
            leader_elect: true,
            ..Self::alone(name)
        }
    }

    /// The same with further arguments.
    pub fn with<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
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
    /// Nobody else gets it while the operator is on its way to it.
    _port: Port,
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
    pub fn start(post: &Post, options: &Options, proxy: Option<&Proxy>) -> Self {
        let kubeconfig = post.folder.join(format!("{}.kubeconfig", options.name));
        std::fs::write(&kubeconfig, kubeconfig_of(post, options, proxy)).expect("the kubeconfig is written");
        let log = post.folder.join(format!("{}.log", options.name));
        let log_file = File::options().create(true).append(true).open(&log);
        let port = Port::take();
        let address = port.address;
        let child = Command::new(program())
            .args(["run", "--namespace", NAMESPACE])
            .args(["--slots-namespace", SLOTS, "--image", &post.image])
            // They are the chart's, and these operators have no chart; those of `tests/admission/` have.
            .args(["--admission-policies=false", "--profile=development"])
            // Fake nodes resolve nothing.
            .arg("--dns-service=")
            .args(&options.arguments)
            .args(["--identity", &options.name])
            .arg(format!("--leader-elect={}", options.leader_elect))
            .args(["--prober-url", &post.prober])
            .args(post.url.iter().map(|url| format!("--preview-url={url}")))
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
            _port: port,
        }
    }

    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn ready(post: &Post, options: &Options, proxy: Option<&Proxy>) -> Self {
        let operator = Self::start(post, options, proxy);
        eventually(
            "the operator is ready",
            Duration::from_secs(20),
            async || match operator.get("/readyz").await {
                Some(answer) if answer.status == 200 => Ok(()),
                other => Err(format!("{other:?}\n{}", operator.last_words())),
            },
        )
        .await;
        operator
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.victim.0.lock().unwrap_or_else(PoisonError::into_inner).id()
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
    pub async fn get(&self, path: &str) -> Option<http::Answer> {
        http::get(self.address, "operator", path).await.ok()
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
fn kubeconfig_of(post: &Post, options: &Options, proxy: Option<&Proxy>) -> String {
    let text = std::fs::read_to_string(&post.kubeconfig).expect("the cluster has a kubeconfig");
    let mut config: Value = serde_yaml::from_str(&text).expect("a kubeconfig is YAML");
    if let Some(proxy) = proxy {
        let file = post.folder.join(format!("{}.crt", options.name));
        std::fs::write(&file, &proxy.certificate).expect("the certificate is written");
        config["clusters"][0]["cluster"] =
            json!({"server": format!("https://{}", proxy.address), "certificate-authority": file});
        config["users"][0]["user"] = json!({});
    }
    let me = &mut config["users"][0]["user"];
    match &post.identity {
        Identity::Own => {
            me["as"] = json!(user(&options.name));
            me["as-groups"] = json!([OPERATORS, "system:authenticated"]);
        }
        // Its groups are the API server's to add (Kubernetes, "User impersonation").
        Identity::Installed => {
            me["as"] = json!(format!("system:serviceaccount:{NAMESPACE}:vitrine-operator"));
        }
        Identity::Token(token) => *me = json!({"token": token}),
    }
    config.to_string()
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
