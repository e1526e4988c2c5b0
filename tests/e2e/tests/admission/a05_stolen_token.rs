//! Attack 5: who has the operator's token would own the cluster: RBAC cannot tell cells from other namespaces.

use serde_json::{Value, json};
use vitrine_e2e::{
    installed::{OPERATOR, together},
    manifest::Manifest,
    operator::SLOTS,
};
use vitrine_kit::install::NAMESPACE;
use vitrine_policies::names;

use super::{As, live};

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_token_is_worth_nothing_outside_of_cells() {
    let _together = together().await;
    let (shop, live) = live("token").await;
    let operator = As(shop.vitrine, OPERATOR);
    let policy = "vitrine-operator";
    let pod = Manifest::new(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mine"},
            "spec": {"hostNetwork": true, "containers": [{"name": "a", "image": "b"}]}}),
    );
    for namespace in ["default", "kube-system", NAMESPACE, SLOTS, &shop.namespace] {
        operator.refused(policy, &["-n", namespace, "create", "serviceaccount", "mine"]);
        operator.refused(policy, &["-n", namespace, "create", "quota", "mine"]);
    }
    for namespace in ["default", "kube-system"] {
        operator.refused(policy, &["-n", namespace, "create", "-f", pod.path()]);
    }
    // It may try previews at home, and make none.
    let preview = Manifest::new(
        &json!({"apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox",
        "metadata": {"name": "mine"}, "spec": {"listingRef": {"name": "page"}, "subject": "s"}}),
    );
    operator.allowed(&["-n", NAMESPACE, "create", "-f", preview.path()]);
    operator.refused(policy, &["-n", NAMESPACE, "create", "-f", preview.path()]);
    for arguments in [
        vec!["create", "namespace", "mine"],
        vec!["delete", "namespace", &shop.namespace],
        vec![
            "label",
            "namespace",
            "kube-system",
            "pod-security.kubernetes.io/enforce=privileged",
        ],
    ] {
        operator.refused(policy, &arguments);
    }
    // In a cell it makes previews' pods and no others.
    let cell = live.cell.as_str();
    let made = shop
        .vitrine
        .kubectl(&["-n", cell, "get", "pod", names::POD, "-o", "json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let sound = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": names::POD, "labels": made["metadata"]["labels"], "annotations": made["metadata"]["annotations"]},
        "spec": made["spec"]});
    let set = |pointer: &str, value: Value| {
        let mut changed = sound.clone();
        // The scheduler's and the API server's additions are not the operator's.
        for own in ["nodeName", "tolerations", "priority", "preemptionPolicy"] {
            changed["spec"].as_object_mut().unwrap().remove(own);
        }
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[field.replace("~1", "/")] = value;
        changed
    };
    let product = sound["spec"]["containers"][0].clone();
    let mut beside = product.clone();
    beside["name"] = json!("beside");
    let bad = [
        ("/metadata/annotations/vitrine.dev~1epoch", json!("another")),
        ("/spec/automountServiceAccountToken", json!(true)),
        ("/spec/serviceAccountName", json!("default")),
        ("/spec/restartPolicy", json!("Always")),
        ("/spec/terminationGracePeriodSeconds", json!(0)),
        ("/spec/activeDeadlineSeconds", json!(null)),
        ("/spec/nodeName", json!("node")),
        ("/spec/priorityClassName", json!("system-node-critical")),
        ("/spec/tolerations", json!([{"operator": "Exists"}])),
        (
            "/spec/volumes",
            json!([{"name": "writable-0", "emptyDir": {}}, {"name": "watch-life", "emptyDir": {}}]),
        ),
        (
            "/spec/initContainers/0/image",
            sound["spec"]["containers"][0]["image"].clone(),
        ),
        ("/spec/initContainers/0/name", json!("prepare")),
        ("/spec/enableServiceLinks", json!(true)),
        ("/spec/containers", json!([product, beside])),
        ("/spec/initContainers/0/restartPolicy", json!("Always")),
        ("/spec/containers/0/image", json!("vitrine.local/busybox:latest")),
        (
            "/spec/containers/0/securityContext/readOnlyRootFilesystem",
            json!(false),
        ),
    ];
    for (pointer, value) in bad {
        let manifest = Manifest::new(&set(pointer, value));
        let said = operator.try_it(&["-n", cell, "create", "-f", manifest.path(), "--dry-run=server"]);
        let said = said.expect_err(pointer);
        let ours = said.contains("ValidatingAdmissionPolicy 'vitrine-operator'");
        // Pod Security comes first.
        assert!(ours || said.contains("violates PodSecurity"), "{pointer}: {said}");
    }
    // What runs keeps its images, those of the mirror and Vitrine's own among them.
    let vitrine = sound["spec"]["initContainers"][0]["image"].clone();
    let product = sound["spec"]["containers"][0]["image"].clone();
    for (list, container, image) in [
        ("containers", names::PRODUCT, &vitrine),
        ("initContainers", names::WATCH, &product),
    ] {
        let change = json!({"spec": {list: [{"name": container, "image": image}]}}).to_string();
        let said = operator.refused(policy, &["-n", cell, "patch", "pod", names::POD, "-p", &change]);
        assert!(said.contains("keeps the images"), "{said}");
    }
    operator.allowed(&["-n", cell, "label", "pod", names::POD, "looked-at=yes"]);
    // A running preview gets less from it, and never more.
    let resize = |cpu: &str| {
        let product =
            json!({"name": names::PRODUCT, "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        json!({"spec": {"containers": [product]}}).to_string()
    };
    // By hand: kubectl would ask for the pod's size first, which is no right of the operator's.
    let resized = async |cpu: &str| {
        let request = http::Request::patch(format!(
            "/api/v1/namespaces/{cell}/pods/{}/resize?dryRun=All",
            names::POD
        ));
        let request = request
            .header("Impersonate-User", OPERATOR.0)
            .header("Content-Type", "application/strategic-merge-patch+json")
            .body(resize(cpu).into_bytes())
            .unwrap();
        shop.client.request::<Value>(request).await
    };
    let said = resized("60m").await.unwrap_err().to_string();
    assert!(said.contains("given less, never more"), "{said}");
    resized("5m").await.unwrap();
    // What it runs comes from the platform's mirror.
    let elsewhere = json!(format!("evil.example/miner@sha256:{}", "a".repeat(64)));
    let manifest = Manifest::new(&set("/spec/containers/0/image", elsewhere));
    operator.refused(
        "vitrine-images",
        &["-n", cell, "create", "-f", manifest.path(), "--dry-run=server"],
    );
    // Its own shape passes every policy; only the quota knows that there is one already.
    let manifest = Manifest::new(&set("/metadata/name", json!(names::POD)));
    let said = operator
        .try_it(&["-n", cell, "create", "-f", manifest.path(), "--dry-run=server"])
        .unwrap_err();
    assert!(
        said.contains("exceeded quota") || said.contains("already exists"),
        "{said}"
    );
    shop.close().await;
}
