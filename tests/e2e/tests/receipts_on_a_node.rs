//! A receipt of a preview that really ran: what its node counted, and that stock tools can check it.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    io::Write,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::Value;
use vitrine_crds::StatusReason;
use vitrine_devcluster::{host, progress};
use vitrine_e2e::{
    installed::{Shop, assert_verified, together},
    operator,
};
use vitrine_receipts::names;

/// Takes all the processor time that it gets, beside its page.
const BUSY: &str = "mkdir -p /data/www; echo hello > /data/www/index.html; (while :; do :; done) & \
                    exec httpd -f -p 8090 -h /data/www";

/// Runs a program with an input; its output.
fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn decoded(base64: &str) -> Vec<u8> {
    piped("openssl", &["base64", "-d", "-A"], base64.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_says_what_was_used_and_openssl_verifies_it() {
    let _together = together().await;
    host::ensure(host::OPENSSL, progress::for_stderr(true).as_ref()).unwrap();
    let shop = Shop::open("receipt").await;
    // Longer than two of the kubelet's own samples are apart.
    let live = shop.live("page", BUSY, "45s").await;
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    let over = shop.over("page").await;
    assert_verified(&over, StatusReason::TimeOver);
    let receipt = over.receipt.unwrap();

    let cost = receipt.cost.clone().unwrap();
    println!("{cost:?}, it ended at {}", receipt.ended_at.0);
    let age = receipt.ended_at.0.duration_since(cost.sampled_at.0);
    assert!(
        age.as_secs() < 45,
        "a kubelet counts every half minute at the latest: {age:#}"
    );
    // Times in a status are whole seconds, cut off.
    assert!(
        age.as_secs().abs_diff(15) <= 1 || cost.partial == (age.as_secs() > 15),
        "{age:#}, {cost:?}"
    );
    // 50 thousandths of a core for 45 s are 2,250 ms; what came after the last sample is missing, and Vitrine's sidecar has its
    // own limit beside.
    assert!((200..5000).contains(&cost.cpu_milliseconds), "{cost:?}");
    assert!(cost.memory_peak_bytes > 100_000, "{cost:?}");

    // As an auditor would: with the published key and nothing of Vitrine's.
    let envelope: Value = serde_json::from_str(receipt.signed.as_ref().unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (kind, payload) = (
        text(&envelope["payloadType"]),
        decoded(&text(&envelope["payload"])),
    );
    let keys: Api<ConfigMap> = Api::namespaced(shop.client.clone(), vitrine_kit::install::NAMESPACE);
    let keys = keys.get(names::KEYS).await.unwrap().data.unwrap();
    let folder = operator::folder("openssl");
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let signed = file("signed", &[head.as_bytes(), &payload].concat());
    let signature = file("signature", &decoded(&text(&envelope["signatures"][0]["sig"])));
    let key = file(
        "key.pem",
        keys[&text(&envelope["signatures"][0]["keyid"])].as_bytes(),
    );
    let verify = [
        "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", &key, "-sigfile", &signature, "-in", &signed,
    ];
    let said = String::from_utf8(piped("openssl", &verify, b"")).unwrap();
    assert!(said.contains("Signature Verified Successfully"), "{said}");

    let statement: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    let digest = text(&statement["subject"][0]["digest"]["sha256"]);
    assert!(receipt.image.ends_with(&digest), "{digest}");
    let targets = statement["predicate"]["isolation"]["targets"].as_array().unwrap();
    assert!(
        targets.iter().any(|target| target["name"] == "internet"),
        "{targets:?}"
    );
    assert_eq!(
        statement["predicate"]["cost"]["cpuMilliseconds"],
        cost.cpu_milliseconds
    );
    assert_eq!(statement["predicate"]["result"], "verified");
    shop.close().await;
}
