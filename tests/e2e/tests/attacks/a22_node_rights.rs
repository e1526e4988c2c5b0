//! Attack 22: rights over nodes and identities lead into every pod without any admission: none of ours has one.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{Api, api::PostParams};
use serde_json::json;
use vitrine_e2e::{
    installed::{Shop, together},
    operator::SLOTS,
};
use vitrine_kit::install::NAMESPACE;

/// What would lead past admission: verb, API group, resource, subresource.
const WAYS: [[&str; 4]; 13] = [
    ["get", "", "nodes", "proxy"],
    ["create", "", "nodes", "proxy"],
    ["create", "", "pods", "exec"],
    ["create", "", "pods", "attach"],
    ["create", "", "pods", "portforward"],
    ["get", "", "pods", "proxy"],
    ["get", "", "services", "proxy"],
    ["update", "", "pods", "ephemeralcontainers"],
    ["create", "", "serviceaccounts", "token"],
    ["get", "", "secrets", ""],
    ["create", "certificates.k8s.io", "certificatesigningrequests", ""],
    ["impersonate", "", "users", ""],
    ["create", "rbac.authorization.k8s.io", "clusterrolebindings", ""],
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_vitrine_holds_a_right_that_leads_past_admission() {
    let _together = together().await;
    let shop = Shop::open("rights").await;
    let reviews: Api<SubjectAccessReview> = Api::all(shop.client.clone());
    let may = async |account: &str, namespace: &str, [verb, group, what, part]: [&str; 4]| {
        let review = json!({"spec": {
            "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{NAMESPACE}"), "system:authenticated"],
            "resourceAttributes": {"namespace": namespace, "verb": verb, "group": group, "resource": what, "subresource": part}
        }});
        let review = serde_json::from_value(review).unwrap();
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        answer.status.unwrap().allowed
    };
    // That the question is understood.
    for (account, right) in [
        ("vitrine-operator", ["get", "", "nodes", "stats"]),
        (
            "vitrine-gateway",
            ["watch", "vitrine.dev", "previewsandboxes", ""],
        ),
    ] {
        assert!(may(account, "", right).await, "{account}: {right:?}");
    }
    for account in ["vitrine-operator", "vitrine-gateway", "vitrine-egress", "default"] {
        for namespace in ["", "default", "kube-system", NAMESPACE, SLOTS] {
            for way in WAYS {
                assert!(
                    !may(account, namespace, way).await,
                    "{account} in {namespace:?}: {way:?}"
                );
            }
        }
    }
    shop.close().await;
}
