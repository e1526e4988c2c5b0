//! What the charts render, judged without installing Vitrine: by Helm's lint, by the golden file, by the values' schema, by
//! kubeconform with the schemas of the live API server, and by what no right and no network policy of ours may say.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use http::Request;
use kube::Client;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use vitrine_devcluster::{Level, progress, tools};
use vitrine_e2e::{clusters, crds};
use vitrine_kit::{images, install::NAMESPACE, program};
use vitrine_policies::names;

/// The version that charts are rendered for where it does not matter.
const KUBERNETES: &str = "1.36.3";
/// How long the API server may take until its OpenAPI document has a new kind: it is made in the background.
const PATIENCE: Duration = Duration::from_secs(60);

/// The charts whose rendering is committed, each with values of its own for that.
const GOLDEN: [&str; 2] = ["vitrine", "vitrine-shop"];
/// Values of the chart vitrine-shop that change which objects or fields are rendered.
const EVERYTHING_OF_THE_SHOP: &[&str] = &[
    "imagePullSecrets[0].name=registry",
    "nodeSelector.pool=shop",
    "tolerations[0].key=shop",
    "priorityClassName=important",
    "api.service.type=LoadBalancer",
    "api.service.annotations.a=b",
    "stripe.account=acct_1",
    "networkPolicy.apiServerCidrs={192.0.2.1/32}",
    "traces.endpoint=http://collector.observability:4318",
    "networkPolicy.traces[0].ports[0].port=4318",
];
/// The same with a Finance of somebody else's.
const OTHER_FINANCE: &[&str] = &[
    "finance.url=https://finance.example/ledger",
    "finance.keySecret=",
    "databases.finance=",
    "api.replicas=1",
];

/// Every value that changes which objects or fields are rendered.
const EVERYTHING: &[&str] = &[
    "imagePullSecrets[0].name=registry",
    "nodeSelector.pool=vitrine",
    "tolerations[0].key=vitrine",
    "tolerations[0].operator=Exists",
    "tolerations[0].effect=NoSchedule",
    "priorityClassName=important",
    "operator.replicas=3",
    "gateway.replicas=2",
    "gateway.service.type=LoadBalancer",
    "gateway.service.annotations.a=b",
    "networkPolicy.apiServerPorts={6443,8443}",
    "previewPolicy.egress.allowedNames={a.example}",
    "previewPolicy.isolation.metadataTarget=Reported",
    "previewPolicy.isolation.nodeTargets=Reported",
];

#[test]
fn helm_lint_finds_nothing_in_any_chart() {
    let with_values = GOLDEN.map(|chart| (chart, Some(test_values(chart))));
    for (chart, values) in with_values.into_iter().chain([("vitrine-crds", None)]) {
        let mut arguments = vec!["lint".to_owned(), "--strict".to_owned(), chart_folder(chart)];
        arguments.extend(["--kube-version".to_owned(), KUBERNETES.to_owned()]);
        arguments.extend(
            values
                .iter()
                .flat_map(|file| ["--values".to_owned(), file.clone()]),
        );
        program::run(&tool("helm"), &arguments).unwrap();
    }
}

#[test]
fn the_charts_render_what_the_golden_files_say() {
    for chart in GOLDEN {
        renders_its_golden_file(chart);
    }
}

