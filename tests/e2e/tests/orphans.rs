//! What the forced removal of a preview object leaves behind is found and removed.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::{Duration, Instant};

use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    house::{House, PATIENCE, strip},
    operator::{Operator, Options},
};

/// The sweep comes every 15 s, and a namespace takes its time to go.
const SWEPT: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn cell_and_slot_of_a_preview_whose_finalizers_were_stripped_are_removed() {
    let house = House::take("orphans", 1, "24h").await;
    let operator = Operator::ready(&house.post, &Options::alone("orphans"), None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.preview("lost", "anna", None).await;
    house.preview("stays", "bert", None).await;
    for name in ["lost", "stays"] {
        house.until(name, "it is ready", PATIENCE, ready).await;
    }
    strip(&house.previews(), "lost").await;
    house.until_gone("lost", PATIENCE).await;
    let begun = Instant::now();
    // What is left then: preview, namespace, pod and slot of the other.
    vitrine_e2e::eventually::eventually("only the other is left", SWEPT, async || {
        let left = house.left().await;
        if left.len() == 4 {
            Ok(())
        } else {
            Err(left.join(", "))
        }
    })
    .await;
    println!("swept after {:.1} s", begun.elapsed().as_secs_f64());
    house.until("stays", "it is still ready", PATIENCE, ready).await;
    let metrics = operator.get("/metrics").await.unwrap().body;
    let count = metrics
        .lines()
        .find_map(|line| line.strip_prefix("vitrine_orphans_removed_total "));
    assert_eq!(count, Some("2"), "a cell and a slot: {metrics}");
    house.delete("stays").await;
    house.until_empty(PATIENCE).await;
}
