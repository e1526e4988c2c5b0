//! One round of the probe: the canary and every target at once, each given one second. Opens TCP sockets only.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use vitrine_policies::probe::{Judgement, Orders, Outcome, Seen, judge};

use crate::responder::BANNER;

/// How long a single target is given. The same as the unconfined prober's patience, which it must not exceed: a slow target would be
/// "up" from outside and "shut" from inside.
const TARGET_PATIENCE: Duration = Duration::from_secs(1);

/// Where connections start from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ports<'a> {
    /// Any free port.
    Any,
    /// Ports that the sidecar has held since before the product ran, one an attempt: a product that takes all others cannot
    /// make the probe blind (attacks, 11).
    Held(&'a [u16]),
}

/// When a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Once every target has shown itself.
    ToTheEnd,
    /// Once one has been reached that must not be: the others cannot make that good, and take a second to be silent.
    UntilALeak,
}

/// What a round came to.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) judgement: Judgement,
    pub(super) canary: bool,
    pub(super) ipv6: Vec<String>,
    pub(super) seen: Vec<Seen>,
}

pub(super) async fn go(orders: &Orders, ports: Ports<'_>, patience: Patience) -> Round {
    let port = |index: usize| match ports {
        Ports::Any => None,
        Ports::Held(held) => held.get(index).copied(),
    };
    let targets = orders
        .targets
        .iter()
        .enumerate()
        .map(|(index, target)| async move {
            let outcome = match connect(&target.address, port(index + 1)).await {
                Ok(stream) => {
                    hang_up(stream);
                    Outcome::Reached
                }
                Err(outcome) => outcome,
            };
            let seen = Seen {
                name: target.name.clone(),
                address: target.address.clone(),
                required: target.required,
                outcome,
            };
            (index, seen)
        });
    let looking = async {
        let mut targets: FuturesUnordered<_> = targets.collect();
        let mut seen = vec![];
        while let Some((index, one)) = targets.next().await {
            let leak = one.required && one.outcome == Outcome::Reached;
            seen.push((index, one));
            if leak && patience == Patience::UntilALeak {
                break;
            }
        }
        seen
    };
    let (canary, mut seen) = tokio::join!(canary(&orders.canary, port(0)), looking);
    // In the order in which they were asked for, not in which they answered.
    seen.sort_by_key(|(index, _)| *index);
    let seen: Vec<Seen> = seen.into_iter().map(|(_, one)| one).collect();
    let ipv6 = std::fs::read_to_string("/proc/net/if_inet6")
        .map(|text| uncovered(&text))
        .unwrap_or_default();
    Round {
        judgement: judge(canary, &ipv6, &seen),
        canary,
        ipv6,
        seen,
    }
}

async fn canary(address: &str, port: Option<u16>) -> bool {
    let Ok(mut stream) = connect(address, port).await else {
        return false;
    };
    let mut banner = [0_u8; BANNER.len()];
    let answered = timeout(TARGET_PATIENCE, stream.read_exact(&mut banner)).await;
    let answered = matches!(answered, Ok(Ok(_))) && banner == BANNER;
    hang_up(stream);
    answered
}

/// Ends a connection by a reset: in TIME_WAIT it would keep its port for a minute, a held one from being used again, and another
/// from whoever may have it.
pub(super) fn hang_up(stream: TcpStream) {
    if let Ok(stream) = stream.into_std() {
        let socket = tokio::net::TcpStream::from_std(stream).and_then(|s| s.set_zero_linger().map(|()| s));
        drop(socket);
    }
}

async fn connect(address: &str, port: Option<u16>) -> Result<TcpStream, Outcome> {
    let address: SocketAddr = address
        .parse()
        .map_err(|_| Outcome::Unproven(format!("{address:?} is no address")))?;
    let socket = socket(port).map_err(|error| Outcome::Unproven(format!("no local socket: {error}")))?;
    match timeout(TARGET_PATIENCE, socket.connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(classify(&error)),
        Err(_) => Err(Outcome::Shut("timed out".to_owned())),
    }
}

fn socket(port: Option<u16>) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    if let Some(port) = port {
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    }
    Ok(socket)
}