fn renders_its_golden_file(chart: &str) {
    let golden = Path::new(&chart_folder(chart)).join("golden/default.yaml");
    let rendered = with(chart, &[]).unwrap();
    if std::env::var_os("VITRINE_UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&golden, &rendered).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap();
    let differs = expected
        .lines()
        .zip(rendered.lines())
        .position(|(one, other)| one != other);
    assert!(
        expected == rendered,
        "charts/{chart}/golden/default.yaml is not what the chart renders, first from line {}: look at the difference with \
         `VITRINE_UPDATE_GOLDEN=1 cargo xtask test golden && git diff charts` and commit it if it is meant",
        differs.unwrap_or_else(|| expected.lines().count().min(rendered.lines().count())) + 1,
    );
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    for (value, says) in [
        ("image.digest=latest", "at '/image/digest'"),
        (
            "image.repository=example.com/operator:1.0",
            "at '/image/repository'",
        ),
        (
            "image.tag=1.0",
            "at '/image': additional properties 'tag' not allowed",
        ),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy'"),
        ("operator.replicas=0", "at '/operator/replicas'"),
        ("operator.replicas=two", "at '/operator/replicas'"),
        ("operator.resources.limits=null", "at '/operator/resources'"),
        (
            "gateway.publicUrl=http://previews.localhost",
            "at '/gateway/publicUrl'",
        ),
        ("gateway.service.type=ExternalName", "at '/gateway/service/type'"),
        ("profile=Staging", "at '/profile'"),
        ("receipts.namespace=kube-system", "at '/receipts/namespace'"),
        ("receipts.kept=0", "at '/receipts/kept'"),
        ("receipts.sink.url=ftp://sink/", "at '/receipts/sink/url'"),
        (
            "receipts.sink.url=https://user:secret@sink/",
            "at '/receipts/sink/url'",
        ),
        (
            "receipts.sink.url=file:///var/lib/vitrine/receipts/lines",
            "at '/receipts/sink/volume'",
        ),
        // It would go with the pod, and the receipts in it.
        (
            "receipts.sink.volume.emptyDir.sizeLimit=1Mi",
            "at '/receipts/sink/volume'",
        ),
        ("slots.namespace=kube-system", "at '/slots/namespace'"),
        ("slots.namespace=vitrine-cell-1", "at '/slots/namespace'"),
        (
            "networkPolicy.apiServerPorts=null",
            "at '/networkPolicy': missing property 'apiServerPorts'",
        ),
        ("networkPolicy.kubeletPort=0", "at '/networkPolicy/kubeletPort'"),
        ("drain.timeoutSeconds=5", "at '/drain/timeoutSeconds'"),
        ("logLevel=loud", "at '/logLevel'"),
        ("previewPolicy.ttl.max=5x", "at '/previewPolicy/ttl/max'"),
        (
            "previewPolicy.limits.perSubject=0",
            "at '/previewPolicy/limits/perSubject'",
        ),
        (
            "previewPolicy.size.max.memory=1GB",
            "at '/previewPolicy/size/max/memory'",
        ),
        (
            "previewPolicy.isolation.internet={1.1.1.1}",
            "at '/previewPolicy/isolation/internet/0'",
        ),
        (
            "previewPolicy.isolation.internet={[::1]:443}",
            "at '/previewPolicy/isolation/internet/0'",
        ),
        (
            "previewPolicy.isolation.nodeTargets=Ignored",
            "at '/previewPolicy/isolation/nodeTargets'",
        ),
        (
            "oprator.replicas=1",
            "additional properties 'oprator' not allowed",
        ),
    ] {
        let refusal = vitrine(&[value]).expect_err(value);
        assert!(refusal.contains(says), "{value}: expected {says:?}: {refusal}");
    }
    let mut values = vec!["--values".to_owned(), test_values("vitrine")];
    values.extend(["--set-json", "previewPolicy.isolation.metadata=[]"].map(str::to_owned));
    let refusal = template("vitrine", NAMESPACE, KUBERNETES, &values).unwrap_err();
    assert!(
        refusal.contains("at '/previewPolicy/isolation/metadata': minItems"),
        "{refusal}"
    );
    let refusal = vitrine(&["operator.replicas=2", "operator.leaderElection=false"]).unwrap_err();
    assert!(refusal.contains("at '/operator/leaderElection'"), "{refusal}");
}

#[test]
fn production_needs_a_receipt_key_and_a_sink_its_way() {
    let refused = |set: &[&str], says: &str| {
        let refusal = vitrine(set).unwrap_err();
        assert!(refusal.contains(says), "{set:?}: {refusal}");
    };
    refused(&["receipts.keySecret="], "openssl genpkey -algorithm ed25519");
    vitrine(&["receipts.keySecret=", "profile=Development"]).unwrap();
    let (https, http) = (
        "receipts.sink.url=https://sink/receipts",
        "receipts.sink.url=http://sink/receipts",
    );
    let way = "receipts.sink.egress[0].ports[0].port=8443";
    let (token, ca) = (
        "receipts.sink.tokenSecret=sink-token",
        "receipts.sink.caConfigMap=sink-ca",
    );
    refused(&[https, ca], "receipts.sink.egress is required");
    refused(&[https, way], "receipts.sink.caConfigMap is required");
    refused(&[http, way, token], "a token is sent over https only");
    let file = [
        "receipts.sink.url=file:///var/lib/vitrine/receipts/lines",
        "receipts.sink.volume.persistentVolumeClaim.claimName=lines",
    ];
    refused(
        &[&file[..], &["operator.replicas=2"]].concat(),
        "needs operator.replicas=1",
    );
    refused(
        &["receipts.namespace=vitrine-slots"],
        "receipts need a namespace of their own",
    );

    let text = vitrine(&[https, way, token, ca]).unwrap();
    for line in [
        "- --receipt-sink=https://sink/receipts",
        "- --receipt-sink-token=/etc/vitrine/receipt-sink-token/token",
        "- --receipt-sink-ca=/etc/vitrine/receipt-sink-ca/ca.crt",
        "secret: {secretName: sink-token, defaultMode: 0440, items: [{key: token, path: token}]}",
        "configMap: {name: sink-ca, items: [{key: ca.crt, path: ca.crt}]}",
        "- port: 8443",
        // `helm uninstall` waits for the sink.
        "- --receipts-namespace=vitrine-receipts",
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
    let text = vitrine(&file).unwrap();
    for line in [
        "type: Recreate",
        "persistentVolumeClaim:\n            claimName: lines",
        "fsGroup: 65532",
    ] {
        assert!(text.contains(line), "{line} is missing");
    }
}

#[test]
fn an_image_must_be_named() {
    let refusal = template("vitrine", NAMESPACE, KUBERNETES, &[]).unwrap_err();
    for says in ["at '/image/repository'", "at '/image/digest'"] {
        assert!(refusal.contains(says), "{refusal}");
    }
}

#[test]
fn namespaces_of_the_cluster_are_not_installed_into() {
    for chart in GOLDEN {
        let values = ["--values".to_owned(), test_values(chart)];
        for namespace in ["default", "kube-system"] {
            let refusal = template(chart, namespace, KUBERNETES, &values).unwrap_err();
            assert!(
                refusal.contains("refusing to install into namespace"),
                "{refusal}"
            );
        }
    }
    let refusal = vitrine(&[&format!("slots.namespace={NAMESPACE}")]).unwrap_err();
    assert!(
        refusal.contains("slots need a namespace of their own"),
        "{refusal}"
    );
}

#[test]
fn kubernetes_older_than_1_34_is_refused_by_every_chart() {
    let with_values = GOLDEN.map(|chart| (chart, vec!["--values".to_owned(), test_values(chart)]));
    for (chart, values) in with_values.into_iter().chain([("vitrine-crds", vec![])]) {
        let refusal = template(chart, NAMESPACE, "1.33.9", &values).unwrap_err();
        assert!(
            refusal.contains("incompatible with Kubernetes v1.33.9"),
            "{refusal}"
        );
        for version in ["1.34.0", "v1.34.2-gke.100", "1.36.3"] {
            template(chart, NAMESPACE, version, &values).unwrap();
        }
    }
}

#[test]
fn previews_are_held_in_their_creation_where_kubernetes_can() {
    let values = ["--values".to_owned(), test_values("vitrine")];
    let mutating = |version: &str| {
        let rendered = documents(&template("vitrine", NAMESPACE, version, &values).unwrap());
        let is_mutating = |document: &Value| {
            let kind = document["kind"].as_str();
            kind.is_some_and(|kind| kind.starts_with("MutatingAdmissionPolicy"))
        };
        rendered.into_iter().filter(is_mutating).collect::<Vec<_>>()
    };
    for version in ["1.34.0", "v1.35.9-gke.1"] {
        assert!(mutating(version).is_empty(), "it was not stable in {version}");
    }
    let policy = mutating("1.36.3");
    assert_eq!(policy.len(), 2);
    let expression = policy[0]["spec"]["mutations"][0]["applyConfiguration"]["expression"].as_str();
    let finalizer = format!("'{}'", names::PREVIEW_FINALIZER);
    assert!(expression.unwrap().contains(&finalizer), "{expression:?}");
}

#[test]
fn previews_live_10_to_30_minutes_unless_the_platform_says_otherwise() {
    let policies: Vec<_> = documents(&vitrine(&[]).unwrap())
        .into_iter()
        .filter(|document| document["kind"] == "PreviewPolicy")
        .collect();
    assert_eq!(policies.len(), 1);
    assert_eq!(
        policies[0]["spec"]["ttl"],
        json!({"min": "10m", "max": "30m", "default": "20m"})
    );
    assert_eq!(policies[0]["spec"]["limits"]["perSubject"], 1);
}

#[test]
fn without_a_policy_of_its_own_the_chart_renders_none() {
    let rendered = documents(&vitrine(&["previewPolicy.create=false"]).unwrap());
    assert!(
        rendered
            .iter()
            .all(|document| document["kind"] != "PreviewPolicy")
    );
}

#[tokio::test]
async fn everything_rendered_has_the_schema_of_the_live_api_server() {
    let schemas = schemas("sound").await;
    let values = ["--values".to_owned(), test_values("vitrine")];
    for (what, text) in [
        ("vitrine-shop", shop(&[]).unwrap()),
        (
            "vitrine-shop with everything set",
            shop(EVERYTHING_OF_THE_SHOP).unwrap(),
        ),
        ("vitrine-shop with another Finance", shop(OTHER_FINANCE).unwrap()),
        ("vitrine", vitrine(&[]).unwrap()),
        ("vitrine with everything set", vitrine(EVERYTHING).unwrap()),
        (
            "vitrine for 1.34",
            template("vitrine", NAMESPACE, "1.34.0", &values).unwrap(),
        ),
        (
            "vitrine-crds",
            template("vitrine-crds", NAMESPACE, KUBERNETES, &[]).unwrap(),
        ),
    ] {
        let verdict = kubeconform(&schemas, &text);
        let count = documents(&text).len();
        let sound = json!({"valid": count, "invalid": 0, "errors": 0, "skipped": 0});
        assert!(
            count > 0 && verdict["summary"] == sound,
            "{what} ({count} objects): {verdict:#}"
        );
    }
}

#[tokio::test]
async fn a_misspelt_field_or_a_wrong_type_in_a_template_would_be_noticed() {
    let schemas = schemas("broken").await;
    let rendered = vitrine(&[]).unwrap();
    for (kind, right, wrong) in [
        ("Deployment", "replicas: 1", "replicas: \"1\""),
        ("Deployment", "replicas: 1", "replcas: 1"),
        ("Deployment", "readOnlyRootFilesystem:", "readOnlyRootFileSystem:"),
        ("NetworkPolicy", "podSelector:", "podSelectors:"),
        ("NetworkPolicy", "cidr:", "cdir:"),
        ("Service", "targetPort:", "targetport:"),
        ("ClusterRole", "verbs:", "verb:"),
        ("PreviewPolicy", "provisioningDeadline:", "provisioningDeadlines:"),
        ("PreviewPolicy", "perSubject: 1", "perSubject: one"),
        ("Deployment", "kind: Deployment", "kind: Deploiment"),
    ] {
        let before = rendered
            .split("\n---\n")
            .find(|text| text.contains(&format!("\nkind: {kind}\n")) && text.contains(right))
            .unwrap_or_else(|| panic!("no {kind} with {right:?}"));
        let sound = kubeconform(&schemas, before);
        assert_eq!(sound["summary"]["valid"], 1, "{kind}: {sound:#}");
        let verdict = kubeconform(&schemas, &before.replace(right, wrong));
        assert_eq!(
            verdict["summary"]["valid"], 0,
            "{kind} with {wrong:?} passes: {verdict:#}"
        );
        assert_eq!(verdict["summary"]["skipped"], 0, "{verdict:#}");
    }
}

#[test]
fn alerts_fire_when_their_tests_say_so_and_not_before() {
    let rules = |file: &str| {
        Path::new(&chart_folder("vitrine"))
            .join("rules")
            .join(file)
            .display()
            .to_string()
    };
    program::run(
        &tool("promtool"),
        &[
            "check",
            "rules",
            "--lint=all",
            "--lint-fatal",
            &rules("vitrine.yaml"),
        ],
    )
    .unwrap();
    program::run(&tool("promtool"), &["test", "rules", &rules("tests.yaml")]).unwrap();
    let tests: Value = serde_yaml::from_str(&fs::read_to_string(rules("tests.yaml")).unwrap()).unwrap();
    let tests = tests["tests"].as_array().unwrap();
    let each = |part: &'static str| {
        tests
            .iter()
            .flat_map(move |test| test[part].as_array().into_iter().flatten())
    };
    let fired: Vec<_> = each("alert_rule_test")
        .filter(|test| {
            test["exp_alerts"]
                .as_array()
                .is_some_and(|alerts| !alerts.is_empty())
        })
        .filter_map(|test| test["alertname"].as_str())
        .collect();
    let asked: Vec<_> = each("promql_expr_test")
        .filter_map(|test| test["expr"].as_str())
        .collect();
    let file: Value = serde_yaml::from_str(&fs::read_to_string(rules("vitrine.yaml")).unwrap()).unwrap();
    for rule in file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
    {
        let tested = match (rule["alert"].as_str(), rule["record"].as_str()) {
            (Some(alert), _) => fired.contains(&alert),
            (_, record) => asked.contains(&record.unwrap()),
        };
        assert!(tested, "no test has this rule tell anything: {rule}");
    }
    let rendered = documents(&vitrine(&["monitoring.prometheusRule=true"]).unwrap());
    let rendered: Vec<_> = rendered
        .iter()
        .filter(|document| document["kind"] == "PrometheusRule")
        .collect();
    assert_eq!(rendered.len(), 1);
    assert_eq!(rendered[0]["spec"], file);
}

/// An alert on a metric that was renamed never fires, a panel stays empty, and nobody notices.
#[test]
fn what_alerts_and_dashboard_name_exists() {
    let folder = Path::new(&chart_folder("vitrine")).join("rules/vitrine.yaml");
    let text = fs::read_to_string(folder).unwrap();
    let rules: Value = serde_yaml::from_str(&text).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules: Vec<_> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    let sources = [
        "operator/src/metrics.rs",
        "operator/src/audit.rs",
        "operator/src/gateway/mod.rs",
        "operator/src/egress/mod.rs",
        "api/src/metrics.rs",
    ]
    .map(|file| fs::read_to_string(images::workspace().join(file)).unwrap())
    .concat();
    let reasons = ["conditions.rs", "preview_sandbox.rs"]
        .map(|file| fs::read_to_string(images::workspace().join("crds/src").join(file)).unwrap())
        .concat();
    let rendered = documents(&vitrine(&["monitoring.dashboard=true"]).unwrap());
    let dashboard = rendered
        .iter()
        .find(|document| document["metadata"]["name"] == "vitrine-dashboard")
        .unwrap();
    let dashboard = dashboard["data"]["vitrine-previews.json"].as_str().unwrap();
    let dashboard: Value = serde_json::from_str(dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let shown: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(shown.len() > 15, "{shown:?}");
    let records: Vec<_> = rules.iter().filter_map(|rule| rule["record"].as_str()).collect();
    let told = rules.iter().map(|rule| rule["expr"].as_str().unwrap());
    for expression in told.chain(shown) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        for name in expression
            .split(|c| !word(c))
            .filter(|word| word.starts_with("vitrine"))
        {
            if name.contains(':') {
                assert!(records.contains(&name), "nothing records {name}: {expression}");
                continue;
            }
            let series = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|part| name.strip_suffix(part))
                .unwrap_or(name);
            assert!(
                sources.contains(&format!("\"{series}\"")),
                "no program tells {name}: {expression}"
            );
        }
        for values in expression
            .split("=\"")
            .chain(expression.split("~\""))
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            for value in values
                .split('|')
                .filter(|value| value.chars().all(char::is_alphanumeric))
            {
                assert!(
                    reasons.contains(&format!("\"{value}\"")),
                    "nothing is ever called {value}: {expression}"
                );
            }
        }
    }
    let alerts = rules.iter().filter(|rule| rule["alert"].is_string());
    for page in alerts.map(|rule| {
        rule["annotations"]["runbook"]
            .as_str()
            .expect("a page of a runbook")
    }) {
        let (file, anchor) = page.split_once('#').unwrap();
        let runbook = fs::read_to_string(images::workspace().join(file)).unwrap();
        let anchors = runbook.lines().filter_map(|line| line.strip_prefix("## "));
        let mut anchors = anchors.map(|title| title.to_lowercase().replace(' ', "-"));
        assert!(anchors.any(|known| known == anchor), "{page} does not exist");
    }
}

