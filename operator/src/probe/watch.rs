//! The sidecar: a round every second for the preview's life. On a breach it leaves its last words and ends, and its port,
//! which is the seller's liveness, with it: the kubelet kills the seller, with or without an operator. One that the
//! kubelet starts anew never vouches for the cell again.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, MissedTickBehavior, interval},
};
use vitrine_policies::{
    names,
    probe::{Judgement, LISTEN_PATIENCE_SECONDS, Orders, Outcome, WATCH_LIFE},
};
use vitrine_program::{NotServed, listen, until_told};

use super::{
    round::{self, Patience, Ports, Round},
    say,
};
use crate::{
    error::{Error, Result},
    preview::observe::{BREACH, RESTARTED, UNPROVEN},
};

/// Begin to begin of two rounds. The exposure bound that is promised is 2 s.
const PERIOD: Duration = Duration::from_secs(1);
/// How long nothing can be proven either way (the responder is being restarted, say) before the preview ends.
const UNPROVEN_LIMIT: Duration = Duration::from_secs(15);

/// Ports from which the canary is looked for, one after the other. The node's connection tracking leads all that comes from one port
/// to the same responder for as long as nobody answers (two minutes after the last try, `nf_conntrack_tcp_timeout_syn_sent`): from
/// a single port a responder whose machine died would be looked for until the preview ends, with another one beside it.
const CANARY_SOURCES: usize = 32;

/// What the sidecar leaves in [`WATCH_LIFE`] when it begins its only life.
const BEGUN: &str = "begun";

/// Watches until told to stop, or until isolation is broken or can no longer be shown.
///
/// # Errors
/// Then. If its ports are taken: somebody ran before it.
pub(super) async fn run(orders: Orders) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, names::WATCH_PORT));
    if !first_life(Path::new(WATCH_LIFE))? {
        // Nobody looked in between, and what got out is out.
        say(RESTARTED)?;
        return serve(
            address,
            StatusCode::SERVICE_UNAVAILABLE,
            "",
            std::future::pending(),
        )
        .await;
    }
    // Everything that is ever needed is taken now, while nothing of the seller runs. `prove` has just seen isolation hold;
    // the first round here begins at once.
    let (held, ports) = hold(CANARY_SOURCES + orders.targets.len())?;
    let broken = serve(address, StatusCode::OK, &orders.nonce, rounds(&orders, &ports)).await;
    drop(held);
    broken
}

/// Answers the seller's liveness, and the gateway who asks whether this is the pod that it means, until told to stop or `work` is
/// done.
async fn serve(
    address: SocketAddr,
    status: StatusCode,
    nonce: &str,
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    let listener = listen(address).await?;
    let answer = (status, nonce.to_owned());
    let router = Router::new().route(
        names::SEALED_PATH,
        get(move || std::future::ready(answer.clone())),
    );
    let server = async { axum::serve(listener, router).await };
    tokio::select! {
        served = server => Ok(served.map_err(|source| NotServed { address, source })?),
        done = work => done,
        () = until_told() => Ok(()),
    }
}

/// Whether no sidecar of this pod has begun before. The folder is a volume of the pod that only the sidecar has.
fn first_life(folder: &Path) -> Result<bool> {
    match std::fs::File::create_new(folder.join(BEGUN)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::Setting(format!(
            "failed to write to {}: {error}: the operator mounts it for the sidecar",
            folder.display()
        ))),
    }
}

/// Waits until the sidecar listens, which it does last: the post-start hook that lets the product start.
///
/// # Errors
/// If it does not within a few seconds.
pub(super) async fn until_it_listens() -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, names::WATCH_PORT));
    let deadline = Instant::now() + Duration::from_secs(LISTEN_PATIENCE_SECONDS.into());
    loop {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                round::hang_up(stream);
                return Ok(());
            }
            Err(source) if Instant::now() > deadline => return Err(NotServed { address, source }.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Rounds without end; an error once isolation is broken or can no longer be shown, said before.
async fn rounds(orders: &Orders, ports: &[u16]) -> Result<()> {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut proven = Instant::now();
    let (canaries, targets) = ports.split_at(CANARY_SOURCES);
    for canary in canaries.iter().cycle() {
        ticks.tick().await;
        let ports = [&[*canary], targets].concat();
        let round = round::go(orders, Ports::Held(&ports), Patience::UntilALeak).await;
        match round.judgement {
            Judgement::Isolated => proven = Instant::now(),
            Judgement::Unproven if proven.elapsed() < UNPROVEN_LIMIT => {
                tracing::warn!("unproven: {}", trouble(&round));
            }
            judgement => {
                let what = match judgement {
                    Judgement::Leaking => BREACH.to_owned(),
                    _ => format!("{UNPROVEN} for {UNPROVEN_LIMIT:?}"),
                };
                let words = format!("{what}: {}", trouble(&round));
                say(&words)?;
                return Err(Error::Setting(words));
            }
        }
    }
    Ok(())
}

fn trouble(round: &Round) -> String {
    let mut words: Vec<_> = round
        .seen
        .iter()
        .filter(|s| s.required && !matches!(s.outcome, Outcome::Shut(_)))
        .map(|s| format!("{} ({}) {}", s.name, s.address, s.outcome.words()))
        .collect();
    if !round.ipv6.is_empty() {
        words.push(format!("IPv6 addresses: {}", round.ipv6.join(", ")));
    }
    if !round.canary {
        words.push("the canary does not answer".to_owned());
    }
    words.join("; ")
}

/// Binds a source port for each attempt of a round and keeps it. The kernel shares a port only among sockets of one uid
/// (`SO_REUSEPORT`), and the seller runs under another.
fn hold(count: usize) -> Result<(Vec<TcpSocket>, Vec<u16>)> {
    let mut held = vec![];
    let mut ports = vec![];
    for port in (names::SOURCE_FIRST..).take(count) {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let bind = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.set_reuseport(true)?;
            socket.bind(address)?;
            Ok(socket)
        };
        held.push(bind().map_err(|source| NotServed { address, source })?);
        ports.push(port);
    }
    Ok((held, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_lives_once() {
        let folder = std::env::temp_dir().join(format!("vitrine-watch-{}", std::process::id()));
        assert!(
            first_life(&folder).is_err(),
            "without its folder it does not begin"
        );
        std::fs::create_dir(&folder).unwrap();
        let (first, second) = (first_life(&folder), first_life(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(first.unwrap());
        assert!(!second.unwrap());
    }
}
