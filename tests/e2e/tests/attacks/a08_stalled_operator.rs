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
    let stalled = |cell: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "spec": pod["spec"],
            "metadata": {
                "name": name, "namespace": cell, "labels": pod["metadata"]["labels"],
                "annotations": pod["metadata"]["annotations"], "finalizers": pod["metadata"]["finalizers"],
            }
        })
    };
    let (user, groups) = OPERATOR;
    let put = |cell: &str, name: &str| shop.vitrine.create_as(user, groups, &stalled(cell, name));
    shop.vitrine
        .kubectl(&["-n", &shop.namespace, "delete", "previewsandbox", "old"]);
    shop.nothing_left(&old).await;
    let next = shop.live("next", objects::SERVE, "3m").await;

    let own = put(&old.cell, names::POD).unwrap_err();
    assert!(own.contains("not found"), "its own cell is gone: {own}");
    let beside = put(&next.cell, "late").unwrap_err();
    assert!(
        beside.contains("ValidatingAdmissionPolicy 'vitrine-cells'"),
        "{beside}"
    );
    let instead = put(&next.cell, names::POD).unwrap_err();
    assert!(
        instead.contains("exceeded quota") && instead.contains("count/pods=1"),
        "{instead}"
    );
    shop.close().await;
}