#[test]
fn no_right_leads_to_more_rights_secrets_or_into_pods() {
    let rendered = everything();
    let rules: usize = rendered.iter().map(|document| rules_of(document).len()).sum();
    assert!(
        rules > 10,
        "only {rules} rules found: the charts have changed, or this test does not read them"
    );
    let dangers: Vec<_> = rendered.iter().flat_map(dangers).collect();
    assert!(dangers.is_empty(), "{dangers:#?}");

    // Every role that is bound is one of those judged here, and bound to an account of ours.
    let of_kind = |kinds: &[&str]| -> Vec<&Value> {
        let wanted = |document: &&Value| kinds.iter().any(|kind| document["kind"] == *kind);
        rendered.iter().filter(wanted).collect()
    };
    let roles = of_kind(&["Role", "ClusterRole"]);
    let accounts = of_kind(&["ServiceAccount"]);
    let bindings = of_kind(&["RoleBinding", "ClusterRoleBinding"]);
    assert!(bindings.len() >= roles.len() && !roles.is_empty());
    for binding in bindings {
        let (kind, name) = (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]);
        assert!(
            roles.iter().any(|role| {
                role["kind"] == *kind
                    && role["metadata"]["name"] == *name
                    && (kind == "ClusterRole"
                        || role["metadata"]["namespace"] == binding["metadata"]["namespace"])
            }),
            "a role that is not the chart's: {binding}"
        );
        for subject in binding["subjects"].as_array().unwrap() {
            assert!(
                subject["kind"] == "ServiceAccount"
                    && accounts.iter().any(|account| {
                        account["metadata"]["name"] == subject["name"]
                            && account["metadata"]["namespace"] == subject["namespace"]
                    }),
                "an account that is not the chart's: {subject}"
            );
        }
    }
}

