//! The isolation probe: runs inside a preview, before and beside the seller's container. Opens sockets, reads /proc, and
//! writes its termination message; it has no token and talks to no API.

mod round;
mod watch;

use std::time::Duration;

use clap::Subcommand;
use tokio::time::{Instant, sleep};
use vitrine_policies::{
    names,
    probe::{Judgement, NODE_IP_ENV, ORDERS_ENV, Orders, Verdict, is_mounted},
};

use crate::error::{Error, Result};

/// Where the kubelet reads a container's last words (Kubernetes: `terminationMessagePath`).
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Between two rounds before the network enforces: rules come into force within a second or so.
const PAUSE: Duration = Duration::from_millis(100);

/// The probe's two lives.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum Program {
    /// Looks until isolation holds, says so and ends: the init container.
    Prove,
    /// Looks again and again for the preview's life: the sidecar.
    Watch,
    /// Waits until the sidecar beside it has taken its ports: its post-start hook.
    Watching,
}

/// Runs the probe.
///
/// # Errors
/// If it has no orders, or isolation does not hold.
pub async fn run(program: Program) -> Result<()> {
    match program {
        Program::Prove => prove(orders()?).await,
        Program::Watch => watch::run(orders()?).await,
        Program::Watching => watch::until_it_listens().await,
    }
}

fn orders() -> Result<Orders> {
    let variable = |name: &str| {
        std::env::var(name)
            .map_err(|_| Error::Setting(format!("{name} is not set: the probe is started by the operator")))
    };
    let orders: Orders = serde_json::from_str(&variable(ORDERS_ENV)?)
        .map_err(|e| Error::Setting(format!("{ORDERS_ENV} cannot be read: {e}")))?;
    Ok(orders.on_node(&variable(NODE_IP_ENV)?))
}

async fn prove(orders: Orders) -> Result<()> {
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(orders.deadline_seconds);
    let image_volumes = image_volumes()?;
    let mut rounds = 0;
    loop {
        let round = round::go(&orders, round::Ports::Any, round::Patience::ToTheEnd).await;
        rounds += 1;
        let verdict = Verdict {
            nonce: orders.nonce.clone(),
            judgement: if image_volumes && orders.refuse_image_volumes {
                Judgement::ImageVolumes
            } else {
                round.judgement
            },
            rounds,
            elapsed_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            canary: round.canary,
            ipv6: round.ipv6,
            image_volumes,
            targets: round.seen,
        };
        if verdict.judgement == Judgement::Isolated {
            return last_words(&verdict);
        }
        // That does not change, however long it looks.
        if Instant::now() >= deadline || verdict.judgement == Judgement::ImageVolumes {
            last_words(&verdict)?;
            return Err(Error::Setting(verdict.complaint()));
        }
        sleep(PAUSE).await;
    }
}

/// Whether this node gives images volumes, as it has then given one to Vitrine's own.
fn image_volumes() -> Result<bool> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let mounts = std::fs::read_to_string(MOUNTS)
        .map_err(|e| Error::Setting(format!("failed to read {MOUNTS}: {e}")))?;
    Ok(is_mounted(names::IMAGE_VOLUME, &mounts))
}

fn last_words(verdict: &Verdict) -> Result<()> {
    let text = serde_json::to_string(verdict).map_err(|e| Error::Setting(e.to_string()))?;
    say(&text)
}

/// Writes the container's termination message. The kubelet reads it when the container has ended, whenever that is.
fn say(text: &str) -> Result<()> {
    tracing::info!("{text}");
    std::fs::write(TERMINATION_LOG, text).map_err(|e| {
        Error::Setting(format!(
            "failed to write {TERMINATION_LOG}: {e}: is this a container?"
        ))
    })
}
