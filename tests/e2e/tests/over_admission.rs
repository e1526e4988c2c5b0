//! Fifty previews at once where five may live, three operators without leader election, killed and held up at seeded writes:
//! there are never more than five.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tokio::sync::watch;
use vitrine_e2e::{
    dice::Dice,
    eventually::eventually,
    history::History,
    house::{House, PATIENCE},
    operator::{Operator, Options},
    proxy::{Blow, Moment, Proxy, Trap},
    soak,
};
use vitrine_kit::audit::Write;
use vitrine_policies::{names, slots::Dimension};

/// How many may live at once.
const CAP: usize = 5;
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
/// Longer than a round of five waves takes on two busy cores.
const ROUND: Duration = Duration::from_secs(180);

/// Kills one operator, or holds its writes up, again and again until it is told to stop. Returns what it did.
async fn trouble(house: &House, name: &str, seed: u64, mut stop: watch::Receiver<bool>) -> [usize; 2] {
    let mut dice = Dice::new(seed);
    let proxy = Proxy::start(house.client.clone()).await;
    let options = Options::alone(name);
    let mut operator = Operator::ready(&house.post, &options, Some(&proxy)).await;
    let mut done = [0, 0];
    while !*stop.borrow_and_update() {
        let kill = dice.roll(2) == 0;
        let blow = if kill {
            Blow::Kill(operator.victim())
        } else {
            // From a hiccup to longer than a preview lives here.
            Blow::Delay(Duration::from_millis(
                100 + u64::try_from(dice.roll(4000)).unwrap(),
            ))
        };
        let fires = proxy.arm(Trap {
            label: WRITES[dice.roll(WRITES.len())].to_owned(),
            nth: dice.roll(6),
            moment: [Moment::Before, Moment::After][dice.roll(2)],
            keys: vec![],
            blow,
        });
        let sprung = tokio::select! {
            fired = fires => fired.is_ok(),
            // Not every kind of write comes up all the time.
            () = tokio::time::sleep(Duration::from_secs(5)) => false,
            _ = stop.changed() => false,
        };
        proxy.disarm();
        if sprung {
            done[usize::from(!kill)] += 1;
        }
        if !operator.runs() {
            operator = Operator::start(&house.post, &options, Some(&proxy));
        }
    }
    done
}

/// The most of these spans that cover one moment. A span lasts from the answer of what began it to the request of what ended
/// it: for so long, at least, it was there.
fn most_at_once(spans: &[(Timestamp, Timestamp)]) -> usize {
    let mut edges: Vec<(Timestamp, i32)> = vec![];
    for (from, until) in spans.iter().filter(|(from, until)| from < until) {
        edges.extend([(*from, 1), (*until, -1)]);
    }
    // An end at the very moment of a beginning comes first.
    edges.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, step) in edges {
        now += step;
        most = most.max(now);
    }
    usize::try_from(most).unwrap()
}

/// From the audit log, how long each thing was there that one kind of write makes and another lets go.
///
/// What has one name is there once at a time, so that its beginnings and ends take turns, whenever their answers were noted:
/// a busy API server answers a create after others have seen it and had it deleted.
fn spans(
    writes: &[Write],
    begins: impl Fn(&Write) -> Option<String>,
    ends: impl Fn(&Write) -> Option<String>,
) -> Vec<(Timestamp, Timestamp)> {
    let mut things: BTreeMap<String, [Vec<&Write>; 2]> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.is_done()) {
        for (which, thing) in [begins(write), ends(write)].into_iter().enumerate() {
            if let Some(thing) = thing {
                things.entry(thing).or_default()[which].push(write);
            }
        }
    }
    let mut spans = vec![];
    for [mut begun, mut ended] in things.into_values() {
        begun.sort_by_key(|write| write.received);
        ended.sort_by_key(|write| write.received);
        let mut ended = ended.into_iter().peekable();
        for (at, begin) in begun.iter().enumerate() {
            let next = begun.get(at + 1);
            // What was over before this began is the end of something else.
            while ended.next_if(|end| end.answered < begin.received).is_some() {}
            let end = ended.next_if(|end| next.is_none_or(|next| end.received < next.answered));
            let end = match (end, next) {
                (Some(end), _) => end.received,
                // Whoever ended it was never told that it worked.
                (None, Some(next)) => next.received,
                (None, None) => Timestamp::MAX,
            };
            spans.push((begin.answered, end));
        }
    }
    spans
}