/// The policy that bounds the operator sees no more writes than these, for the API server converts every object that a policy may judge.
#[test]
fn whatever_the_operator_may_write_its_own_policy_judges() {
    const READS: [&str; 3] = ["get", "list", "watch"];
    let rendered = documents(&vitrine(EVERYTHING).unwrap());
    let strings = |list: &Value| -> Vec<String> {
        let strings = list.as_array().unwrap().iter();
        strings.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let policy = rendered.iter().find(|document| {
        document["kind"] == "ValidatingAdmissionPolicy" && document["metadata"]["name"] == "vitrine-operator"
    });
    let constraints = &policy.unwrap()["spec"]["matchConstraints"];
    let kinds_of = |rule: &Value| -> Vec<(String, String)> {
        let resources = strings(&rule["resources"]);
        let groups = strings(&rule["apiGroups"]);
        let of = |group: &String| {
            resources
                .iter()
                .map(|kind| (group.clone(), kind.clone()))
                .collect::<Vec<_>>()
        };
        groups.iter().flat_map(of).collect()
    };
    let judged: BTreeSet<_> = constraints["resourceRules"]
        .as_array()
        .unwrap()
        .iter()
        .inspect(|rule| {
            for whole in ["operations", "apiVersions"] {
                assert_eq!(rule[whole], json!(["*"]), "{rule}");
            }
            assert_eq!(rule["scope"], "*", "{rule}");
        })
        .flat_map(kinds_of)
        .collect();
    assert_eq!(constraints.get("namespaceSelector"), None);
    assert_eq!(constraints.get("excludeResourceRules"), None);
    let written: BTreeSet<_> = rendered
        .iter()
        .filter(|document| document["metadata"]["name"] == "vitrine-operator")
        .flat_map(rules_of)
        .filter(|rule| {
            strings(&rule["verbs"])
                .iter()
                .any(|verb| !READS.contains(&verb.as_str()))
        })
        .flat_map(|rule| kinds_of(&rule))
        .collect();
    assert!(written.len() > 10, "{written:?}");
    assert_eq!(written, judged);
}

#[test]
fn a_dangerous_right_would_be_noticed() {
    for rule in [
        json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}),
        json!({"apiGroups": [""], "resources": ["pods/*"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}),
        json!({"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]}),
        json!({"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}),
        json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["get"]}),
        json!({"nonResourceURLs": ["/*"], "verbs": ["get"]}),
    ] {
        let role = json!({"kind": "ClusterRole", "metadata": {"name": "x"}, "rules": [rule]});
        assert_eq!(dangers(&role).len(), 1, "{rule}");
    }
    let aggregated =
        json!({"kind": "ClusterRole", "metadata": {"name": "x"}, "aggregationRule": {}, "rules": []});
    assert_eq!(dangers(&aggregated).len(), 1);
}

#[test]
fn every_pod_is_locked_down_as_previews_are() {
    let rendered = everything();
    let mut pods = 0;
    for document in &rendered {
        let template = pod_template(document);
        let spec = &template["spec"];
        if spec.is_null() {
            continue;
        }
        pods += 1;
        let name = &document["metadata"]["name"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{name}"
        );
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_ne!(spec[field], true, "{name}: {field}");
        }
        for container in spec["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{name}");
            assert!(
                container["image"].as_str().unwrap().contains("@sha256:"),
                "{name}"
            );
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        }
    }
    assert!(
        pods >= 13,
        "operator, gateway, egress, responder, decoy and drain, api, catalogue, finance, signer, reconcile and two that migrate, but only \
         {pods} were found"
    );
}

