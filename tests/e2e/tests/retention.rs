//! A finished preview is deleted after its time, and its receipt stays as an event.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use vitrine_crds::{
    PreviewSandbox,
    preview_sandbox::{EndResult, Receipt},
};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE},
    operator::{Operator, Options},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_preview_is_deleted_after_its_retention_and_its_receipt_outlives_it() {
    let house = House::take("retention", 1, "3s").await;
    let _operator = Operator::ready(&house.post, &Options::alone("retention"), None).await;
    let preview = house.preview("kept", "anna", Some("1s")).await;
    let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase.is_terminal());
    let ended = house
        .until("kept", "it ends", PATIENCE, over)
        .await
        .status
        .unwrap()
        .ended_at
        .unwrap()
        .0;
    house.until_gone("kept", PATIENCE).await;
    let kept = Timestamp::now().duration_since(ended);
    println!("it was kept for {kept:#}");
    // Not before its time; the cell's own end, which is part of it, may take longer than the retention.
    assert!(kept >= SignedDuration::from_secs(3), "{kept:#}");
    house.until_empty(PATIENCE).await;

    let receipt = eventually(
        "the event of its retirement",
        Duration::from_secs(10),
        async || {
            let events = house.events("kept").await;
            let retired = events.iter().find(|e| e.reason.as_deref() == Some("Retired"));
            let note = retired
                .and_then(|e| e.note.clone())
                .ok_or_else(|| format!("{events:?}"))?;
            serde_json::from_str::<Receipt>(&note).map_err(|error| format!("{error}: {note}"))
        },
    )
    .await;
    assert_eq!(Some(receipt.preview), preview.uid());
    assert_eq!(receipt.result, EndResult::Verified);
}