/// One round in which this dimension is the narrow one.
async fn round(house: &House, dimension: Dimension, seed: u64) {
    let limit = |of| if of == dimension { CAP } else { 100 };
    house
        .limit(
            json!({
                "perSubject": limit(Dimension::Subject), "perListing": limit(Dimension::Listing),
                "perSeller": limit(Dimension::Seller), "cluster": limit(Dimension::Cluster),
            }),
            "24h",
        )
        .await;
    let (begun, before) = (Instant::now(), house.mark());
    let history = History::begin(house).await;
    let (stop, stopped) = watch::channel(false);
    let troubles = OPERATORS
        .iter()
        .zip(1..)
        .map(|(name, n)| trouble(house, name, seed * 10 + n, stopped.clone()));
    let crowd: Vec<_> = (0..CROWD).map(|n| format!("crowd-{seed}-{n}")).collect();
    let visit = async {
        join_all(crowd.iter().map(|name| house.preview(name, "crowd", Some("1s")))).await;
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
    // Whatever was left half done is put in order by one that nobody troubles.
    let _last = Operator::ready(&house.post, &Options::alone("last"), None).await;
    house.until_empty(ROUND).await;

    assert_eq!(
        history.most_live(),
        CAP,
        "{dimension:?}: previews at once, as a watch saw them"
    );
    assert!(
        history.most_slots(dimension) <= CAP,
        "{dimension:?}: slots at once"
    );
    let writes = house.writes(before);
    let slot = |verb: &'static str| {
        move |w: &Write| {
            let name = w.name.clone().filter(|n| n.starts_with(dimension.as_str()))?;
            (w.label() == format!("{verb} leases")).then_some(name)
        }
    };
    let slots = spans(&writes, slot("create"), slot("delete"));
    let names: BTreeSet<_> = writes
        .iter()
        .filter(|w| w.is_done())
        .filter_map(slot("create"))
        .collect();
    assert!(
        most_at_once(&slots) <= CAP,
        "{dimension:?}: slots in the audit log: {slots:#?}"
    );
    assert!(names.len() <= CAP, "{dimension:?}: {names:?}");
    // A pod is let go of only when its end is recorded.
    let pod = |label: &'static str| {
        move |w: &Write| {
            let cell = w
                .namespace
                .clone()
                .filter(|n| n.starts_with(names::CELL_PREFIX))?;
            (w.label() == label).then_some(cell)
        }
    };
    let pods = most_at_once(&spans(&writes, pod("create pods"), pod("patch pods")));
    assert!(pods <= CAP, "{dimension:?}: {pods} pods at once in the audit log");
    let sums = done
        .iter()
        .fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
    println!(
        "  {} seed {seed}: {} slots taken, {pods} pods at once, {} ends; {} kills, {} delays; {:.0} s",
        dimension.as_str(),
        slots.len(),
        history.ends(),
        sums[0],
        sums[1],
        begun.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_troubled_operators_never_admit_more_than_the_limit() {
    let house = House::take("over-admission", 1, "24h").await;
    let dimensions = [
        Dimension::Subject,
        Dimension::Listing,
        Dimension::Seller,
        Dimension::Cluster,
    ];
    let rounds = if soak() { 200 } else { 2 };
    for (seed, dimension) in (1..=rounds).zip(dimensions.into_iter().cycle()) {
        round(&house, dimension, seed).await;
    }
    println!("over-admission: {rounds} rounds of {CROWD} creates at a cap of {CAP}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_counts_those_that_live_above_it_and_a_raised_one_lets_more_in_at_once() {
    let house = House::take("lowered", 4, "24h").await;
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
    let all = house
        .previews()
        .list(&kube::api::ListParams::default())
        .await
        .unwrap();
    for preview in all {
        house.delete(&preview.name_any()).await;
    }
    house.until_empty(PATIENCE).await;
}

fn is_ready(preview: &vitrine_crds::PreviewSandbox) -> bool {
    preview
        .status
        .as_ref()
        .is_some_and(|s| s.phase == vitrine_crds::Phase::Ready)
}

fn position(preview: &vitrine_crds::PreviewSandbox) -> Option<i32> {
    preview.status.as_ref().and_then(|s| s.queue_position)
}

/// A write of a thing, received and answered at these seconds.
fn write(verb: &str, thing: &str, received: i64, answered: i64) -> Write {
    let at = |second| Timestamp::from_second(second).unwrap();
    Write {
        received: at(received),
        answered: at(answered),
        verb: verb.to_owned(),
        resource: "leases".to_owned(),
        subresource: None,
        namespace: None,
        name: Some(thing.to_owned()),
        user: String::new(),
        agent: String::new(),
        code: 200,
    }
}

#[test]
fn a_thing_that_was_made_and_let_go_again_and_again_was_there_once_at_a_time() {
    let seconds = |writes: &[Write]| {
        let of = |verb: &'static str| move |w: &Write| w.name.clone().filter(|_| w.verb == verb);
        let spans = spans(writes, of("create"), of("delete"));
        let ended = spans
            .iter()
            .map(|(from, until)| (from.as_second(), until.as_second()));
        ended.collect::<Vec<_>>()
    };
    let end = Timestamp::MAX.as_second();
    // One after the other, the last one still there, beside another one.
    let plain = [
        write("create", "a", 1, 2),
        write("create", "b", 1, 2),
        write("delete", "a", 5, 6),
        write("create", "a", 7, 8),
    ];
    assert_eq!(seconds(&plain), [(2, 5), (8, end), (2, end)]);
    // The first create was answered after what it made had been deleted.
    let late = [
        write("delete", "a", 3, 4),
        write("create", "a", 1, 5),
        write("create", "a", 6, 7),
        write("delete", "a", 9, 10),
    ];
    assert_eq!(seconds(&late), [(5, 3), (7, 9)]);
    // The delete was answered after the next create, or nobody heard of it, or it is of a time before.
    let crossed = [
        write("create", "a", 1, 2),
        write("create", "a", 4, 5),
        write("delete", "a", 3, 6),
        write("delete", "a", 8, 9),
    ];
    assert_eq!(seconds(&crossed), [(2, 3), (5, 8)]);
    let unheard = [
        write("create", "a", 1, 2),
        write("create", "a", 4, 5),
        write("delete", "a", 8, 9),
    ];
    assert_eq!(seconds(&unheard), [(2, 4), (5, 8)]);
    let before = [
        write("delete", "a", 0, 1),
        write("create", "a", 2, 3),
        write("delete", "a", 8, 9),
    ];
    assert_eq!(seconds(&before), [(3, 8)]);
}

#[test]
fn spans_that_only_touch_are_not_at_once() {
    let at = |second| Timestamp::from_second(second).unwrap();
    assert_eq!(most_at_once(&[(at(1), at(3)), (at(3), at(5))]), 1);
    assert_eq!(most_at_once(&[(at(1), at(4)), (at(3), at(5)), (at(3), at(9))]), 3);
}
