//! The admission policies on the real API server: for each what it refuses to whom, and what it lets through.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a05_stolen_token;
mod a15_into_a_pod;
mod a18_slots;
mod built;
mod planted;

use std::collections::BTreeSet;

use kube::api::DeleteParams;
use serde_json::{Value, json};
use vitrine_crds::StatusReason;
use vitrine_e2e::{
    installed::{Installed, Live, OPERATOR, SRE, Shop, alone, assert_verified, together},
    manifest::Manifest,
    operator::RECEIPTS,
};
use vitrine_kit::{install::NAMESPACE, objects};
use vitrine_policies::names;

/// An administrator, who may do everything as far as RBAC goes.
const ADMIN: (&str, &[&str]) = ("vitrine-e2e:admin", &["system:masters", "system:authenticated"]);

/// All that the chart brings.
const POLICIES: [&str; 9] = [
    "vitrine-cells",
    "vitrine-cell-namespaces",
    "vitrine-operator",
    "vitrine-slots",
    "vitrine-receipts",
    "vitrine-keys",
    "vitrine-trust",
    "vitrine-envelope",
    "vitrine-images",
];

struct As<'a>(&'a Installed, (&'a str, &'a [&'a str]));

impl As<'_> {
    fn try_it(&self, arguments: &[&str]) -> Result<String, String> {
        self.0.kubectl_as(self.1.0, self.1.1, arguments)
    }

    /// The API server must refuse it, by this policy and no other.
    fn refused(&self, policy: &str, arguments: &[&str]) -> String {
        let said = self
            .try_it(arguments)
            .expect_err(&format!("{}: {arguments:?}", self.1.0));
        let by = format!("ValidatingAdmissionPolicy '{policy}'");
        assert!(said.contains(&by), "{}: {arguments:?}: {said}", self.1.0);
        said
    }

    /// It would be done; nothing is.
    fn allowed(&self, arguments: &[&str]) {
        let dry = [arguments, &["--dry-run=server"]].concat();
        let done = self.try_it(&dry);
        assert!(done.is_ok(), "{}: {arguments:?}: {done:?}", self.1.0);
    }
}

async fn live(name: &str) -> (Shop, Live) {
    let shop = Shop::open(name).await;
    let live = shop.live("page", objects::SERVE, "5m").await;
    (shop, live)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_the_operator_writes_in_a_cell() {
    let _together = together().await;
    let (shop, live) = live("cells").await;
    let cell = live.cell.as_str();
    let admin = As(shop.vitrine, ADMIN);
    let bare = Manifest::new(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}),
    );
    let open = Manifest::new(
        &json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "open"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}}),
    );
    let lease = Manifest::new(
        &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "planted"}}),
    );
    for change in [
        vec!["create", "configmap", "planted", "--from-literal=a=b"],
        vec!["create", "serviceaccount", "planted"],
        vec!["create", "service", "clusterip", "planted", "--tcp=80"],
        vec!["create", "role", "planted", "--verb=get", "--resource=pods"],
        vec!["create", "-f", lease.path()],
        vec!["create", "-f", open.path()],
        vec!["label", "pod", names::POD, "planted=yes"],
        vec!["delete", "pod", names::POD],
        vec!["delete", "networkpolicy", names::SEAL],
        vec!["delete", "resourcequota", names::SEAL],
        vec!["annotate", "limitrange", names::SEAL, "planted=yes"],
    ] {
        admin.refused("vitrine-cells", &[&["-n", cell][..], &change].concat());
    }
    // Nor do the parts of Kubernetes, beyond what each is there for. (Their own work is done in every other test.)
    let everything = ["system:masters", "system:authenticated", "system:nodes"];
    let all_but_nodes = &everything[..2];
    let quota = json!({"spec": {"hard": {"count/pods": "9"}}}).to_string();
    for (user, groups, change) in [
        (
            "system:kube-scheduler",
            all_but_nodes,
            vec!["delete", "networkpolicy", names::SEAL],
        ),
        (
            "system:node:any",
            &everything,
            vec!["create", "configmap", "planted", "--from-literal=a=b"],
        ),
        (
            "system:apiserver",
            all_but_nodes,
            vec!["patch", "resourcequota", names::SEAL, "-p", &quota],
        ),
        (
            "system:serviceaccount:kube-system:resourcequota-controller",
            all_but_nodes,
            vec!["patch", "resourcequota", names::SEAL, "-p", &quota],
        ),
        (
            "system:serviceaccount:kube-system:namespace-controller",
            all_but_nodes,
            vec!["create", "configmap", "planted", "--from-literal=a=b"],
        ),
        (
            "system:serviceaccount:kube-system:service-account-controller",
            all_but_nodes,
            vec!["create", "serviceaccount", "planted"],
        ),
        (
            "system:serviceaccount:kube-system:deployment-controller",
            all_but_nodes,
            vec!["delete", "pod", names::POD],
        ),
        (
            "system:kube-controller-manager",
            all_but_nodes,
            vec!["create", "-f", open.path()],
        ),
    ] {
        let part = As(shop.vitrine, (user, groups));
        part.refused("vitrine-cells", &[&["-n", cell][..], &change].concat());
    }
    // Pod Security looks first at a pod.
    let refused = admin
        .try_it(&["-n", cell, "create", "-f", bare.path()])
        .unwrap_err();
    assert!(refused.contains("forbidden"), "{refused}");
    // Nodes can be drained.
    let eviction = Manifest::new(
        &json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": names::POD, "namespace": cell},
            "deleteOptions": {"dryRun": ["All"]}}),
    );
    let evict = format!("/api/v1/namespaces/{cell}/pods/{}/eviction", names::POD);
    let evicted = admin.try_it(&["create", "--raw", &evict, "-f", eviction.path()]);
    assert!(evicted.is_ok(), "{evicted:?}");
    let sre = As(shop.vitrine, SRE);
    sre.allowed(&["-n", cell, "label", "pod", names::POD, "looked-at=yes"]);
    sre.allowed(&["-n", cell, "delete", "networkpolicy", names::SEAL]);
    let operator = As(shop.vitrine, OPERATOR);
    operator.allowed(&["-n", cell, "delete", "pod", names::POD]);
    operator.allowed(&[
        "-n",
        cell,
        "label",
        "serviceaccount",
        names::SERVICE_ACCOUNT,
        "kept=yes",
    ]);
    operator.refused(
        "vitrine-cells",
        &["-n", cell, "create", "serviceaccount", "another"],
    );
    // Logs are read, not written, and Ready is not disturbed by any of it.
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_a_cell_by_name_and_label_together_and_only_the_operator_makes_one() {
    let _together = together().await;
    let (shop, live) = live("namespaces").await;
    let cell = live.cell.as_str();
    let policy = "vitrine-cell-namespaces";
    let namespace = |name: &str, labels: Value, annotations: Value| {
        Manifest::new(&json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": labels, "annotations": annotations}}))
    };
    let sealed = json!({"vitrine.dev/cell": "true", "pod-security.kubernetes.io/enforce": "restricted"});
    let uid = json!({"vitrine.dev/preview": "s/p", "vitrine.dev/preview-uid": "u", "vitrine.dev/epoch": "e"});
    let right = namespace("vitrine-cell-0000000000000001", sealed.clone(), uid.clone());
    let admin = As(shop.vitrine, ADMIN);
    admin.refused(policy, &["create", "namespace", "vitrine-cell-0000000000000002"]);
    admin.refused(policy, &["create", "-f", right.path()]);
    admin.refused(
        policy,
        &["label", "namespace", &shop.namespace, "vitrine.dev/cell=true"],
    );
    admin.refused(policy, &["label", "namespace", cell, "vitrine.dev/cell-"]);
    let loose = "pod-security.kubernetes.io/enforce=privileged";
    admin.refused(policy, &["label", "--overwrite", "namespace", cell, loose]);
    admin.refused(
        policy,
        &[
            "annotate",
            "--overwrite",
            "namespace",
            cell,
            "vitrine.dev/preview-uid=another",
        ],
    );
    let said = admin.refused(policy, &["delete", "namespace", cell]);
    assert!(said.contains("delete the PreviewSandbox"), "{said}");
    // What others put onto namespaces for their own purposes is none of ours.
    admin.allowed(&["annotate", "namespace", cell, "example.com/cost-centre=7"]);
    admin.allowed(&["label", "namespace", &shop.namespace, "team=blue"]);

    let operator = As(shop.vitrine, OPERATOR);
    operator.allowed(&["create", "-f", right.path()]);
    let wrong = namespace(
        "vitrine-cell-0000000000000003",
        json!({"vitrine.dev/cell": "true"}),
        uid,
    );
    operator.refused(policy, &["create", "-f", wrong.path()]);
    let half = namespace(
        "vitrine-cell-0000000000000004",
        sealed.clone(),
        json!({"vitrine.dev/preview-uid": "u", "vitrine.dev/epoch": "e"}),
    );
    operator.refused(policy, &["create", "-f", half.path()]);
    let timeless = namespace(
        "vitrine-cell-0000000000000005",
        sealed,
        json!({"vitrine.dev/preview": "s/p", "vitrine.dev/preview-uid": "u"}),
    );
    operator.refused(policy, &["create", "-f", timeless.path()]);
    operator.refused(policy, &["delete", "namespace", names::SENTINEL]);
    operator.allowed(&["delete", "namespace", cell]);
    As(shop.vitrine, SRE).allowed(&["delete", "namespace", cell]);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_runs_already_is_let_go_whatever_the_mirror_is_by_then() {
    let _alone = alone().await;
    let (shop, live) = live("mirror").await;
    let moved = shop.vitrine.with_mirror(&["elsewhere.example"]);
    let touch = ["-n", &live.cell, "annotate", "pod", names::POD, "touched=yes"];
    As(shop.vitrine, OPERATOR).allowed(&touch);
    moved.back();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_kept_and_let_go_by_the_operator_alone() {
    let _together = together().await;
    let shop = Shop::open("kept").await;
    let policy = "vitrine-receipts";
    let map = |name: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"receipt.json": "{}"}});
        Manifest::new(&map)
    };
    let kept = "receipt-01234567-89ab-cdef-0123-456789abcdef";
    let (receipt, other, note) = (map(kept), map("receipt-of-mine"), map("note"));
    let (admin, operator) = (As(shop.vitrine, ADMIN), As(shop.vitrine, OPERATOR));
    let make = ["-n", RECEIPTS, "create", "-f", receipt.path()];
    admin.refused(policy, &make);
    operator.refused(policy, &["-n", RECEIPTS, "create", "-f", other.path()]);
    // What is no receipt is no concern of the policy's: every namespace gets its root certificate.
    admin.allowed(&["-n", RECEIPTS, "create", "-f", note.path()]);
    operator.try_it(&make).unwrap();
    let delete = ["-n", RECEIPTS, "delete", "configmap", kept];
    let annotate = ["-n", RECEIPTS, "annotate", "configmap", kept, "a=b"];
    admin.refused(policy, &delete);
    admin.refused(policy, &annotate);
    As(shop.vitrine, SRE).allowed(&delete);
    operator.try_it(&delete).unwrap();
    for keys in ["vitrine-link-keys", "vitrine-receipt-keys"] {
        let policy = "vitrine-keys";
        let planted = [
            "-n",
            NAMESPACE,
            "patch",
            "configmap",
            keys,
            "-p",
            r#"{"data":{"mine":"a key"}}"#,
        ];
        admin.refused(policy, &planted);
        admin.refused(policy, &["-n", NAMESPACE, "delete", "configmap", keys]);
        // The operator publishes by update; it has no right to patch.
        let renewed = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": keys}, "data": {"renewed": "a key"}});
        let renewed = Manifest::new(&renewed);
        operator.allowed(&["-n", NAMESPACE, "replace", "-f", renewed.path()]);
        As(shop.vitrine, SRE).allowed(&planted);
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requesters_name_a_trust_level() {
    let _together = together().await;
    let shop = Shop::open("trust").await;
    shop.offer_script("page", objects::SERVE).await;
    let preview = |level: &str| {
        Manifest::new(
            &json!({"apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox", "metadata": {"name": "known"},
                "spec": {"listingRef": {"name": "page"}, "subject": "s", "trustLevel": level}}),
        )
    };
    let requester = (
        "vitrine-e2e:shop",
        &["system:masters", "system:authenticated", "vitrine:requesters"][..],
    );
    for level in ["SignedIn", "PaymentVerified"] {
        let manifest = preview(level);
        let ask = ["-n", &shop.namespace, "create", "-f", manifest.path()];
        let said = As(shop.vitrine, ADMIN).refused("vitrine-trust", &ask);
        assert!(
            said.contains(&format!("spec.trustLevel {level} may be named only by")),
            "{said}"
        );
        As(shop.vitrine, requester).allowed(&ask);
    }
    let manifest = preview("Anonymous");
    As(shop.vitrine, ADMIN).allowed(&["-n", &shop.namespace, "create", "-f", manifest.path()]);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_held_from_its_creation_and_keeps_what_others_put_on_it() {
    let _together = together().await;
    let shop = Shop::open("held").await;
    let preview = Manifest::new(
        &json!({"apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox",
            "metadata": {"name": "held", "finalizers": ["example.com/shop"]},
            "spec": {"listingRef": {"name": "page"}, "subject": "s"}}),
    );
    let ask = [
        "-n",
        &shop.namespace,
        "create",
        "-f",
        preview.path(),
        "--dry-run=server",
        "-o",
        "json",
    ];
    let made: Value = serde_json::from_str(&As(shop.vitrine, ADMIN).try_it(&ask).unwrap()).unwrap();
    let finalizers = made["metadata"]["finalizers"].as_array().unwrap().iter();
    let finalizers: BTreeSet<_> = finalizers.filter_map(Value::as_str).collect();
    assert_eq!(
        finalizers,
        BTreeSet::from(["example.com/shop", names::PREVIEW_FINALIZER])
    );
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_policy_in_force_a_preview_comes_lives_and_goes() {
    let _together = together().await;
    let (shop, live) = live("life").await;
    let bindings = shop
        .vitrine
        .kubectl(&["get", "validatingadmissionpolicybindings", "-o", "name"]);
    for policy in POLICIES {
        assert!(bindings.contains(&format!("/{policy}\n")), "{policy}: {bindings}");
    }
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    shop.previews()
        .delete("page", &DeleteParams::default())
        .await
        .unwrap();
    let api = shop.previews();
    vitrine_e2e::eventually::eventually("it is gone", vitrine_e2e::installed::END, async || {
        match api.get_opt("page").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    shop.nothing_left(&live).await;
    // And one whose time is simply over.
    let short = {
        shop.ask("short", "page", "5s").await;
        shop.ready("short").await
    };
    let over = shop.over("short").await;
    assert_verified(&over, StatusReason::TimeOver);
    shop.nothing_left(&short).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_not_ready_while_policies_are_not_in_force_and_names_each() {
    let _alone = alone().await;
    let shop = Shop::open("unbound").await;
    let vitrine = shop.vitrine;
    let bindings = [&["delete", "validatingadmissionpolicybinding"][..], &POLICIES].concat();
    vitrine.kubectl(&bindings);
    let selector = "app.kubernetes.io/component=operator";
    let wait = |condition: &str| {
        vitrine.try_kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "pod",
            "-l",
            selector,
            "--for",
            condition,
            "--timeout=90s",
        ])
    };
    let told = wait("condition=Ready=false");
    let logs = vitrine.try_kubectl(&["-n", NAMESPACE, "logs", "-l", selector, "--tail=-1"]);
    // Whatever came of it: the others need the policies.
    vitrine.install();
    told.unwrap();
    let logs = logs.unwrap();
    let names_all = |line: &str| {
        POLICIES
            .iter()
            .all(|policy| line.contains(&format!("{policy} (what")))
    };
    assert!(logs.lines().any(names_all), "{logs}");
    wait("condition=Ready").unwrap();
    shop.close().await;
}
