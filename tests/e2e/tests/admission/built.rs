//! Whatever listings ask for, within their schema: what is built for a preview passes Pod Security and every policy, as the API
//! server itself judges them.

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use vitrine_crds::{PreviewPolicy, PreviewSandbox, SkuListing};
use vitrine_e2e::{
    dice::Dice,
    installed::{OPERATOR, Shop, together},
};
use vitrine_kit::{install::NAMESPACE, objects};
use vitrine_policies::{
    cell::{
        boundary, network,
        network::House,
        pod::{self, ProbeImage},
        record,
    },
    envelope, names, probe,
};

/// How many listings are tried.
const LISTINGS: usize = 60;
/// Texts that a seller may write where text is free.
const TEXTS: [&str; 8] = [
    "",
    " ",
    "$(HOME) $$(HOME) $(",
    "a\nb\t\"'`\\",
    "日本語 ä \u{202e}",
    "--flag=true",
    "{{ .Values }}",
    "%s %n ${PATH}",
];

fn one<'a>(dice: &mut Dice, of: &[&'a str]) -> &'a str {
    of[dice.roll(of.len())]
}

fn listing(dice: &mut Dice, name: &str) -> SkuListing {
    let texts = |dice: &mut Dice| -> Vec<&str> { (0..dice.roll(4)).map(|_| one(dice, &TEXTS)).collect() };
    let (command, args) = (texts(dice), texts(dice));
    let env: Vec<_> = (0..dice.roll(4))
        .map(|n| json!({"name": format!("{}{n}", one(dice, &["A", "_x", "HTTPS_PROXY_", "https_proxy"])), "value": one(dice, &TEXTS)}))
        .collect();
    let writable: Vec<_> = (0..dice.roll(5))
        .map(|n| {
            let path = one(dice, &["/data", "/var/lib/a.b", "/srv/_x-y", "/opt/1/2/3"]);
            json!({"path": format!("{path}{n}"), "size": one(dice, &["1Mi", "512Ki", "2000000", "3M"])})
        })
        .collect();
    let port = [1024, 8090, 65535][dice.roll(3)];
    let egress = ["a.example", "b.example"][..dice.roll(3)].to_vec();
    let preview = json!({
        "image": format!("vitrine.local/{}@sha256:{}", one(dice, &["stub", "a/b/c", "x--y_z.w"]), "0".repeat(64)),
        "port": port,
        "command": command, "args": args, "env": env, "writable": writable, "egress": egress,
        "size": {
            "cpu": one(dice, &["1m", "50m", "0.5", "1"]),
            "memory": one(dice, &["16Mi", "20000000", "1Gi"]),
            "ephemeralStorage": one(dice, &["1Mi", "1G", "64Mi"]),
        },
        "healthPath": one(dice, &["/", "/healthz", "/a/b?c=d"]),
    });
    objects::listing(name, preview)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_built_of_a_listing_that_can_be_stored_passes_pod_security_and_every_policy() {
    let _together = together().await;
    let shop = Shop::open("built").await;
    let text = |arguments: &[&str]| shop.vitrine.kubectl(arguments);
    let policy: PreviewPolicy =
        serde_json::from_str(&text(&["get", "previewpolicy", "default", "-o", "json"])).unwrap();
    let mut policy = policy.spec;
    policy.egress.allowed_names = vec!["a.example".to_owned(), "b.example".to_owned()];
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = ProbeImage {
        image: text(&[
            "-n",
            NAMESPACE,
            "get",
            "deployment",
            "vitrine-operator",
            "-o",
            image,
        ]),
        pull_policy: "IfNotPresent".to_owned(),
    };
    let mut preview: PreviewSandbox = objects::preview("try", "any", "s", None);
    preview.metadata.namespace = Some(shop.namespace.clone());
    preview.metadata.uid = Some(format!("{}-uid", shop.namespace));
    // Of nobody: a sweep would remove the cell of a preview that is gone.
    let cell = &format!("{}{}", names::CELL_PREFIX, shop.namespace);
    let house = House {
        namespace: NAMESPACE.to_owned(),
    };
    let (user, groups) = OPERATOR;
    let namespace = record::made(cell, None, "built".to_owned(), "lot".to_owned(), Timestamp::now());
    shop.vitrine
        .create_as(user, groups, &whole("v1", "Namespace", &namespace))
        .unwrap();
    let account = boundary::service_account(cell);
    shop.vitrine
        .create_as(user, groups, &whole("v1", "ServiceAccount", &account))
        .unwrap();

    // By hand: a program a try would take a minute.
    let dry = async |who: Option<&str>, path: String, object: Value| {
        let request =
            http::Request::post(format!("{path}?dryRun=All")).header("Content-Type", "application/json");
        let request = match who {
            Some(who) => request.header("Impersonate-User", who),
            None => request,
        };
        let request = request.body(object.to_string().into_bytes()).unwrap();
        shop.client.request::<Value>(request).await
    };
    let mut dice = Dice::new(4);
    let mut built = 0;
    for n in 0..LISTINGS {
        let listing = listing(&mut dice, &format!("listing-{n}"));
        let stored = whole("vitrine.dev/v1alpha1", "SkuListing", &listing);
        let path = format!(
            "/apis/vitrine.dev/v1alpha1/namespaces/{}/skulistings",
            shop.namespace
        );
        let Ok(stored) = dry(None, path, stored).await else {
            continue;
        };
        let listing: SkuListing = serde_json::from_value(stored).unwrap();
        let Ok(envelope) = envelope::resolve(&policy, &listing, &preview) else {
            continue;
        };
        let orders = probe::Orders {
            nonce: names::nonce(cell, "built"),
            canary: "10.96.7.7:20001".to_owned(),
            targets: vec![],
            deadline_seconds: 30,
            refuse_image_volumes: true,
        };
        let proxy = (!envelope.egress.is_empty()).then_some("10.96.8.8:3128");
        let avoid = ["a-node".to_owned()];
        let pod = pod::pod(cell, "built", &envelope, &image, &orders, proxy, &avoid[..n % 2]);
        let core = format!("/api/v1/namespaces/{cell}");
        let policies = format!("/apis/networking.k8s.io/v1/namespaces/{cell}/networkpolicies");
        for (path, object) in [
            (format!("{core}/pods"), whole("v1", "Pod", &pod)),
            (
                format!("{core}/resourcequotas"),
                whole("v1", "ResourceQuota", &boundary::quota(cell, &envelope)),
            ),
            (
                format!("{core}/resourcequotas"),
                whole("v1", "ResourceQuota", &boundary::closed(cell)),
            ),
            (
                format!("{core}/limitranges"),
                whole("v1", "LimitRange", &boundary::limit_range(cell, &envelope)),
            ),
            (
                policies,
                whole(
                    "networking.k8s.io/v1",
                    "NetworkPolicy",
                    &network::policy(cell, &envelope, &house),
                ),
            ),
        ] {
            let made = dry(Some(user), path, object).await;
            made.unwrap_or_else(|error| panic!("{error}\nof {:#?}", listing.spec.preview));
        }
        built += 1;
    }
    println!("built {built} of {LISTINGS}");
    assert!(built > LISTINGS / 2, "only {built} of {LISTINGS} came so far");
    shop.vitrine.break_glass(&["delete", "namespace", cell]);
    shop.close().await;
}

/// An object with its kind, as the API server reads it.
fn whole(version: &str, kind: &str, object: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    value["apiVersion"] = version.into();
    value["kind"] = kind.into();
    value
}
