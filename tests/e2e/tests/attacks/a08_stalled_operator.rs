//! Attack 8: an operator that stood still puts the pod of a preview that is over into a cell, its own or another preview's.

use serde_json::{Value, json};
use vitrine_e2e::installed::{OPERATOR, Shop, together};
use vitrine_kit::objects;
use vitrine_policies::names;

#[tokio::test(flavor = "multi_thread")]
async fn the_pod_of_a_preview_that_is_over_finds_no_cell() {
    let _together = together().await;
    let shop = Shop::open("stalled").await;
    let old = shop.live("old", objects::SERVE, "3m").await;
    let pod = shop
        .vitrine
        .kubectl(&["-n", &old.cell, "get", "pod", names::POD, "-o", "json"]);
    let mut pod: Value = serde_json::from_str(&pod).unwrap();
    // As the operator writes it, before the scheduler.
    pod["spec"].as_object_mut().unwrap().remove("nodeName");
    let stalled = |cell: &str, name: &str, epoch: &Value| {
        let mut annotations = pod["metadata"]["annotations"].clone();
        annotations[names::EPOCH_ANNOTATION] = epoch.clone();
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": pod["spec"],
            "metadata": {
                "name": name, "namespace": cell, "labels": pod["metadata"]["labels"],
                "annotations": annotations, "finalizers": pod["metadata"]["finalizers"],
            }
        })
    };
    let epoch = pod["metadata"]["annotations"][names::EPOCH_ANNOTATION].clone();
    assert!(epoch.is_string(), "{pod}");
    let (user, groups) = OPERATOR;
    let put = |cell: &str, name: &str, epoch: &Value| {
        let late = stalled(cell, name, epoch);
        shop.vitrine.create_as(user, groups, &late).unwrap_err()
    };
    let other_making = "this pod is meant for another making of this cell";
    shop.vitrine
        .kubectl(&["-n", &shop.namespace, "delete", "previewsandbox", "old"]);
    shop.nothing_left(&old).await;
    let next = shop.live("next", objects::SERVE, "3m").await;

    // Free by now, or another preview's.
    let own = put(&old.cell, names::POD, &epoch);
    assert!(own.contains(other_making), "{own}");
    let instead = put(&next.cell, names::POD, &epoch);
    assert!(instead.contains(other_making), "{instead}");
    // Even if it knew which making of the cell this is.
    let there = shop
        .vitrine
        .kubectl(&["-n", &next.cell, "get", "pod", names::POD, "-o", "json"]);
    let there: Value = serde_json::from_str(&there).unwrap();
    let known = &there["metadata"]["annotations"][names::EPOCH_ANNOTATION];
    let beside = put(&next.cell, "late", known);
    assert!(
        beside.contains("ValidatingAdmissionPolicy 'vitrine-cells'"),
        "{beside}"
    );
    let instead = put(&next.cell, names::POD, known);
    assert!(
        instead.contains("exceeded quota") && instead.contains("count/pods=1"),
        "{instead}"
    );

    // Another one that stood still makes a cell again that was removed, and the pod comes after that. (With its preview it would be
    // swept.)
    let removed = names::cell(&shop.namespace);
    let again = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": removed, "labels": {"vitrine.dev/cell": "true", "pod-security.kubernetes.io/enforce": "restricted"},
            "annotations": {names::EPOCH_ANNOTATION: "another"}},
    });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": false,
        "metadata": {"name": names::SERVICE_ACCOUNT, "namespace": removed},
    });
    for object in [again, account] {
        shop.vitrine.create_as(user, groups, &object).unwrap();
    }
    let again = put(&removed, names::POD, &epoch);
    assert!(again.contains(other_making), "{again}");
    shop.vitrine.break_glass(&["delete", "namespace", &removed]);
    shop.close().await;
}
