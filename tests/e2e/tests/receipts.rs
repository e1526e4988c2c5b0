//! Receipts: signed, sent to the sink at least once, and never in the way of a preview that has to go.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use vitrine_crds::{PreviewSandbox, preview_sandbox::EndResult};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE},
    operator::{Operator, Options},
    proxy::{Blow, Moment, Proxy, Trap},
    sink::Sink,
};
use vitrine_kit::install::NAMESPACE;
use vitrine_receipts::{Envelope, Keys, MEDIA_TYPE, Statement, names};

fn is_over(preview: &PreviewSandbox) -> bool {
    preview.status.as_ref().is_some_and(|s| s.phase.is_terminal())
}

fn is_delivered(preview: &PreviewSandbox) -> bool {
    let receipt = preview.status.as_ref().and_then(|s| s.receipt.as_ref());
    receipt.is_some_and(|receipt| receipt.delivered_at.is_some())
}

/// Previews of different subjects that have had their time.
async fn over(house: &House, names: &[&str]) -> BTreeMap<String, PreviewSandbox> {
    for name in names {
        house
            .preview(name, &format!("subject-of-{name}"), Some("1s"))
            .await;
    }
    let mut over = BTreeMap::new();
    for name in names {
        let preview = house.until(name, "it ends", PATIENCE, is_over).await;
        over.insert(preview.uid().unwrap(), preview);
    }
    over
}

/// The keys as anybody reads them.
async fn keys(house: &House) -> Keys {
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), NAMESPACE);
    let published = maps.get(names::KEYS).await.unwrap().data.unwrap();
    published.into_values().collect()
}

/// The receipts that are kept without a preview, by their state.
async fn spooled(house: &House) -> BTreeMap<String, String> {
    let kept = ListParams::default().labels(names::STATE_LABEL);
    let kept = house.receipts().list(&kept).await.unwrap().items;
    kept.into_iter()
        .map(|map| (map.name_any(), map.labels()[names::STATE_LABEL].clone()))
        .collect()
}

async fn until_spooled(house: &House, what: &str, wanted: impl Fn(&BTreeMap<String, String>) -> bool) {
    eventually(what, PATIENCE, async || {
        let spooled = spooled(house).await;
        if wanted(&spooled) {
            Ok(())
        } else {
            Err(format!("{spooled:?}"))
        }
    })
    .await;
}

