//! `responder`: answers the probes' canary on many ports, and tells from outside whether targets are up.
//! `decoy`: a neighbour that anybody may reach, save a preview. Neither has any right at the API server.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use axum::{Json, Router, extract::Query, http::StatusCode, routing::get};
use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use vitrine_policies::{
    names,
    probe::{Outside, UP},
};
use vitrine_program::{NotServed, listen, until_told};

use crate::error::{Error, Result};

/// What the canary says: that a connection was made to somebody is not enough.
pub const BANNER: &[u8] = b"vitrine-responder\n";
/// How long the unconfined prober waits for a target.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// More targets than any probe has.
const MAX_TARGETS: usize = 32;
/// A probe that does not hang up is hung up on.
const LINGER: Duration = Duration::from_secs(5);

/// Settings of the responder.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// The canary's ports, `ip:first-last`.
    #[arg(long, default_value = "0.0.0.0:20000-20063")]
    canary: String,
    /// Where the prober is asked, and `/healthz` is.
    #[arg(long, default_value = "0.0.0.0:8082")]
    control: SocketAddr,
}

/// Settings of the decoy.
#[derive(Args, Clone, Debug)]
pub struct DecoyArguments {
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
}

/// Runs the responder until told to stop.
///
/// # Errors
/// If a port cannot be taken.
pub async fn run(arguments: Arguments) -> Result<()> {
    for address in ports(&arguments.canary)? {
        let listener = listen(address).await?;
        tokio::spawn(answer(listener));
    }
    tracing::info!(canary = arguments.canary, control = %arguments.control, "answering");
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/check", get(check));
    let listener = listen(arguments.control).await?;
    tokio::select! {
        served = async { axum::serve(listener, router).await } => {
            Ok(served.map_err(|source| NotServed { address: arguments.control, source })?)
        }
        () = until_told() => Ok(()),
    }
}

/// Runs the decoy until told to stop.
///
/// # Errors
/// If the port cannot be taken.
pub async fn decoy(arguments: DecoyArguments) -> Result<()> {
    let listener = listen(arguments.listen).await?;
    tokio::select! {
        () = answer(listener) => Ok(()),
        () = until_told() => Ok(()),
    }
}

async fn answer(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: those held by others come free.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        tokio::spawn(async move {
            let talk = async {
                stream.write_all(BANNER).await?;
                let mut rest = [0_u8; 64];
                while stream.read(&mut rest).await? > 0 {}
                Ok::<(), std::io::Error>(())
            };
            // A probe that hangs up, or does not, is no event.
            let _ = timeout(LINGER, talk).await;
        });
    }
}

async fn check(Query(query): Query<BTreeMap<String, String>>) -> (StatusCode, Json<Outside>) {
    let targets: Vec<_> = query
        .get("targets")
        .into_iter()
        .flat_map(|t| t.split(','))
        .map(str::to_owned)
        .collect();
    if targets.len() > MAX_TARGETS {
        return (StatusCode::BAD_REQUEST, Json(Outside::new()));
    }
    let asked = targets.into_iter().map(|target| async move {
        let outcome = match target.parse::<SocketAddr>() {
            Ok(address) => match timeout(PATIENCE, TcpStream::connect(address)).await {
                Ok(Ok(_)) => UP.to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "timed out".to_owned(),
            },
            Err(_) => "no address".to_owned(),
        };
        (target, outcome)
    });
    (
        StatusCode::OK,
        Json(futures::future::join_all(asked).await.into_iter().collect()),
    )
}

fn ports(text: &str) -> Result<Vec<SocketAddr>> {
    let wrong = || Error::Setting(format!("--canary {text:?} is not of the form ip:first-last"));
    let (ip, range) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (first, last) = range.split_once('-').ok_or_else(wrong)?;
    let ip = ip.parse().map_err(|_| wrong())?;
    let (first, last): (u16, u16) = (
        first.parse().map_err(|_| wrong())?,
        last.parse().map_err(|_| wrong())?,
    );
    if first > last || last - first >= names::CANARY_COUNT {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| SocketAddr::new(ip, port)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canarys_ports_are_a_small_range_of_one_address() {
        assert_eq!(ports("127.0.0.1:20000-20063").unwrap().len(), 64);
        for bad in [
            "",
            "127.0.0.1:20000",
            "127.0.0.1:5-4",
            "127.0.0.1:1-60000",
            "x:1-2",
        ] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_prober_tells_what_is_up_from_what_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let up = listener.local_addr().unwrap().to_string();
        // A port that was just free and that nobody listens on.
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let query = Query([("targets".to_owned(), format!("{up},{closed}"))].into());
        let (_, Json(outside)) = check(query).await;
        assert_eq!(outside[&up], UP);
        assert_ne!(outside[&closed], UP);
    }
}
