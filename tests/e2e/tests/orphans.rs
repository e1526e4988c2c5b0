//! What the forced removal of a preview object leaves behind is found and removed.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use vitrine_crds::{Phase, PreviewSandbox, StatusReason, preview_sandbox::EndResult};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE, strip},
    operator::{self, Operator, Options},
};
use vitrine_kit::objects;

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
    // What is left then: preview, namespace, pod and slots (subject, listing, seller, cluster) of the other.
    eventually("only the other is left", SWEPT, async || {
        let left = house.left().await;
        if left.len() == 7 {
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
    assert_eq!(count, Some("5"), "a cell and four slots: {metrics}");
    house.delete("stays").await;
    house.until_empty(PATIENCE).await;
}

/// Removes a namespace as Kubernetes itself does it at the end, and with it what guards the objects that are still in it.
async fn vanish(house: &House, name: &str) {
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    namespaces.delete(name, &DeleteParams::default()).await.unwrap();
    eventually("the namespace is gone", PATIENCE, async || {
        let Some(mut namespace) = namespaces.get_opt(name).await.map_err(|e| e.to_string())? else {
            return Ok(());
        };
        namespace.spec.get_or_insert_default().finalizers = Some(vec![]);
        let finalized = namespaces
            .replace_subresource("finalize", name, &PostParams::default(), &namespace)
            .await;
        Err(format!("{finalized:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_names_a_preview_whose_namespace_vanished_and_the_way_out_works() {
    let house = House::take("vanished", 1, "24h").await;
    {
        let _operator = Operator::ready(&house.post, &Options::alone("vanished"), None).await;
        house.preview("stranded", "anna", None).await;
        let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
        house.until("stranded", "it is ready", PATIENCE, ready).await;
    }
    vanish(&house, "vanished").await;
    let drain = || {
        let mut command = Command::new(operator::program());
        command
            .args(["drain", "--timeout", "60s"])
            .env("KUBECONFIG", house.cluster.kubeconfig());
        command
    };
    let begun = Instant::now();
    let refused = drain().output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("vanished/stranded: Ready"), "{said}");
    assert!(said.contains("kubectl create namespace vanished"), "{said}");
    assert!(begun.elapsed() < PATIENCE, "it waited for what cannot come");

    objects::shop(&house.client, "vanished").await.unwrap();
    let _operator = Operator::ready(&house.post, &Options::alone("vanished-2"), None).await;
    let done = drain().output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    house.until_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_preview_whose_node_was_removed_is_recorded_and_its_slots_are_free() {
    let house = House::take("removed", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("removed"), None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.preview("lost", "anna", Some("8s")).await;
    let lost = house.until("lost", "it is ready", PATIENCE, ready).await;
    let name = lost.status.unwrap().node.unwrap();
    let nodes: Api<Node> = Api::all(house.client.clone());
    let mut node = nodes.get(&name).await.unwrap();
    nodes.delete(&name, &DeleteParams::default()).await.unwrap();
    house.preview("next", "anna", None).await;
    let over = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase.is_terminal());
    let lost = house.until("lost", "its end is recorded", SWEPT, over).await;
    house.until("next", "it has the slot", SWEPT, ready).await;
    node.metadata = ObjectMeta {
        name: Some(name),
        labels: node.metadata.labels,
        annotations: node.metadata.annotations,
        ..ObjectMeta::default()
    };
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let receipt = lost.status.unwrap().receipt.unwrap();
    assert_eq!(
        (receipt.result, receipt.cause),
        (EndResult::ReportedGone, StatusReason::TimeOver)
    );
    for name in ["lost", "next"] {
        house.delete(name).await;
    }
    house.until_empty(PATIENCE).await;
}