async fn until_acknowledged(sink: &Sink, uids: &BTreeSet<String>) {
    // A sink that was down is tried again after a minute at the latest.
    eventually(
        "the sink has every receipt",
        Duration::from_secs(90),
        async || {
            let got: BTreeSet<_> = sink.acknowledged().into_keys().collect();
            if got == *uids {
                Ok(())
            } else {
                Err(format!("{got:?}"))
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_signed_sent_once_and_marked() {
    let house = House::take("receipt", 1, "24h").await;
    let sink = Sink::start(true).await;
    let file = |name: &str, text: &str| {
        let path = house.post.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let options = Options::alone("receipt").with([
        format!("--receipt-sink={}", sink.url),
        format!(
            "--receipt-sink-ca={}",
            file("ca.pem", sink.authority.as_ref().unwrap())
        ),
        format!("--receipt-sink-token={}", file("token", "secret\n")),
    ]);
    let operator = Operator::ready(&house.post, &options, None).await;
    house.preview("one", "anna", Some("1s")).await;
    let preview = house
        .until("one", "its receipt is delivered", PATIENCE, is_delivered)
        .await;
    let (uid, status) = (preview.uid().unwrap(), preview.status.clone().unwrap());
    let receipt = status.receipt.unwrap();

    let got = sink.got();
    assert_eq!(got.len(), 1, "{got:?}");
    assert_eq!(got[0].id, uid);
    assert_eq!(got[0].content_type, MEDIA_TYPE);
    assert_eq!(got[0].authorization.as_deref(), Some("Bearer secret"));
    assert_eq!(Some(&got[0].body), receipt.signed.as_ref());

    let envelope = Envelope::read(&got[0].body).unwrap();
    let Statement {
        subject, predicate, ..
    } = envelope.verify(&keys(&house).await).unwrap();
    assert_eq!(predicate.name, "receipt/one");
    assert_eq!(predicate.receipt.preview, uid);
    assert_eq!(predicate.receipt.result, EndResult::Verified);
    assert_eq!(predicate.receipt.ended_at, receipt.ended_at);
    assert_eq!(predicate.isolation, status.isolation);
    assert!(
        predicate
            .isolation
            .is_some_and(|isolation| !isolation.targets.is_empty())
    );
    // printf %s anna | sha256sum
    assert_eq!(
        predicate.subject_sha256,
        "55579b557896d0ce1764c47fed644f9b35f58bad620674af23f356d80ed0c503"
    );
    assert!(
        receipt.image.ends_with(&subject[0].digest["sha256"]),
        "{subject:?}"
    );

    let metrics = operator.get("/metrics").await.unwrap().body;
    for line in [
        "vitrine_receipts_delivered_total 1",
        "vitrine_receipts_waiting 0",
        "vitrine_receipts_dropped_total 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing:\n{metrics}");
    }
    // The sink has it: nothing of it has to be kept.
    house.delete("one").await;
    house.until_gone("one", PATIENCE).await;
    assert_eq!(spooled(&house).await, BTreeMap::new());
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_sink_down_a_shops_namespace_goes_and_every_receipt_arrives_afterwards() {
    let house = House::take("sink-down", 1, "24h").await;
    let sink = Sink::start(false).await;
    sink.set_down(true);
    let options = Options::alone("sink-down").with([format!("--receipt-sink={}", sink.url)]);
    let operator = Operator::ready(&house.post, &options, None).await;
    let over = over(&house, &["one", "two", "three"]).await;
    // One that lives while its namespace is taken away.
    house.preview("living", "lives", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.url.is_some());
    let living = house.until("living", "it is ready", PATIENCE, ready).await;
    let uids: BTreeSet<String> = over.keys().cloned().chain(living.uid()).collect();

    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    namespaces
        .delete(&house.shop, &DeleteParams::default())
        .await
        .unwrap();
    eventually(
        "the shop's namespace is gone",
        PATIENCE,
        async || match namespaces.get_opt(&house.shop).await {
            Ok(None) => Ok(()),
            other => Err(format!("{:?}", other.map(|n| n.map(|n| n.status)))),
        },
    )
    .await;
    assert!(sink.acknowledged().is_empty());
    let pending: BTreeMap<String, String> = uids
        .iter()
        .map(|uid| (format!("{}{uid}", names::PREFIX), names::PENDING.to_owned()))
        .collect();
    assert_eq!(spooled(&house).await, pending);
    // Whoever comes next finds them all, without their previews.
    drop(operator);
    let _next = Operator::ready(&house.post, &options, None).await;
    sink.set_down(false);
    until_acknowledged(&sink, &uids).await;
    until_spooled(&house, "the spool is empty", BTreeMap::is_empty).await;
    let keys = keys(&house).await;
    for (uid, bodies) in sink.acknowledged() {
        assert!(
            bodies.iter().all(|body| *body == bodies[0]),
            "{uid}: one receipt, the same bytes"
        );
        let statement = Envelope::read(&bodies[0]).unwrap().verify(&keys).unwrap();
        assert_eq!(statement.predicate.receipt.preview, uid);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_the_sink_refuses_holds_up_no_other() {
    let house = House::take("refused", 1, "24h").await;
    let sink = Sink::start(false).await;
    let poison = house.preview("poison", "subject-of-poison", Some("1s")).await;
    let poison = poison.uid().unwrap();
    sink.refuse(&poison, 422);
    let options = Options::alone("refused").with([format!("--receipt-sink={}", sink.url)]);
    let operator = Operator::ready(&house.post, &options, None).await;
    house.until("poison", "it ends", PATIENCE, is_over).await;
    let others = over(&house, &["one", "two"]).await;
    until_acknowledged(&sink, &others.into_keys().collect()).await;
    let tries = sink
        .got()
        .into_iter()
        .filter(|delivery| delivery.id == poison)
        .count();
    assert_eq!(tries, 1, "what is refused is set aside");
    eventually("the metrics tell", PATIENCE, async || {
        let metrics = operator.get("/metrics").await.ok_or("no answer")?.body;
        let told = [
            "vitrine_receipt_sink_failures_total{category=\"refused\"} 1",
            "vitrine_receipts_delivered_total 2",
        ];
        if told.iter().all(|line| metrics.contains(line)) {
            Ok(())
        } else {
            Err(metrics)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_sink_the_receipt_of_a_deleted_preview_is_kept_for_its_retention() {
    let house = House::take("kept", 1, "8s").await;
    let _operator = Operator::ready(&house.post, &Options::alone("kept"), None).await;
    house.preview("one", "anna", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.url.is_some());
    let uid = house
        .until("one", "it is ready", PATIENCE, ready)
        .await
        .uid()
        .unwrap();
    house.delete("one").await;
    house.until_gone("one", PATIENCE).await;
    let name = format!("{}{uid}", names::PREFIX);
    let kept = house.receipts().get(&name).await.unwrap();
    assert_eq!(kept.labels()[names::STATE_LABEL], names::KEPT);
    let envelope = Envelope::read(&kept.data.unwrap()[names::DATA]).unwrap();
    let statement = envelope.verify(&keys(&house).await).unwrap();
    assert_eq!(statement.predicate.receipt.preview, uid);
    until_spooled(&house, "it is let go after its retention", BTreeMap::is_empty).await;
    // Of a preview that never was admitted nothing is kept.
    house.list(LISTING, "").await;
    house
        .policy(serde_json::json!({"maintenance": {"admission": "Suspended"}}))
        .await;
    house.preview("waits", "anna", None).await;
    let waits = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.reason.is_some());
    house.until("waits", "it waits", PATIENCE, waits).await;
    house.delete("waits").await;
    house.until_gone("waits", PATIENCE).await;
    assert_eq!(spooled(&house).await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_is_bounded_and_what_it_cannot_take_is_counted() {
    let house = House::take("bounded", 1, "24h").await;
    let options = Options::alone("bounded").with(["--receipts-kept=1"]);
    let operator = Operator::ready(&house.post, &options, None).await;
    let over = over(&house, &["one", "two", "three"]).await;
    for preview in over.values() {
        house.delete(&preview.name_any()).await;
        house.until_gone(&preview.name_any(), PATIENCE).await;
        until_spooled(&house, "there is one", |spooled| !spooled.is_empty()).await;
    }
    let spooled = spooled(&house).await.len();
    // The bound is kept by what a watch has seen: it may be one late.
    assert!((1..3).contains(&spooled), "{spooled}");
    let metrics = operator.get("/metrics").await.unwrap().body;
    let dropped = format!("vitrine_receipts_dropped_total {}", 3 - spooled);
    assert!(metrics.contains(&dropped), "{dropped} is missing:\n{metrics}");
    // The log is the last that holds it.
    assert!(
        operator.last_words().contains("a receipt is dropped"),
        "{}",
        operator.last_words()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_receipt_is_lost_when_the_operator_is_killed_around_the_spool() {
    let house = House::take("spool-crash", 1, "24h").await;
    let proxy = Proxy::start(house.client.clone()).await;
    let sink = Sink::start(false).await;
    let options = |name: &str| Options::alone(name).with([format!("--receipt-sink={}", sink.url)]);
    let mut uids = BTreeSet::new();
    let moments = [Moment::Before, Moment::After];
    for (index, (label, moment)) in ["POST configmaps", "DELETE configmaps"]
        .into_iter()
        .flat_map(|label| moments.map(|moment| (label, moment)))
        .enumerate()
    {
        let name = format!("case-{index}");
        // Down until the receipt is in the spool, so that it has to go there.
        sink.set_down(true);
        let operator = Operator::start(&house.post, &options(&name), Some(&proxy));
        house
            .preview(&name, &format!("subject-{index}"), Some("1s"))
            .await;
        let preview = house.until(&name, "it ends", PATIENCE, is_over).await;
        let uid = preview.uid().unwrap();
        let fires = proxy.arm(Trap {
            label: label.to_owned(),
            nth: 0,
            moment,
            keys: vec![uid.clone()],
            blow: Blow::Kill(operator.victim()),
        });
        house.delete(&name).await;
        if label.starts_with("DELETE") {
            house.until_gone(&name, PATIENCE).await;
            sink.set_down(false);
        }
        let fired = tokio::time::timeout(Duration::from_secs(90), fires).await;
        assert!(
            matches!(fired, Ok(Ok(()))),
            "{moment:?} {label}: {}",
            operator.last_words()
        );
        proxy.disarm();
        uids.insert(uid);
    }
    sink.set_down(false);
    let _last = Operator::ready(&house.post, &options("last"), Some(&proxy)).await;
    until_acknowledged(&sink, &uids).await;
    until_spooled(&house, "the spool is empty", BTreeMap::is_empty).await;
    for (uid, bodies) in sink.acknowledged() {
        assert!(
            bodies.iter().all(|body| *body == bodies[0]),
            "{uid}: one receipt, the same bytes"
        );
    }
    house.until_empty(PATIENCE).await;
}
