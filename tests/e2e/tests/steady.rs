//! A ready preview costs the API server no writes.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    house::{House, PATIENCE},
    operator::{Operator, Options},
    soak,
};
use vitrine_kit::audit;

/// Longer than every period of the operator's own in the short form, and what the issue asks for in the long one.
fn watched() -> Duration {
    Duration::from_secs(if soak() { 60 } else { 17 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_preview_causes_no_writes() {
    let house = House::take("steady", 1, "24h").await;
    let options = Options::electing("steady");
    let (mark, begun) = (house.mark(), Timestamp::now());
    let operator = Operator::ready(&house.post, &options, None).await;
    house.preview("calm", "anna", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.until("calm", "it is ready", PATIENCE, ready).await;
    // The last of its events.
    house.told("calm", "Answering").await;
    let since = Timestamp::now();
    let ours = |from: Timestamp| -> Vec<audit::Write> {
        let writes = house.writes(mark).into_iter();
        writes
            .filter(|w| w.user == operator.user && w.received >= from)
            .collect()
    };
    let life: Vec<_> = ours(begun).into_iter().filter(|w| !w.is_aside()).collect();
    println!("writes until ready: {} {:?}", life.len(), audit::count(&life));
    // This is the measurement: nothing is waited for, writes are counted that must not come.
    tokio::time::sleep(watched()).await;
    let writes = ours(since);
    let (lease, other): (Vec<_>, Vec<_>) = writes.into_iter().partition(|w| w.resource == "leases");
    assert!(!lease.is_empty(), "the operator works: it renews its leadership");
    assert!(
        other.is_empty(),
        "writes in {} s: {other:#?}",
        watched().as_secs()
    );
    house.delete("calm").await;
    house.until_empty(PATIENCE).await;
}
