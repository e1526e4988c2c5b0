//! Attack 22: rights over nodes and identities lead into every pod without any admission: none of ours has one.

use vitrine_e2e::installed::{Shop, together};
use vitrine_kit::install::NAMESPACE;

/// What would lead past admission: verb, resource, subresource.
const WAYS: [[&str; 3]; 10] = [
    ["get", "nodes", "proxy"],
    ["create", "nodes", "proxy"],
    ["create", "pods", "exec"],
    ["create", "pods", "portforward"],
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
    let may = |account: &str, [verb, what, part]: [&str; 3]| {
        let who = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        let part = format!("--subresource={part}");
        let asked = shop
            .vitrine
            .try_kubectl(&["auth", "can-i", verb, what, &part, "-A", &who]);
        asked.is_ok_and(|said| said.trim() == "yes")
    };
    // That the question is understood.
    assert!(may("vitrine-operator", ["get", "nodes", "stats"]));
    for account in ["vitrine-operator", "vitrine-gateway", "vitrine-egress"] {
        assert!(may(account, ["watch", "previewsandboxes", ""]), "{account}");
        for way in WAYS {
            assert!(!may(account, way), "{account}: {way:?}");
        }
    }
    shop.close().await;
}
