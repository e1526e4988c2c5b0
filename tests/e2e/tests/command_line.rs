//! `kubectl vitrine`, as an SRE types it: what lives and why, its end, nodes, the switch, and receipts that verify without a cluster.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::path::Path;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, ResourceExt};
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE},
    operator::{Operator, Options},
};
use vitrine_kit::{images, install::NAMESPACE, program};
use vitrine_receipts::names;

/// The command line against one cluster.
struct Typed<'a>(&'a House);

impl Typed<'_> {
    fn try_it(&self, arguments: &[&str]) -> Result<String, String> {
        let kubeconfig = self.0.cluster.kubeconfig().display().to_string();
        let cluster = ["--kubeconfig", &kubeconfig, "--namespace", &self.0.shop];
        program::run(&vitrine(), &[&cluster, arguments].concat()).map_err(|error| error.to_string())
    }

    fn says(&self, arguments: &[&str]) -> String {
        self.try_it(arguments).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The program; the stage of tests builds it with everything else.
fn vitrine() -> std::path::PathBuf {
    images::target().join("debug/vitrine")
}

fn is_ready(preview: &PreviewSandbox) -> bool {
    preview
        .status
        .as_ref()
        .is_some_and(|status| status.phase == Phase::Ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn previews_are_listed_explained_opened_extended_cut_and_ended() {
    let house = House::take("typed", 1, "24h").await;
    let typed = Typed(&house);
    let _operator = Operator::ready(&house.post, &Options::alone("typed"), None).await;
    assert_eq!(typed.says(&["list"]), "no previews\n");
    house.preview("one", "anna", None).await;
    let ready = house.until("one", "it is ready", PATIENCE, is_ready).await;
    house.preview("two", "anna", None).await;
    let waits = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.queue_position.is_some());
    house.until("two", "it waits", PATIENCE, waits).await;
    house.preview("other", "otto", None).await;
    house.until("other", "it is ready", PATIENCE, is_ready).await;

    let all = typed.says(&["list", "--all-namespaces"]);
    assert!(
        ["one", "two", "other", "place 1"]
            .iter()
            .all(|word| all.contains(word)),
        "{all}"
    );
    let status = ready.status.unwrap();
    let link = status.url.unwrap();
    let token = link.rsplit_once('/').unwrap().1;
    assert!(
        !all.contains(token),
        "a list is shown to people who may not open it: {all}"
    );
    let of_anna = typed.says(&["list", "--subject", "anna"]);
    assert!(
        of_anna.contains("one") && of_anna.contains("two") && !of_anna.contains("other"),
        "{of_anna}"
    );
    let node = status.node.unwrap();
    let there = typed.says(&["list", "--node", &node]);
    assert!(there.contains("one") && !there.contains("two"), "{there}");

    let why = typed.says(&["why", "two"]);
    let told = [
        "two is Queued",
        "place 1",
        "CONDITION",
        "Admitted",
        "WaitingForSlot",
        "EVENT",
    ];
    assert!(told.iter().all(|word| why.contains(word)), "{why}");
    let why = typed.says(&["why", "one"]);
    assert!(
        ["one is Ready", "isolation", &node, "ends"]
            .iter()
            .all(|word| why.contains(word)),
        "{why}"
    );

    assert_eq!(typed.says(&["open", "one"]), format!("{link}\n"));
    let none = typed.try_it(&["open", "two"]).unwrap_err();
    assert!(none.contains("preview two has no link: it is Queued"), "{none}");
    let none = typed.try_it(&["why", "three"]).unwrap_err();
    assert!(none.contains("failed to get PreviewSandbox three"), "{none}");

    let before = status.expires_at.unwrap();
    typed.says(&["extend", "one", "25m"]);
    let longer = |p: &PreviewSandbox| {
        p.status
            .as_ref()
            .unwrap()
            .expires_at
            .as_ref()
            .is_some_and(|at| at.0 > before.0)
    };
    house.until("one", "it lives longer", PATIENCE, longer).await;
    let less = typed.try_it(&["extend", "one", "1m"]).unwrap_err();
    assert!(less.contains("preview one lives 25m already"), "{less}");

    assert!(typed.says(&["cut", "other"]).contains("preview other is cut off"));
    assert!(
        typed
            .says(&["end", "one"])
            .contains("preview one has ended, and nothing of it is left")
    );
    assert!(house.previews().get_opt("one").await.unwrap().is_none());
    house.until("two", "its turn has come", PATIENCE, is_ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_holds_new_previews_back_and_a_drained_node_is_empty() {
    let house = House::take("switched", 2, "24h").await;
    let typed = Typed(&house);
    let _operator = Operator::ready(&house.post, &Options::alone("switched"), None).await;
    house.preview("one", "anna", None).await;
    let one = house.until("one", "it is ready", PATIENCE, is_ready).await;
    typed.says(&["pause"]);
    house.preview("two", "otto", None).await;
    eventually("it is told why it waits", PATIENCE, async || {
        let why = typed.try_it(&["why", "two"])?;
        if why.contains("Suspended") {
            Ok(())
        } else {
            Err(why)
        }
    })
    .await;
    let node = one.status.unwrap().node.unwrap();
    let drained = typed.says(&["drain-node", &node]);
    assert!(drained.contains("1 previews on it have ended"), "{drained}");
    assert!(house.previews().get_opt("one").await.unwrap().is_none());
    typed.says(&["resume"]);
    let two = house.until("two", "it is ready", PATIENCE, is_ready).await;
    assert_ne!(
        two.status.unwrap().node,
        Some(node.clone()),
        "a cordoned node takes no previews"
    );
    let nodes: Api<Node> = Api::all(house.client.clone());
    nodes.uncordon(&node).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_verified_without_the_cluster_and_a_changed_one_is_not() {
    let house = House::take("verified", 1, "24h").await;
    let typed = Typed(&house);
    let _operator = Operator::ready(&house.post, &Options::alone("verified"), None).await;
    assert_eq!(typed.says(&["receipts"]), "no receipts\n");
    let uid = house.preview("one", "anna", Some("1s")).await.uid().unwrap();
    let signed = |p: &PreviewSandbox| {
        let receipt = p.status.as_ref().and_then(|status| status.receipt.as_ref());
        receipt.is_some_and(|receipt| receipt.signed.is_some())
    };
    house.until("one", "it has a receipt", PATIENCE, signed).await;
    let receipts = typed.says(&["receipts"]);
    assert!(
        [&uid, "TimeOver", "valid", "preview verified/one"]
            .iter()
            .all(|word| receipts.contains(*word)),
        "{receipts}"
    );
    house.delete("one").await;
    house.until_gone("one", PATIENCE).await;
    assert!(typed.says(&["receipts"]).contains("spool, kept"));

    let file = |name: &str, text: &str| {
        let path = house.post.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let receipt = typed.says(&["receipt", &uid]);
    let receipt_file = file("receipt.json", &receipt);
    assert!(
        typed
            .says(&["verify", &receipt_file])
            .starts_with(&format!("valid: preview verified/one ({uid})"))
    );
    let maps: Api<ConfigMap> = Api::namespaced(house.client.clone(), NAMESPACE);
    let keys = maps.get(names::KEYS).await.unwrap().data.unwrap();
    let key = file("key.pem", &keys.into_values().collect::<String>());
    let offline = |receipt: &str| {
        let nowhere = Path::new("/nonexistent").display().to_string();
        program::run(
            &vitrine(),
            &["--kubeconfig", &nowhere, "verify", receipt, "--key", &key],
        )
        .map_err(|error| error.to_string())
    };
    assert!(offline(&receipt_file).unwrap().contains("ended"));
    let mut changed: serde_json::Value = serde_json::from_str(&receipt).unwrap();
    let payload = changed["payload"].as_str().unwrap().to_owned();
    let other = if payload.as_bytes()[40] == b'A' { "B" } else { "A" };
    changed["payload"] = format!("{}{other}{}", &payload[..40], &payload[41..]).into();
    let refused = offline(&file("changed.json", &changed.to_string())).unwrap_err();
    assert!(refused.contains("sign"), "{refused}");
    let refused = offline(&file("nothing.json", "{}")).unwrap_err();
    assert!(refused.contains("error:"), "{refused}");
}
