//! Every transition of a preview is told once as an event, also when another operator takes over.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::collections::BTreeMap;

use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    house::{House, PATIENCE},
    operator::{Operator, Options},
};

/// What a preview's life is told as, if nothing goes wrong.
const STORY: [&str; 7] = [
    "Admitted",
    "Answering",
    "CellMade",
    "EndVerified",
    "ProvenFromInside",
    "Receipt",
    "TimeOver",
];

#[tokio::test(flavor = "multi_thread")]
async fn each_transition_is_told_once_whatever_operators_come_and_go() {
    let house = House::take("events", 1, "24h").await;
    let first = Operator::ready(&house.post, &Options::alone("first"), None).await;
    house.preview("told", "anna", Some("8s")).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.until("told", "it is ready", PATIENCE, ready).await;
    house.told("told", "Answering").await;
    first.kill();
    let _second = Operator::ready(&house.post, &Options::alone("second"), None).await;
    let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ended);
    house.until("told", "it ends", PATIENCE, over).await;
    let events = house.told("told", "Receipt").await;
    let mut times: BTreeMap<String, i32> = BTreeMap::new();
    for event in &events {
        let again = event.series.as_ref().map_or(0, |series| series.count);
        *times.entry(event.reason.clone().unwrap()).or_default() += 1 + again;
    }
    let expected: BTreeMap<_, _> = STORY.map(|reason| (reason.to_owned(), 1)).into();
    assert_eq!(times, expected);
    house.delete("told").await;
    house.until_empty(PATIENCE).await;
}
