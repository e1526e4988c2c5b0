//! The sidecar: a round every 1.5 s for the preview's life. On a breach it says so on its port, which is the seller's
//! liveness: the kubelet kills the seller, with or without an operator.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::{Instant, MissedTickBehavior, interval},
};
use vitrine_policies::{
    names,
    probe::{Judgement, Orders, Outcome},
};

use super::{
    round::{self, Ports, Round},
    say,
};
use crate::{
    error::{Error, Result},
    health,
    preview::observe::BREACH,
    run as programs,
};

/// Begin to begin of two rounds. The exposure bound that is promised is 2 s (design, promise 1).
const PERIOD: Duration = Duration::from_millis(1500);
/// A sidecar takes milliseconds to listen; a busy node takes longer.
const LISTEN_PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing can be proven either way (the responder is being restarted, say) before that counts as a breach.
const UNPROVEN_LIMIT: Duration = Duration::from_secs(15);

/// Watches until told to stop.
///
/// # Errors
/// If its ports are taken: somebody ran before it.
pub(super) async fn run(orders: Orders) -> Result<()> {
    // Everything that is ever needed is taken now, while nothing of the seller runs.
    let (held, ports) = hold(orders.targets.len() + 1)?;
    // `prove` has just seen it; the first round here begins at once.
    let sealed = Arc::new(AtomicBool::new(true));
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, names::WATCH_PORT));
    let listener = health::listen(address).await?;
    let for_server = sealed.clone();
    let router = Router::new().route(
        "/sealed",
        get(move || async move {
            if for_server.load(Ordering::Relaxed) {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }),
    );
    let server = async { axum::serve(listener, router).await };
    tokio::select! {
        served = server => served.map_err(|source| Error::Listen { address, source })?,
        () = rounds(&orders, &ports, &sealed) => {}
        () = programs::until_told() => {}
    }
    drop(held);
    Ok(())
}

/// Waits until the sidecar listens, which it does last: the post-start hook that lets the product start.
///
/// # Errors
/// If it does not within a few seconds.
pub(super) async fn until_it_listens() -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, names::WATCH_PORT));
    let deadline = Instant::now() + LISTEN_PATIENCE;
    loop {
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(source) if Instant::now() > deadline => return Err(Error::Listen { address, source }),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn rounds(orders: &Orders, ports: &[u16], sealed: &AtomicBool) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut proven = Instant::now();
    let mut broken = false;
    loop {
        ticks.tick().await;
        let round = round::go(orders, Ports::Held(ports)).await;
        match round.judgement {
            Judgement::Isolated if !broken => proven = Instant::now(),
            Judgement::Unproven if proven.elapsed() < UNPROVEN_LIMIT => {
                tracing::warn!("unproven: {}", trouble(&round));
            }
            _ if broken => {}
            _ => {
                // Broken once is broken for ever: what got out in between is out.
                broken = true;
                sealed.store(false, Ordering::Relaxed);
                if let Err(error) = say(&format!("{BREACH}: {}", trouble(&round))) {
                    tracing::error!(%error, "failed to leave last words");
                }
            }
        }
    }
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
        held.push(bind().map_err(|source| Error::Listen { address, source })?);
        ports.push(port);
    }
    Ok((held, ports))
}
