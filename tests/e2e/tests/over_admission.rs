//! Fifty previews at once where five may live, three operators without leader election, killed and held up at seeded writes:
//! there are never more than five.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;
use vitrine_crds::{PreviewPool, PreviewSandbox, StatusReason, preview_sandbox::EndResult};
use vitrine_e2e::{
    eventually::eventually,
    history::History,
    house::{House, LISTING, PATIENCE},
    operator::{Operator, Options},
    soak,
    trouble::{self, trouble},
};
use vitrine_kit::{audit::Write, objects};
use vitrine_policies::{names, slots::Dimension};

/// How many may live at once.
const CAP: usize = 5;
/// How many of them a pool wants for itself.
const WAITING: usize = 3;
/// How many ask.
const CROWD: usize = 50;
/// After so many proven ends a round has seen enough changes of hands; the rest of the crowd is sent away.
const ENDS: usize = 2 * CAP;
/// Three operators at once.
const OPERATORS: [&str; 3] = ["one", "two", "three"];
/// The writes around which previews are admitted, and let go.
const WRITES: [&str; 6] = [
    "POST leases",
    "PUT leases",
    "DELETE leases",
    "PUT previewsandboxes/status",
    "PATCH previewsandboxes",
    "POST namespaces",
];
/// How long after its time a preview may be there, also when its controller is started anew meanwhile (docs/requirements.md, SBX-01).
const GONE_SECONDS: i64 = 30;
/// Longer than a round of five waves takes on two busy cores.
const ROUND: Duration = Duration::from_secs(180);

/// The most of these spans that cover one moment, and the first such moment. A span lasts from the answer of what began it to
/// the request of what ended it: for so long, at least, it was there.
fn most_at_once(spans: impl Iterator<Item = (Timestamp, Timestamp)>) -> (usize, Option<Timestamp>) {
    let mut edges: Vec<(Timestamp, i32)> = vec![];
    for (from, until) in spans.filter(|(from, until)| from < until) {
        edges.extend([(from, 1), (until, -1)]);
    }
    // An end at the very moment of a beginning comes first.
    edges.sort_unstable();
    let (mut now, mut most, mut peak) = (0, 0, None);
    for (at, step) in edges {
        now += step;
        if now > most {
            (most, peak) = (now, Some(at));
        }
    }
    (usize::try_from(most).unwrap(), peak)
}

/// A pod in a cell, from when until when it was there.
#[derive(Clone, Debug)]
struct Stay {
    cell: String,
    from: Timestamp,
    until: Timestamp,
}

/// All that was written in the cells whose pods were there at a moment.
fn told(writes: &[Write], stays: &[Stay], at: Option<Timestamp>) -> String {
    let mut text = String::new();
    for stay in stays
        .iter()
        .filter(|stay| at.is_some_and(|at| stay.from <= at && at < stay.until))
    {
        text += &format!("{stay:?}\n");
        let cell = Some(&stay.cell);
        for w in writes
            .iter()
            .filter(|w| w.namespace.as_ref() == cell || w.name.as_ref() == cell)
        {
            let line = (w.received, w.answered, w.label(), w.code, &w.user);
            text += &format!("    {line:?}\n");
        }
    }
    text
}

/// From the audit log, how long each pod was there: every one that was made, let go of only when its end is recorded.
fn stays(writes: &[Write]) -> Vec<Stay> {
    let in_cell = |w: &Write| w.namespace.clone().filter(|n| n.starts_with(names::CELL_PREFIX));
    let made = |w: &&Write| w.is_done() && w.label() == "create pods";
    let stay = |pod: &Write| {
        let cell = in_cell(pod)?;
        let here = || writes.iter().filter(|w| w.namespace.as_ref() == Some(&cell));
        // All pods of a cell have one name: the next one was made when this one was gone.
        let next = here().filter(made).filter(|w| w.answered > pod.answered);
        let next = next.min_by_key(|w| w.answered);
        let releases = || {
            here().filter(|w| {
                let before = next.is_none_or(|next| w.received < next.received);
                w.label() == "patch pods" && w.received > pod.received && before
            })
        };
        let first = |of: fn(&Write) -> bool| releases().filter(|w| of(w)).map(|w| w.received).min();
        // One that may have worked has, if none came after it that did: nothing can be let go of twice.
        let until = first(Write::is_done).or_else(|| first(may_be_done));
        let until = until.or_else(|| next.map(|next| next.received));
        let (from, until) = (pod.answered, until.unwrap_or(Timestamp::MAX));
        Some(Stay { cell, from, until })
    };
    writes.iter().filter(made).filter_map(stay).collect()
}

