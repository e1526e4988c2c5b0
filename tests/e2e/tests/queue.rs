//! Previews of one subject wait for its slots, in the order in which they were made, and are told how long the queue is.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use vitrine_crds::{Phase, PreviewSandbox, StatusReason};
use vitrine_e2e::{
    eventually::eventually,
    history::History,
    house::{House, PATIENCE},
    operator::{Operator, Options},
};

/// How long after the end of one preview the next may be admitted.
const NEXT: SignedDuration = SignedDuration::from_secs(5);

fn place(preview: &PreviewSandbox) -> (Phase, Option<StatusReason>, Option<i32>) {
    let status = preview.status.clone().unwrap_or_default();
    (status.phase, status.reason, status.queue_position)
}

/// Waits until the API server's clock is in another second than this preview's creation: creation times have no finer grain.
async fn a_second_later(preview: &PreviewSandbox) {
    let made = preview.metadata.creation_timestamp.as_ref().unwrap().0;
    eventually("the next second", PATIENCE, async || {
        let passed = Timestamp::now().duration_since(made) >= SignedDuration::from_secs(1);
        passed.then_some(()).ok_or_else(|| made.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_of_one_subject_are_admitted_one_after_the_other_in_the_order_of_their_creation() {
    let house = House::take("queue", 1, "24h").await;
    let history = History::begin(&house).await;
    let _operator = Operator::ready(&house.post, &Options::alone("queue"), None).await;
    let names = ["first", "second", "third"];
    for (ahead, name) in names.into_iter().enumerate() {
        let preview = house.preview(name, "alice", Some("6s")).await;
        let expected = i32::try_from(ahead).unwrap();
        house
            .until(name, "it has its place", PATIENCE, |preview| match ahead {
                0 => place(preview).0 == Phase::Ready,
                _ => place(preview) == (Phase::Queued, Some(StatusReason::WaitingForSlot), Some(expected)),
            })
            .await;
        a_second_later(&preview).await;
    }
    house
        .until("second", "it is ready", PATIENCE, |p| place(p).0 == Phase::Ready)
        .await;
    house
        .until("third", "it moves up", PATIENCE, |p| place(p).2 == Some(1))
        .await;
    let mut last_end = None;
    for name in names {
        let over = |p: &PreviewSandbox| place(p).0 == Phase::Ended;
        let status = house.until(name, "it ends", PATIENCE, over).await.status.unwrap();
        let admitted = status.admitted_at.unwrap().0;
        if let Some(end) = last_end {
            let gap = admitted.duration_since(end);
            println!("{name} was admitted {gap:#} after the end before it");
            assert!(gap >= SignedDuration::ZERO && gap <= NEXT, "{name}: {gap:#}");
        }
        last_end = Some(status.ended_at.unwrap().0);
        assert_eq!(status.queue_position, None, "{name} queues no more");
    }
    assert_eq!(history.most_slots(), 1, "the limit is one");
    for name in names {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}
