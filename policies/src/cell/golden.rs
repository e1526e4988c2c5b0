//! Whole-object goldens: what is in `policies/golden/` is what a cell consists of.

use serde::Serialize;

use super::{boundary, fixtures, network, pod, record};
use crate::names;

fn check<T: Serialize>(name: &str, object: &T) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name);
    let text = serde_yaml::to_string(object).unwrap();
    if std::env::var_os("VITRINE_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "policies/golden/{name} differs from what is built now; if that is meant, run \
         `VITRINE_UPDATE_GOLDEN=1 cargo test -p vitrine-policies golden` and commit it.\n{text}"
    );
}

#[test]
fn namespace_is_the_golden_one() {
    check("namespace.yaml", &record::had_by(&fixtures::tenant()));
}

#[test]
fn quota_is_the_golden_one() {
    check(
        "quota.yaml",
        &boundary::quota(fixtures::CELL, &fixtures::envelope()),
    );
}

#[test]
fn closed_is_the_golden_one() {
    check("closed.yaml", &boundary::closed(fixtures::CELL));
}

#[test]
fn limit_range_is_the_golden_one() {
    check(
        "limit-range.yaml",
        &boundary::limit_range(fixtures::CELL, &fixtures::envelope()),
    );
}

#[test]
fn service_account_is_the_golden_one() {
    check("service-account.yaml", &boundary::service_account(fixtures::CELL));
}

#[test]
fn network_policy_is_the_golden_one() {
    check(
        "network-policy.yaml",
        &network::policy(fixtures::CELL, &fixtures::envelope(), &fixtures::house()),
    );
}

#[test]
fn pod_is_the_golden_one() {
    check(
        "pod.yaml",
        &pod::pod(
            fixtures::CELL,
            fixtures::EPOCH,
            &fixtures::envelope(),
            &fixtures::image(),
            &fixtures::orders(),
            None,
            &[],
        ),
    );
}

#[test]
fn a_preview_with_names_to_reach_is_told_the_way_and_let_to_the_proxy_alone() {
    let (mut envelope, orders) = (fixtures::envelope(), fixtures::orders());
    let rules = |envelope: &_| {
        let policy = network::policy(fixtures::CELL, envelope, &fixtures::house());
        serde_json::to_value(policy.spec.unwrap().egress.unwrap()).unwrap()
    };
    assert_eq!(rules(&envelope).as_array().unwrap().len(), 1);
    envelope.egress = vec!["api.example.com".into()];
    let out = &rules(&envelope)[1];
    assert_eq!(
        out["ports"],
        serde_json::json!([{"port": 3128, "protocol": "TCP"}])
    );
    assert_eq!(
        out["to"][0]["podSelector"]["matchLabels"],
        serde_json::json!({"app.kubernetes.io/component": "egress"})
    );

    let variables = |envelope: &_| {
        let pod = pod::pod(
            fixtures::CELL,
            fixtures::EPOCH,
            envelope,
            &fixtures::image(),
            &orders,
            Some("10.96.8.8:3128"),
            &[],
        );
        let variables = pod.spec.unwrap().containers.remove(0).env.unwrap();
        let pairs = variables.into_iter().map(|v| (v.name, v.value.unwrap()));
        pairs.collect::<std::collections::BTreeMap<_, _>>()
    };
    let told = variables(&envelope);
    assert_eq!(told["HTTPS_PROXY"], "http://10.96.8.8:3128");
    assert_eq!(told["https_proxy"], "http://10.96.8.8:3128");
    envelope.env[0].name = "https_proxy".into();
    assert_eq!(
        variables(&envelope)["https_proxy"],
        "demo $$(HOME)",
        "the seller's own word stands"
    );
}

#[test]
fn no_policy_of_a_cell_names_an_address_block() {
    let text = serde_json::to_string(&network::policy(
        fixtures::CELL,
        &fixtures::envelope(),
        &fixtures::house(),
    ))
    .unwrap();
    assert!(!text.contains("ipBlock") && !text.contains("/0"), "{text}");
}

#[test]
fn a_pod_holds_no_token_no_host_and_no_privilege() {
    let pod = pod::pod(
        fixtures::CELL,
        fixtures::EPOCH,
        &fixtures::envelope(),
        &fixtures::image(),
        &fixtures::orders(),
        None,
        &[],
    );
    let spec = pod.spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(
        (spec.host_network, spec.host_pid, spec.host_ipc),
        (None, None, None)
    );
    assert!(
        spec.volumes
            .iter()
            .flatten()
            .all(|v| v.empty_dir.is_some() && v.host_path.is_none() && v.projected.is_none())
    );
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(
            security.read_only_root_filesystem,
            Some(true),
            "{}",
            container.name
        );
        assert_eq!(
            security.allow_privilege_escalation,
            Some(false),
            "{}",
            container.name
        );
        assert_eq!(security.run_as_non_root, Some(true), "{}", container.name);
        assert!(
            container.resources.as_ref().unwrap().limits.is_some(),
            "{}",
            container.name
        );
    }
}

#[test]
fn a_pod_goes_to_no_node_that_is_set_aside_and_runs_under_its_runtime() {
    let mut envelope = fixtures::envelope();
    envelope.runtime_class = Some("gvisor".into());
    let aside = ["a".to_owned(), "b".to_owned()];
    let pod = pod::pod(
        fixtures::CELL,
        fixtures::EPOCH,
        &envelope,
        &fixtures::image(),
        &fixtures::orders(),
        None,
        &aside,
    );
    let spec = serde_json::to_value(pod.spec.unwrap()).unwrap();
    assert_eq!(spec["runtimeClassName"], "gvisor");
    // Nothing is started after the sidecar before it listens, and nothing has to be run inside for that.
    let sidecar = &spec["initContainers"][1];
    assert_eq!(
        sidecar["startupProbe"]["httpGet"],
        serde_json::json!({"path": names::SEALED_PATH, "port": names::WATCH_PORT})
    );
    assert!(sidecar["lifecycle"].is_null(), "{sidecar}");
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    // One value a requirement: more are refused for fields (Kubernetes API, NodeSelectorTerm).
    let not = |name: &str| serde_json::json!({"key": "metadata.name", "operator": "NotIn", "values": [name]});
    assert_eq!(terms, &serde_json::json!([{"matchFields": [not("a"), not("b")]}]));
}