/// Whether a write may have taken effect although its answer does not say so: its writer was killed meanwhile.
fn may_be_done(write: &Write) -> bool {
    write.code < 200 || write.code >= 500
}

/// One round in which this dimension is the narrow one; how many previews lived at once in it.
async fn round(house: &House, dimension: Dimension, seed: u64, waiting: usize) -> usize {
    let limit = |of| if of == dimension { CAP } else { 100 };
    house
        .limit(
            json!({
                "perSubject": limit(Dimension::Subject), "perNetwork": limit(Dimension::Network),
                "perListing": limit(Dimension::Listing), "perSeller": limit(Dimension::Seller), "cluster": limit(Dimension::Cluster),
            }),
            "24h",
        )
        .await;
    let (begun, before) = (Instant::now(), house.mark());
    let history = History::begin(house).await;
    let pools: Api<PreviewPool> = Api::namespaced(house.client.clone(), &house.shop);
    if waiting > 0 {
        let pool = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": "pool"},
            "spec": {"listingRef": {"name": LISTING}, "replicas": waiting}
        });
        let pool = serde_json::from_value(pool).unwrap();
        pools.create(&PostParams::default(), &pool).await.unwrap();
    }
    let (stop, stopped) = watch::channel(false);
    let troubles = OPERATORS
        .iter()
        .zip(1..)
        .map(|(name, n)| trouble(house, name, seed * 10 + n, &WRITES, trouble::FEW, stopped.clone()));
    let crowd: Vec<_> = (0..CROWD).map(|n| format!("crowd-{seed}-{n}")).collect();
    let visit = async {
        join_all(crowd.iter().map(async |name| {
            let mut preview = objects::preview(name, LISTING, "crowd", Some("1s"));
            preview.spec.network = Some("203.0.113.0/24".to_owned());
            house.create(&preview).await
        }))
        .await;
        eventually("enough have ended", ROUND, async || {
            let ends = history.ends();
            if ends >= ENDS {
                Ok(())
            } else {
                Err(format!("{ends} of {ENDS}"))
            }
        })
        .await;
        join_all(crowd.iter().map(|name| house.delete(name))).await;
        stop.send_replace(true);
    };
    let (done, ()) = tokio::join!(join_all(troubles), visit);
    if waiting > 0 {
        pools.delete("pool", &DeleteParams::default()).await.unwrap();
    }
    // Whatever was left half done is put in order by one that nobody troubles.
    let _last = Operator::ready(&house.post, &Options::alone("last"), None).await;
    house.until_empty(ROUND).await;

    let live = history.most_live();
    assert!(
        live <= CAP,
        "{dimension:?}: {live} previews at once, as a watch saw them"
    );
    assert!(
        history.most_slots(dimension) <= CAP,
        "{dimension:?}: slots at once"
    );
    let writes = house.writes(before);
    // There is one Lease of a name at a time: so many names, so many slots at once.
    let taken: Vec<_> = writes
        .iter()
        .filter(|w| w.is_done() && w.label() == "create leases")
        .filter_map(|w| w.name.clone().filter(|n| n.starts_with(dimension.as_str())))
        .collect();
    let names: BTreeSet<_> = taken.iter().collect();
    // And none of them was out of use, whatever became of who held it.
    assert_eq!(names.len(), CAP, "{dimension:?}: {names:?}");
    let stays = stays(&writes);
    let (pods_at_once, peak) = most_at_once(stays.iter().map(|stay| (stay.from, stay.until)));
    assert!(
        pods_at_once <= CAP,
        "{dimension:?}: {pods_at_once} pods at once in the audit log, at {peak:?}:\n{}",
        told(&writes, &stays, peak)
    );
    let sums = done
        .iter()
        .fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
    println!(
        "  {} seed {seed}: {} slots taken, {live} previews and {pods_at_once} pods at once, {} ends; {} kills, {} delays; {:.0} s",
        dimension.as_str(),
        taken.len(),
        history.ends(),
        sums[0],
        sums[1],
        begun.elapsed().as_secs_f64()
    );
    live
}