/// The pods that something makes; null if it makes none.
fn pod_template(document: &Value) -> &Value {
    let of_job = &document["spec"]["jobTemplate"]["spec"]["template"];
    if of_job.is_null() {
        &document["spec"]["template"]
    } else {
        of_job
    }
}

#[test]
fn the_catalogue_alone_of_the_shop_has_a_token_and_reads_listings_only() {
    let rendered = documents(&shop(EVERYTHING_OF_THE_SHOP).unwrap());
    let has_token =
        |document: &&Value| pod_template(document)["spec"]["automountServiceAccountToken"] == true;
    let with_token: Vec<_> = rendered.iter().filter(has_token).collect();
    assert_eq!(with_token.len(), 1);
    assert_eq!(with_token[0]["metadata"]["name"], "vitrine-catalogue");
    let rules: Vec<_> = rendered.iter().flat_map(rules_of).collect();
    assert_eq!(
        rules,
        [
            json!({"apiGroups": ["vitrine.dev"], "resources": ["skulistings"], "verbs": ["get", "list", "watch"]})
        ]
    );
}

#[test]
fn keys_and_tokens_are_mounted_where_they_are_used_and_nowhere_else() {
    let rendered = documents(&shop(&[]).unwrap());
    let holders = |secret: &str| -> Vec<String> {
        let word = format!("\"{secret}\"");
        let holds = |document: &&Value| pod_template(document).to_string().contains(&word);
        let names = rendered
            .iter()
            .filter(holds)
            .map(|document| &document["metadata"]["name"]);
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    for (secret, wanted) in [
        ("signer-keys", &["vitrine-signer"][..]),
        ("finance-key", &["vitrine-finance"]),
        ("stripe", &["vitrine-api"]),
        ("signer-token", &["vitrine-api", "vitrine-signer"]),
        (
            "finance-token",
            &["vitrine-api", "vitrine-finance", "vitrine-reconcile"],
        ),
        ("database-owner", &["vitrine-migrate-api"]),
        ("database-api", &["vitrine-api", "vitrine-reconcile"]),
        ("database-signer", &["vitrine-signer"]),
        ("database-catalogue", &["vitrine-catalogue"]),
        (
            "database-finance",
            &["vitrine-finance", "vitrine-migrate-finance"],
        ),
    ] {
        let mut holders = holders(secret);
        holders.sort();
        assert_eq!(holders, wanted, "{secret}");
    }
}

#[test]
fn spans_are_sent_by_those_who_answer_somebody_and_have_a_way() {
    let of = |set: &[&str], has: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let rendered = documents(&shop(set).unwrap());
        let names = rendered.iter().filter(|document| has(document));
        let mut names: Vec<_> = names
            .map(|document| document["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let sends = |document: &Value| {
        let pod = pod_template(document).to_string();
        pod.contains("OTEL_EXPORTER_OTLP_ENDPOINT")
    };
    let may = |document: &Value| document["spec"]["egress"].to_string().contains("4318");
    let parts = ["vitrine-api", "vitrine-finance", "vitrine-signer"];
    assert_eq!(of(EVERYTHING_OF_THE_SHOP, &sends), parts);
    assert_eq!(of(EVERYTHING_OF_THE_SHOP, &may), parts);
    assert!(of(&[], &sends).is_empty());
}

#[test]
fn a_shop_that_cannot_work_is_refused_by_name() {
    for (set, says) in [
        ("shop=", "at '/shop'"),
        ("storefront=https://shop.example/", "at '/storefront'"),
        ("publicUrl=shop.example", "at '/publicUrl'"),
        ("keys.finance=null", "at '/keys'"),
        ("keys.licence=secret", "at '/keys/licence'"),
        ("stripe.secret=", "at '/stripe/secret'"),
        (
            "stripe.key=sk_live_1",
            "at '/stripe': additional properties 'key' not allowed",
        ),
        ("caConfigMap=", "at '/caConfigMap'"),
        ("databases.signer=", "at '/databases/signer'"),
        ("databases.finance=", "databases.finance are required"),
        ("finance.keySecret=", "finance.keySecret and databases.finance"),
        ("networkPolicy.database=null", "at '/networkPolicy'"),
        ("reconcile.schedule=daily", "at '/reconcile/schedule'"),
        (
            "traces.endpoint=http://collector.observability:4318",
            "networkPolicy.traces is required",
        ),
        ("api.replicas=0", "at '/api/replicas'"),
        ("image.digest=latest", "at '/image/digest'"),
    ] {
        let refusal = shop(&[set]).expect_err(set);
        assert!(refusal.contains(says), "{set}: expected {says:?}: {refusal}");
    }
}

#[test]
fn network_policies_cover_every_pod_and_none_speaks_of_all_addresses_at_once() {
    for rendered in [vitrine(EVERYTHING), shop(EVERYTHING_OF_THE_SHOP)] {
        covered_by_network_policies(&documents(&rendered.unwrap()));
    }
}

fn covered_by_network_policies(rendered: &[Value]) {
    let policies: Vec<_> = rendered
        .iter()
        .filter(|document| document["kind"] == "NetworkPolicy")
        .collect();
    for policy in &policies {
        let text = policy.to_string();
        // Some networks take 0.0.0.0/0 for "in-cluster addresses in particular".
        assert!(!text.contains("/0\""), "{text}");
        assert_eq!(
            policy["spec"]["policyTypes"],
            json!(["Ingress", "Egress"]),
            "{text}"
        );
    }
    let silent = policies.iter().any(|policy| {
        policy["spec"]["podSelector"] == json!({})
            && policy["spec"]["ingress"].is_null()
            && policy["spec"]["egress"].is_null()
            && policy["metadata"]["namespace"] == NAMESPACE
    });
    assert!(silent, "no policy denies by default what no other one allows");
    // And each pod has a policy of its own, which chooses it by its labels.
    for document in rendered {
        let labels = &pod_template(document)["metadata"]["labels"];
        if labels.is_null() {
            continue;
        }
        let chooses = |policy: &&Value| {
            let wanted = policy["spec"]["podSelector"]["matchLabels"].as_object();
            wanted.is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
        };
        assert!(
            policies.iter().any(chooses),
            "no policy is about {}",
            document["metadata"]["name"]
        );
    }
}

/// What no role of ours may contain, as sentences.
fn dangers(document: &Value) -> Vec<String> {
    // Each of these is a way to more rights than one's own, or into a running pod or past its network policy.
    const RESOURCES: [&str; 13] = [
        "secrets",
        "serviceaccounts/token",
        "pods/exec",
        "pods/attach",
        "pods/portforward",
        "pods/proxy",
        "pods/ephemeralcontainers",
        "services/proxy",
        "nodes/proxy",
        "certificatesigningrequests",
        "customresourcedefinitions",
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
    ];
    const VERBS: [&str; 6] = [
        "impersonate",
        "escalate",
        "bind",
        "approve",
        "sign",
        "deletecollection",
    ];
    const GROUPS: [&str; 2] = ["rbac.authorization.k8s.io", "authentication.k8s.io"];

    let name = &document["metadata"]["name"];
    let mut found = Vec::new();
    for rule in rules_of(document) {
        let words = |field: &str| -> Vec<String> {
            let list = rule[field].as_array().cloned().unwrap_or_default();
            list.iter()
                .map(|word| word.as_str().unwrap().to_owned())
                .collect()
        };
        let (groups, resources, verbs) = (words("apiGroups"), words("resources"), words("verbs"));
        let wildcard = [&groups, &resources, &verbs, &words("nonResourceURLs")]
            .into_iter()
            .flatten()
            .any(|word| word.contains('*'));
        let named = |words: &[String], bad: &[&str]| words.iter().any(|word| bad.contains(&word.as_str()));
        if wildcard || named(&groups, &GROUPS) || named(&resources, &RESOURCES) || named(&verbs, &VERBS) {
            found.push(format!("{} {name}: {rule}", document["kind"]));
        }
    }
    // Its rules come from elsewhere, so nobody has read them.
    if !document["aggregationRule"].is_null() {
        found.push(format!("{name} is aggregated"));
    }
    found
}

fn rules_of(document: &Value) -> Vec<Value> {
    let is_role = document["kind"] == "Role" || document["kind"] == "ClusterRole";
    let rules = document["rules"].as_array().cloned();
    if is_role {
        rules.unwrap_or_default()
    } else {
        Vec::new()
    }
}

fn chart_folder(chart: &str) -> String {
    images::workspace()
        .join("charts")
        .join(chart)
        .display()
        .to_string()
}

fn test_values(chart: &str) -> String {
    format!("{}/ci/test-values.yaml", chart_folder(chart))
}

fn tool(name: &str) -> PathBuf {
    static TOOLS: OnceLock<tools::Tools> = OnceLock::new();
    let tools = TOOLS.get_or_init(|| {
        tools::ensure(
            &["helm", "kubeconform", "promtool"],
            progress::for_stderr(true).as_ref(),
        )
        .unwrap()
    });
    tools.binary(name, name).unwrap()
}

/// The chart `vitrine` with the values of the golden file, and some more; or what Helm said.
fn vitrine(set: &[&str]) -> Result<String, String> {
    with("vitrine", set)
}

/// The same of the chart `vitrine-shop`.
fn shop(set: &[&str]) -> Result<String, String> {
    with("vitrine-shop", set)
}

/// The objects of both, with everything set.
fn everything() -> Vec<Value> {
    let both = [vitrine(EVERYTHING), shop(EVERYTHING_OF_THE_SHOP)];
    both.iter()
        .flat_map(|rendered| documents(rendered.as_ref().unwrap()))
        .collect()
}

fn with(chart: &str, set: &[&str]) -> Result<String, String> {
    let mut values = vec!["--values".to_owned(), test_values(chart)];
    values.extend(
        set.iter()
            .flat_map(|value| ["--set".to_owned(), (*value).to_owned()]),
    );
    template(chart, NAMESPACE, KUBERNETES, &values)
}

fn template(chart: &str, namespace: &str, kubernetes: &str, values: &[String]) -> Result<String, String> {
    let mut arguments: Vec<String> = [
        "template",
        chart,
        &chart_folder(chart),
        "--namespace",
        namespace,
        "--kube-version",
        kubernetes,
    ]
    .map(str::to_owned)
    .into();
    arguments.extend_from_slice(values);
    program::run(&tool("helm"), &arguments).map_err(|error| error.to_string())
}

/// The objects of a YAML stream; documents of comments only are none.
fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

fn kubeconform(schemas: &Path, manifests: &str) -> Value {
    let location = format!(
        "{}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json",
        schemas.display()
    );
    let mut child = Command::new(tool("kubeconform"))
        .args([
            "-strict",
            "-summary",
            "-output",
            "json",
            "-schema-location",
            &location,
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let manifests = manifests.to_owned();
    // Beside it, so that neither waits for the other with a full pipe.
    let writer = thread::spawn(move || stdin.write_all(manifests.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// A folder with the schemas of everything that the API server serves, the custom resources included.
async fn schemas(name: &str) -> PathBuf {
    let cluster = clusters::shared(Level::ControlPlane);
    let client = crds::installed(&cluster).await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("schemas-{}-{name}", cluster.name()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for (file, schema) in kubeconform_schemas(&definitions(&client).await) {
        fs::write(folder.join(file), serde_json::to_vec(&schema).unwrap()).unwrap();
    }
    folder
}

/// What the API server says of all its types, once it speaks of the custom resources too.
async fn definitions(client: &Client) -> Map<String, Value> {
    let begun = Instant::now();
    loop {
        let request = Request::get("/openapi/v2").body(Vec::new()).unwrap();
        let document: Value = client.request(request).await.unwrap();
        let Value::Object(definitions) = &document["definitions"] else {
            panic!("/openapi/v2 has no definitions");
        };
        let known: BTreeSet<_> = definitions
            .values()
            .filter_map(kind_of)
            .map(|(_, _, kind)| kind)
            .collect();
        let missing: Vec<_> = vitrine_crds::generate::all()
            .into_iter()
            .map(|(_, crd)| crd.spec.names.kind)
            .filter(|kind| !known.contains(kind))
            .collect();
        if missing.is_empty() {
            return definitions.clone();
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "/openapi/v2 does not speak of {missing:?}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// One schema a kind, under the file name by which kubeconform asks for it.
fn kubeconform_schemas(definitions: &Map<String, Value>) -> Vec<(String, Value)> {
    let mut strict = definitions.clone();
    for (name, definition) in &mut strict {
        // OpenAPI v2 calls these strings; the API server takes numbers too.
        if name.ends_with(".IntOrString") {
            *definition = json!({"anyOf": [{"type": "integer"}, {"type": "string"}]});
        } else if name.ends_with(".api.resource.Quantity") {
            *definition = json!({"anyOf": [{"type": "number"}, {"type": "string"}]});
        } else {
            close(definition);
        }
    }
    let mut schemas = Vec::new();
    for (name, definition) in definitions {
        let Some((group, version, kind)) = kind_of(definition) else {
            continue;
        };
        let mut needed = BTreeSet::new();
        follow(name, &strict, &mut needed);
        let closure: Map<_, _> = needed
            .into_iter()
            .map(|name| {
                let schema = strict[&name].clone();
                (name, schema)
            })
            .collect();
        let group = group.split('.').next().filter(|part| !part.is_empty());
        let group = group.map(|part| format!("-{part}")).unwrap_or_default();
        schemas.push((
            format!("{}{group}-{version}.json", kind.to_lowercase()),
            json!({"$ref": format!("#/definitions/{name}"), "definitions": closure}),
        ));
    }
    schemas
}

/// Group, version and kind, if a definition is of one kind.
fn kind_of(definition: &Value) -> Option<(String, String, String)> {
    let [gvk] = definition["x-kubernetes-group-version-kind"]
        .as_array()?
        .as_slice()
    else {
        return None;
    };
    let word = |field: &str| gvk[field].as_str().map(str::to_owned);
    Some((word("group")?, word("version")?, word("kind")?))
}

/// Lets an object have the fields that its schema names and no others. Walks it as a schema, not as JSON: the types of
/// custom resource definitions have a field that is called `properties`.
fn close(schema: &mut Value) {
    let Value::Object(fields) = schema else {
        return;
    };
    let named = fields
        .get("properties")
        .and_then(Value::as_object)
        .is_some_and(|named| !named.is_empty());
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("properties", Value::Object(named)) => named.values_mut().for_each(close),
            ("allOf" | "anyOf" | "oneOf", Value::Array(members)) => members.iter_mut().for_each(close),
            ("items" | "additionalProperties", value) => close(value),
            _ => {}
        }
    }
    if named && !open && !fields.contains_key("additionalProperties") {
        fields.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

/// The names of all definitions that one leads to, itself included.
fn follow(name: &str, definitions: &Map<String, Value>, into: &mut BTreeSet<String>) {
    if into.insert(name.to_owned()) {
        let mut found = Vec::new();
        references(&definitions[name], &mut found);
        for name in found {
            follow(&name, definitions, into);
        }
    }
}

fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let target = fields.get("$ref").and_then(Value::as_str);
            into.extend(
                target
                    .and_then(|target| target.strip_prefix("#/definitions/"))
                    .map(str::to_owned),
            );
            fields.values().for_each(|value| references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, into)),
        _ => {}
    }
}
