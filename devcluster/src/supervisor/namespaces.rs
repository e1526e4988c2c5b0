//! The cluster's network namespaces. Changes the network of those two namespaces only; this machine's network is
//! untouched and has no route into them.
//!
//! Programs enter a namespace by `nsenter --net=`, never by `ip netns exec`: that one mounts a fresh /sys, which
//! hides the cgroups. Our own sockets are made on a thread that lives in the namespace: a socket belongs to the
//! namespace it was made in, wherever it is used later.

use std::fs::File;
use std::io;
use std::net::SocketAddr;

use nix::sched::{CloneFlags, setns};
use tokio::sync::{mpsc, oneshot};

use super::process;
use crate::config::{INTERNET_ADDRESS, METADATA_ADDRESS, NODE_ADDRESS, OUTSIDE_ADDRESS, POD_CIDR};
use crate::error::{Error, Result};

/// The node's namespace.
pub(crate) const NODE: &str = "node";
/// The namespace of the outside world.
pub(crate) const OUTSIDE: &str = "outside";

/// The command line that runs a program in a namespace.
pub(crate) fn enter(namespace: &str) -> Vec<String> {
    vec![
        "nsenter".to_owned(),
        format!("--net=/run/netns/{namespace}"),
        "--".to_owned(),
    ]
}

/// Makes both namespaces and the link between them.
pub(crate) async fn set_up() -> Result<()> {
    process::run(
        &["ip", "-batch", "-"],
        Some("netns add node\nnetns add outside\n"),
    )
    .await?;
    // Before any link is up, so that no link-local address ever exists: the policy controller programs IPv4 only.
    for namespace in [NODE, OUTSIDE] {
        let namespace = Namespace::open(namespace)?;
        for scope in ["all", "default"] {
            namespace
                .write_if_present(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1")
                .await?;
        }
        namespace
            .write_if_present("/proc/sys/net/ipv4/ip_forward", "1")
            .await?;
    }
    let node = format!(
        "link set lo up\n\
         link add eth0 type veth peer name wan0 netns {OUTSIDE}\n\
         addr add {NODE_ADDRESS}/24 dev eth0\n\
         link set eth0 up\n\
         route add default via {OUTSIDE_ADDRESS}\n"
    );
    process::run(&["ip", "-netns", NODE, "-batch", "-"], Some(&node)).await?;
    let outside = format!(
        "link set lo up\n\
         addr add {OUTSIDE_ADDRESS}/24 dev wan0\n\
         addr add {INTERNET_ADDRESS}/32 dev lo\n\
         addr add {METADATA_ADDRESS}/32 dev lo\n\
         link set wan0 up\n\
         route add {POD_CIDR} via {NODE_ADDRESS}\n"
    );
    process::run(&["ip", "-netns", OUTSIDE, "-batch", "-"], Some(&outside)).await?;
    Ok(())
}

/// Lets iptables see what passes between two pods on one bridge: without it a policy does not hold there.
pub(crate) async fn filter_bridges(node: &Namespace) -> Result<()> {
    node.write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
        .await
}

enum Job {
    Connect(SocketAddr, oneshot::Sender<io::Result<std::net::TcpStream>>),
    ListenTcp(SocketAddr, oneshot::Sender<io::Result<std::net::TcpListener>>),
    ListenUdp(SocketAddr, oneshot::Sender<io::Result<std::net::UdpSocket>>),
    Write(String, String, oneshot::Sender<io::Result<()>>),
}

/// A thread in a network namespace that makes sockets for others.
#[derive(Clone)]
pub(crate) struct Namespace {
    name: String,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Namespace {
    /// Starts the thread.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        let (jobs, receiver) = mpsc::unbounded_channel();
        let fail =
            |error: io::Error| Error::Other(format!("failed to enter the network namespace {name}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(fail)?;
        let (entered, answer) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("netns-{name}"));
        thread
            .spawn(move || {
                let result = setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
                let ok = result.is_ok();
                let _ = entered.send(result);
                if ok {
                    runtime.block_on(serve(receiver));
                }
            })
            .map_err(fail)?;
        match answer.recv() {
            Ok(result) => result.map_err(fail)?,
            Err(_) => return Err(fail(io::ErrorKind::BrokenPipe.into())),
        }
        Ok(Self {
            name: name.to_owned(),
            jobs,
        })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.jobs.send(job(sender));
        receiver
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the namespace's thread ended")))
    }

    /// Connects from inside the namespace.
    pub(crate) async fn connect(&self, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let stream = self.ask(|sender| Job::Connect(to, sender)).await?;
        tokio::net::TcpStream::from_std(stream)
    }

    /// Listens inside the namespace.
    pub(crate) async fn listen_tcp(&self, at: SocketAddr) -> Result<tokio::net::TcpListener> {
        let listener = self.ask(|sender| Job::ListenTcp(at, sender)).await;
        listener
            .and_then(tokio::net::TcpListener::from_std)
            .map_err(|error| self.cannot_listen(at, &error))
    }

    /// Receives datagrams inside the namespace.
    pub(crate) async fn listen_udp(&self, at: SocketAddr) -> Result<tokio::net::UdpSocket> {
        let socket = self.ask(|sender| Job::ListenUdp(at, sender)).await;
        socket
            .and_then(tokio::net::UdpSocket::from_std)
            .map_err(|error| self.cannot_listen(at, &error))
    }

    fn cannot_listen(&self, at: SocketAddr, error: &io::Error) -> Error {
        Error::Other(format!(
            "failed to listen on {at} in the network namespace {}: {error}",
            self.name
        ))
    }

    /// Writes a file whose content belongs to the namespace (a sysctl).
    pub(crate) async fn write(&self, path: impl Into<String>, text: &str) -> Result<()> {
        let path = path.into();
        let result = self
            .ask(|sender| Job::Write(path.clone(), text.to_owned(), sender))
            .await;
        result.map_err(Error::file("write", path))
    }

    /// Like [`Namespace::write`], for what a kernel may not have at all.
    pub(crate) async fn write_if_present(&self, path: impl Into<String>, text: &str) -> Result<()> {
        match self.write(path, text).await {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

async fn serve(mut jobs: mpsc::UnboundedReceiver<Job>) {
    // Who asked may have given up; then the answer is dropped.
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Connect(to, answer) => {
                tokio::spawn(async move {
                    let stream = tokio::net::TcpStream::connect(to).await;
                    let _ = answer.send(stream.and_then(tokio::net::TcpStream::into_std));
                });
            }
            Job::ListenTcp(at, answer) => {
                let listener = tokio::net::TcpListener::bind(at).await;
                let _ = answer.send(listener.and_then(tokio::net::TcpListener::into_std));
            }
            Job::ListenUdp(at, answer) => {
                let socket = tokio::net::UdpSocket::bind(at).await;
                let _ = answer.send(socket.and_then(tokio::net::UdpSocket::into_std));
            }
            Job::Write(path, text, answer) => {
                let _ = answer.send(std::fs::write(path, text));
            }
        }
    }
}