#[tokio::test(flavor = "multi_thread")]
async fn three_troubled_operators_never_admit_more_than_the_limit() {
    let house = House::take("over-admission", 1, "24h").await;
    let rounds = if soak() { 200 } else { Dimension::ALL.len() as u64 };
    let mut most: BTreeMap<_, usize> = BTreeMap::new();
    for (seed, dimension) in (1..=rounds).zip(Dimension::ALL.into_iter().cycle()) {
        let live = round(&house, dimension, seed, 0).await;
        let before = most.entry(dimension.as_str()).or_default();
        *before = live.max(*before);
    }
    // Lives are so short that now and then an end comes before the fifth admission; a limit that is never reached proves nothing.
    let reached = most.values().filter(|live| **live == CAP).count();
    // Each dimension has many rounds in a soak, and one here.
    let enough = if soak() { Dimension::ALL.len() } else { 3 };
    assert!(reached >= enough, "previews at once at most: {most:?}");
    println!("over-admission: {rounds} rounds of {CROWD} creates at a cap of {CAP}");
}

/// What waits for nobody holds its slots too, and each operator has its own idea of how much waits.
#[tokio::test(flavor = "multi_thread")]
async fn nor_with_a_pool_beside_those_that_are_made_cold() {
    let house = House::take("over-admission-warm", 1, "24h").await;
    let rounds = if soak() { 60 } else { 2 };
    let dimensions = [Dimension::Listing, Dimension::Cluster, Dimension::Seller];
    for (seed, dimension) in (1000..1000 + rounds).zip(dimensions.into_iter().cycle()) {
        round(&house, dimension, seed, WAITING).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_counts_those_that_live_above_it_and_a_raised_one_lets_more_in_at_once() {
    lowered_from(4).await;
}

/// Then nobody asks for each slot that may be held.
#[tokio::test(flavor = "multi_thread")]
async fn so_does_a_limit_that_is_lowered_by_much() {
    lowered_from(60).await;
}

async fn lowered_from(limit: i32) {
    let house = House::take("lowered", limit, "24h").await;
    let history = History::begin(&house).await;
    let _operator = Operator::ready(&house.post, &Options::alone("lowered"), None).await;
    for n in 0..4 {
        let name = format!("early-{n}");
        house.preview(&name, "anna", None).await;
        house.until(&name, "it is ready", PATIENCE, is_ready).await;
    }
    house.limit(json!({"perSubject": 2}), "24h").await;
    let late = house.preview("late", "anna", None).await;
    let waits = |p: &_| position(p) == Some(1);
    house.until("late", "it waits", PATIENCE, waits).await;
    // Three live and two may: whoever takes the slot of the lowest index now would be the third.
    for ended in ["early-0", "early-1"] {
        house.delete(ended).await;
        house.until_gone(ended, PATIENCE).await;
        let now = house.until("late", "it waits on", PATIENCE, waits).await;
        assert_eq!(now.status.unwrap().admitted_at, None, "{ended} was not enough");
    }
    house.delete("early-2").await;
    house.until("late", "it is ready", PATIENCE, is_ready).await;
    assert_eq!(history.most_slots(Dimension::Subject), 4);
    assert_eq!(history.slots(&late.uid().unwrap()), 1);
    // And up again, without a moment in which nobody knows how far.
    house.limit(json!({"perSubject": 6}), "24h").await;
    for n in 0..4 {
        let name = format!("more-{n}");
        house.preview(&name, "anna", None).await;
        house.until(&name, "it is ready", PATIENCE, is_ready).await;
    }
    house.preview("too-many", "anna", None).await;
    house.until("too-many", "it waits", PATIENCE, waits).await;
    assert_eq!(history.most_slots(Dimension::Subject), 6);
    let all = house.previews().list(&ListParams::default()).await.unwrap();
    for preview in all {
        house.delete(&preview.name_any()).await;
    }
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_time_without_operators_every_preview_ends_proven_and_never_more_live_than_the_limit() {
    let house = House::take("downtime", i32::try_from(CAP).unwrap(), "24h").await;
    let before = house.mark();
    let history = History::begin(&house).await;
    let operator = Operator::ready(&house.post, &Options::alone("before"), None).await;
    let names: Vec<_> = (0..2 * CAP).map(|n| format!("crowd-{n}")).collect();
    join_all(names.iter().map(|name| house.preview(name, "anna", Some("8s")))).await;
    let live = async || {
        let all = house.previews().list(&ListParams::default()).await.unwrap();
        all.items.into_iter().filter(is_ready).collect::<Vec<_>>()
    };
    let last = eventually("as many live as may", PATIENCE, async || {
        let live = live().await;
        let ends = live
            .iter()
            .filter_map(|p| Some(p.status.as_ref()?.expires_at.as_ref()?.0));
        let last = ends.max();
        last.filter(|_| live.len() == CAP)
            .ok_or_else(|| live.len().to_string())
    })
    .await;
    operator.kill();
    eventually("the time of all is over", PATIENCE, async || {
        let left = last.duration_since(Timestamp::now());
        if left.is_positive() {
            Err(format!("{left:#}"))
        } else {
            Ok(())
        }
    })
    .await;
    assert_eq!(
        live().await.len(),
        CAP,
        "nobody was there to say that they are over"
    );
    let _operator = Operator::ready(&house.post, &Options::alone("after"), None).await;
    for name in &names {
        let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase.is_terminal());
        let ended = house.until(name, "it is over", ROUND, over).await;
        let status = ended.status.unwrap();
        let receipt = status.receipt.unwrap_or_else(|| panic!("{name}: no receipt"));
        assert_eq!(
            (receipt.result, receipt.cause),
            (EndResult::Verified, StatusReason::TimeOver),
            "{name}"
        );
        let late = receipt.ended_at.0.duration_since(status.expires_at.unwrap().0);
        assert!(
            late.as_secs() <= GONE_SECONDS,
            "{name} ended {late:#} after its time"
        );
    }
    assert_eq!(history.ends(), names.len());
    let stays = stays(&house.writes(before));
    assert_eq!(stays.len(), names.len(), "one pod each");
    let (at_once, _) = most_at_once(stays.iter().map(|stay| (stay.from, stay.until)));
    assert_eq!(at_once, CAP);
    for name in &names {
        house.delete(name).await;
    }
    house.until_empty(ROUND).await;
}

fn is_ready(preview: &PreviewSandbox) -> bool {
    preview
        .status
        .as_ref()
        .is_some_and(|s| s.phase == vitrine_crds::Phase::Ready)
}

fn position(preview: &PreviewSandbox) -> Option<i32> {
    preview.status.as_ref().and_then(|s| s.queue_position)
}

#[test]
fn spans_that_only_touch_are_not_at_once() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let most = |spans: &[(i64, i64)]| most_at_once(spans.iter().map(|(from, until)| (at(*from), at(*until))));
    assert_eq!(most(&[(1, 3), (3, 5)]), (1, Some(at(1))));
    assert_eq!(most(&[(1, 4), (3, 5), (3, 9)]), (3, Some(at(3))));
    // Let go of before the answer that it was made.
    assert_eq!(most(&[(1, 4), (3, 2)]), (1, Some(at(1))));
}

#[test]
fn a_release_of_which_nobody_heard_ends_a_pod_and_a_refused_one_does_not() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let write = |verb: &str, received, code| Write {
        received: at(received),
        answered: at(received + 1),
        verb: verb.to_owned(),
        resource: "pods".to_owned(),
        subresource: None,
        namespace: Some(format!("{}a", names::CELL_PREFIX)),
        name: None,
        user: String::new(),
        agent: String::new(),
        code,
    };
    let until = |writes: &[Write]| stays(writes).iter().map(|stay| stay.until).collect::<Vec<_>>();
    let released = |code| until(&[write("create", 1, 201), write("patch", 5, code)]);
    assert_eq!(
        [released(200), released(504), released(0)],
        [(); 3].map(|()| vec![at(5)])
    );
    assert_eq!(released(409), [Timestamp::MAX]);
    // What did not work after all was tried again.
    let again = [
        write("create", 1, 201),
        write("patch", 5, 504),
        write("patch", 9, 200),
    ];
    assert_eq!(until(&again), [at(9)]);
    // A second pod in one cell is one more.
    let second = [
        write("create", 1, 201),
        write("patch", 5, 200),
        write("create", 7, 201),
    ];
    assert_eq!(until(&second), [at(5), Timestamp::MAX]);
    // And what lets go of the second says nothing of the first.
    let unheard = [
        write("create", 1, 201),
        write("patch", 5, 504),
        write("create", 7, 201),
        write("patch", 9, 200),
    ];
    assert_eq!(until(&unheard), [at(5), at(9)]);
    let unseen = [&unheard[..1], &unheard[2..]].concat();
    assert_eq!(until(&unseen), [at(7), at(9)]);
}