/// Tells "the network refused" from "this pod could not even try". Only the first is "shut".
fn classify(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Shut("refused".to_owned()),
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Outcome::Shut("reset".to_owned()),
        ErrorKind::TimedOut => Outcome::Shut("timed out".to_owned()),
        // ICMP "unreachable" in its kinds, administratively prohibited among them.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Shut(format!("icmp: {error}")),
        _ => Outcome::Unproven(error.to_string()),
    }
}

/// IPv6 addresses other than loopback's, from the text of `/proc/net/if_inet6` (proc(5)).
fn uncovered(if_inet6: &str) -> Vec<String> {
    if_inet6
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (address, interface) = (fields.next()?, fields.next_back()?);
            (interface != "lo").then(|| format!("{address}%{interface}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncWriteExt, net::TcpListener};
    use vitrine_policies::probe::Target;

    #[test]
    fn a_local_error_is_unproven_and_a_refusal_of_the_network_is_shut() {
        for kind in [
            ErrorKind::AddrNotAvailable,
            ErrorKind::AddrInUse,
            ErrorKind::PermissionDenied,
            ErrorKind::Other,
        ] {
            assert!(
                matches!(classify(&io::Error::from(kind)), Outcome::Unproven(_)),
                "{kind:?}"
            );
        }
        for kind in [
            ErrorKind::ConnectionRefused,
            ErrorKind::HostUnreachable,
            ErrorKind::TimedOut,
        ] {
            assert!(
                matches!(classify(&io::Error::from(kind)), Outcome::Shut(_)),
                "{kind:?}"
            );
        }
        // EMFILE and ENOBUFS have no kind of their own.
        assert!(matches!(
            classify(&io::Error::from_raw_os_error(24)),
            Outcome::Unproven(_)
        ));
    }

    #[test]
    fn link_local_addresses_are_seen_and_loopback_is_not_one() {
        let text = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000001 02 40 20 80     eth0\n";
        assert_eq!(uncovered(text), ["fe800000000000000000000000000001%eth0"]);
    }

    async fn responder(banner: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(banner).await.unwrap();
                tokio::spawn(async move { stream.read(&mut [0; 8]).await });
            }
        });
        address
    }

    fn orders(canary: String, target: String) -> Orders {
        let targets = vec![Target {
            name: "t".into(),
            address: target,
            required: true,
        }];
        Orders {
            nonce: "n".into(),
            canary,
            targets,
            deadline_seconds: 1,
            refuse_image_volumes: true,
        }
    }

    fn closed() -> String {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string()
    }

    #[tokio::test]
    async fn a_round_proves_isolation_only_with_the_real_canary_and_a_shut_target() {
        let real = orders(responder(BANNER).await, closed());
        let judgement = |orders| async move {
            let mut round = go(&orders, Ports::Any, Patience::ToTheEnd).await;
            // The machine that runs this test may have IPv6.
            round.ipv6.clear();
            judge(round.canary, &round.ipv6, &round.seen)
        };
        assert_eq!(judgement(real).await, Judgement::Isolated);
        assert_eq!(
            judgement(orders(responder(b"something-else-it-is\n").await, closed())).await,
            Judgement::Unproven
        );
        assert_eq!(judgement(orders(closed(), closed())).await, Judgement::Unproven);
        let open = responder(BANNER).await;
        assert_eq!(
            judgement(orders(responder(BANNER).await, open)).await,
            Judgement::Leaking
        );
    }

    #[tokio::test]
    async fn held_ports_can_be_used_again_at_once() {
        let orders = orders(responder(BANNER).await, closed());
        let held: Vec<_> = (0..2).map(|_| TcpSocket::new_v4().unwrap()).collect();
        let mut ports = vec![];
        for socket in &held {
            socket.set_reuseaddr(true).unwrap();
            socket.set_reuseport(true).unwrap();
            socket.bind("0.0.0.0:0".parse().unwrap()).unwrap();
            ports.push(socket.local_addr().unwrap().port());
        }
        for round in 0..5 {
            let round_ = go(&orders, Ports::Held(&ports), Patience::ToTheEnd).await;
            assert!(round_.canary, "round {round}");
            assert!(
                matches!(round_.seen[0].outcome, Outcome::Shut(_)),
                "round {round}: {:?}",
                round_.seen
            );
        }
    }
}
