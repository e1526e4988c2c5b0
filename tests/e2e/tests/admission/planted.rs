//! Nothing can be planted in a cell: every namespaced kind that the API server lets somebody create, by an administrator and by one
//! who has broken the glass.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vitrine_e2e::{
    installed::{SRE, together},
    manifest::Manifest,
};
use vitrine_policies::names;

use super::{ADMIN, As, live};

/// Is answered and not kept.
const ANSWERED: &str = "localsubjectaccessreviews.authorization.k8s.io";
/// Kinds that a quota does not count, and what then holds: events say something and do nothing, a pod that has a node is bound to no
/// other, and a foreign network policy ends the preview (tests/drift).
const UNCOUNTED: [&str; 4] = [
    "bindings",
    "events",
    "events.events.k8s.io",
    "networkpolicies.networking.k8s.io",
];

/// A valid object of each kind, so that nothing but admission refuses it.
fn manifests(cell: &str) -> BTreeMap<&'static str, Value> {
    // Of what previews may run, so that it is not refused for that.
    let image = format!("vitrine.local/planted@sha256:{}", "0".repeat(64));
    let pod = json!({
        "restartPolicy": "Never", "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "a", "image": image, "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": "1m", "memory": "1Mi"}}
        }]
    });
    let mut always = pod.clone();
    always["restartPolicy"] = json!("Always");
    let (labels, selector) = (json!({"labels": {"a": "b"}}), json!({"matchLabels": {"a": "b"}}));
    let template = json!({"metadata": labels, "spec": always});
    let job = json!({"template": {"spec": pod}});
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "a"});
    let kinds = [
        (
            "bindings",
            "v1",
            "Binding",
            json!({"target": {"apiVersion": "v1", "kind": "Node", "name": "a"}}),
        ),
        ("configmaps", "v1", "ConfigMap", json!({})),
        ("endpoints", "v1", "Endpoints", json!({})),
        (
            "events",
            "v1",
            "Event",
            json!({"involvedObject": {"namespace": cell}}),
        ),
        ("limitranges", "v1", "LimitRange", json!({"spec": {"limits": []}})),
        (
            "persistentvolumeclaims",
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}),
        ),
        ("pods", "v1", "Pod", json!({"spec": pod})),
        ("podtemplates", "v1", "PodTemplate", json!({"template": template})),
        (
            "replicationcontrollers",
            "v1",
            "ReplicationController",
            json!({"spec": {"replicas": 0, "selector": {"a": "b"}, "template": template}}),
        ),
        (
            "resourcequotas",
            "v1",
            "ResourceQuota",
            json!({"spec": {"hard": {"pods": "9"}}}),
        ),
        ("secrets", "v1", "Secret", json!({})),
        ("serviceaccounts", "v1", "ServiceAccount", json!({})),
        (
            "services",
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
        ),
        (
            "controllerrevisions.apps",
            "apps/v1",
            "ControllerRevision",
            json!({"revision": 1, "data": {}}),
        ),
        (
            "daemonsets.apps",
            "apps/v1",
            "DaemonSet",
            json!({"spec": {"selector": selector, "template": template}}),
        ),
        (
            "deployments.apps",
            "apps/v1",
            "Deployment",
            json!({"spec": {"replicas": 0, "selector": selector, "template": template}}),
        ),
        (
            "replicasets.apps",
            "apps/v1",
            "ReplicaSet",
            json!({"spec": {"replicas": 0, "selector": selector, "template": template}}),
        ),
        (
            "statefulsets.apps",
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"replicas": 0, "serviceName": "a", "selector": selector, "template": template}}),
        ),
        (
            "horizontalpodautoscalers.autoscaling",
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"maxReplicas": 1, "scaleTargetRef": target}}),
        ),
        (
            "cronjobs.batch",
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}}}),
        ),
        ("jobs.batch", "batch/v1", "Job", json!({"spec": job})),
        (
            "leases.coordination.k8s.io",
            "coordination.k8s.io/v1",
            "Lease",
            json!({}),
        ),
        (
            "endpointslices.discovery.k8s.io",
            "discovery.k8s.io/v1",
            "EndpointSlice",
            json!({"addressType": "IPv4", "endpoints": []}),
        ),
        (
            "events.events.k8s.io",
            "events.k8s.io/v1",
            "Event",
            json!({
                "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.example/b", "reportingInstance": "c", "action": "d",
                "reason": "E", "type": "Normal", "regarding": {"namespace": cell}
            }),
        ),
        (
            "ingresses.networking.k8s.io",
            "networking.k8s.io/v1",
            "Ingress",
            json!({"spec": {"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}}),
        ),
        (
            "networkpolicies.networking.k8s.io",
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}}),
        ),
        (
            "poddisruptionbudgets.policy",
            "policy/v1",
            "PodDisruptionBudget",
            json!({"spec": {"selector": selector}}),
        ),
        (
            "rolebindings.rbac.authorization.k8s.io",
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}),
        ),
        (
            "roles.rbac.authorization.k8s.io",
            "rbac.authorization.k8s.io/v1",
            "Role",
            json!({"rules": []}),
        ),
        (
            "resourceclaims.resource.k8s.io",
            "resource.k8s.io/v1",
            "ResourceClaim",
            json!({"spec": {}}),
        ),
        (
            "resourceclaimtemplates.resource.k8s.io",
            "resource.k8s.io/v1",
            "ResourceClaimTemplate",
            json!({"spec": {"spec": {}}}),
        ),
        (
            "csistoragecapacities.storage.k8s.io",
            "storage.k8s.io/v1",
            "CSIStorageCapacity",
            json!({"storageClassName": "a"}),
        ),
        (
            "previewpools.vitrine.dev",
            "vitrine.dev/v1alpha1",
            "PreviewPool",
            json!({"spec": {"listingRef": {"name": "a"}, "replicas": 1}}),
        ),
        (
            "previewsandboxes.vitrine.dev",
            "vitrine.dev/v1alpha1",
            "PreviewSandbox",
            json!({"spec": {"listingRef": {"name": "a"}, "subject": "s"}}),
        ),
        (
            "skulistings.vitrine.dev",
            "vitrine.dev/v1alpha1",
            "SkuListing",
            json!({"spec": {"sku": "a", "seller": "s", "version": "1.0.0", "preview": {
                "image": format!("example.com/a@sha256:{}", "0".repeat(64)), "port": 8080,
                "size": {"cpu": "1m", "memory": "1Mi", "ephemeralStorage": "1Mi"}}}}),
        ),
    ];
    let whole = kinds.map(|(resource, version, kind, mut object)| {
        object["apiVersion"] = json!(version);
        object["kind"] = json!(kind);
        object["metadata"] = match kind {
            // It is of the pod that has its name.
            "Binding" => json!({"name": names::POD}),
            _ => json!({"name": "planted"}),
        };
        (resource, object)
    });
    whole.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_object_can_be_planted_in_a_cell() {
    let _together = together().await;
    let (shop, live) = live("planted").await;
    let served = shop
        .vitrine
        .kubectl(&["api-resources", "--namespaced", "--verbs=create", "-o", "name"]);
    let manifests = manifests(&live.cell);
    let (admin, broken_glass) = (As(shop.vitrine, ADMIN), As(shop.vitrine, SRE));
    let mut tried = 0;
    for resource in served.lines().filter(|resource| *resource != ANSWERED) {
        let manifest = manifests.get(resource);
        let manifest = manifest.unwrap_or_else(|| panic!("this test has nothing of the kind {resource}"));
        let manifest = Manifest::new(manifest);
        let plant = ["-n", &live.cell, "create", "-f", manifest.path()];
        admin.refused("vitrine-cells", &plant);
        tried += 1;
        // Our own kinds in a namespace of ours mean nothing: previews live elsewhere.
        if !UNCOUNTED.contains(&resource) && !resource.ends_with(".vitrine.dev") {
            let said = broken_glass.try_it(&plant).expect_err(resource);
            assert!(said.contains("exceeded quota"), "{resource}: {said}");
        }
    }
    assert!(tried > 30, "{served}");
    shop.close().await;
}
