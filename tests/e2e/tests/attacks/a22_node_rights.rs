//! Attack 22: rights over nodes and identities lead into every pod without any admission: none of ours has one.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::{Api, api::PostParams};
use serde_json::json;
use vitrine_e2e::{
    installed::{Shop, together},
    operator::SLOTS,
};
use vitrine_kit::install::NAMESPACE;

/// What would lead past admission: verb, resource, subresource.
const WAYS: [[&str; 3]; 13] = [
    ["get", "nodes", "proxy"],
    ["create", "nodes", "proxy"],
    ["create", "pods", "exec"],
    ["create", "pods", "attach"],
    ["create", "pods", "portforward"],
    ["get", "pods", "proxy"],
    ["get", "services", "proxy"],
    ["update", "pods", "ephemeralcontainers"],
    ["create", "serviceaccounts", "token"],
    ["get", "secrets", ""],
    ["create", "certificatesigningrequests", ""],
    ["impersonate", "users", ""],
    ["create", "clusterrolebindings", ""],
];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_vitrine_holds_a_right_that_leads_past_admission() {
    let _together = together().await;
    let shop = Shop::open("rights").await;
    let ask = |account: &str, namespace: &str, [verb, what, part]: [&str; 3]| {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{NAMESPACE}"), "system:authenticated"],
                "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": what, "subresource": part}
            }
        });
        serde_json::from_value::<SubjectAccessReview>(review).unwrap()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(shop.client.clone());
    let may = async |account: &str, namespace: &str, way: [&str; 3], group: &str| {
        let mut review = ask(account, namespace, way);
        review.spec.resource_attributes.as_mut().unwrap().group = Some(group.to_owned());
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        answer.status.unwrap().allowed
    };
    // That the question is understood.
    assert!(may("vitrine-operator", "", ["get", "nodes", "stats"], "").await);
    assert!(
        may(
            "vitrine-gateway",
            "",
            ["watch", "previewsandboxes", ""],
            "vitrine.dev"
        )
        .await
    );
    for account in ["vitrine-operator", "vitrine-gateway", "vitrine-egress", "default"] {
        for namespace in ["", "default", "kube-system", NAMESPACE, SLOTS] {
            for way in WAYS {
                let group = match way[1] {
                    "certificatesigningrequests" => "certificates.k8s.io",
                    "clusterrolebindings" => "rbac.authorization.k8s.io",
                    _ => "",
                };
                assert!(
                    !may(account, namespace, way, group).await,
                    "{account} in {namespace:?}: {way:?}"
                );
            }
        }
    }
    shop.close().await;
}
