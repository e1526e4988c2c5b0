//! What a person sees of a preview: `kubectl get -o wide` and `kubectl describe` in eight states, held still and compared
//! with `golden/`. And that a preview which cannot start says why within seconds of the cluster's knowing.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{path::Path, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::time::Instant;
use vitrine_crds::{Phase, StatusReason, sku_listing::Size};
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{END, READY, Shop, alone, is_unproven, together},
};
use vitrine_kit::objects;
use vitrine_policies::{cell::Tenant, names, slots};

/// From the cluster's knowing to the preview's saying it.
const TOLD: Duration = Duration::from_secs(5);

/// Compares what kubectl prints with what is committed; collects, so that one run shows every difference.
struct Goldens {
    different: Vec<String>,
}

impl Goldens {
    fn check(&mut self, shop: &Shop, state: &str, preview: &str) {
        let kubectl = |arguments: &[&str]| {
            shop.vitrine
                .kubectl(&[&["-n", &shop.namespace], arguments].concat())
        };
        let wide = kubectl(&["get", "preview", preview, "-o", "wide"]);
        let described = kubectl(&["describe", "preview", preview]);
        let text = normal(&format!(
            "$ kubectl get preview {preview} -o wide\n{wide}\n$ kubectl describe preview {preview}\n{described}"
        ));
        let text = text.replace(&shop.namespace, "<namespace>");
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(format!("{state}.txt"));
        if std::env::var_os("VITRINE_UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        if committed != text {
            self.different.push(format!(
                "golden/{state}.txt is not what kubectl prints now:\n{text}"
            ));
        }
    }

    fn verdict(self) {
        assert!(
            self.different.is_empty(),
            "{}\nif that is meant, run this test with VITRINE_UPDATE_GOLDEN=1 and commit golden/",
            self.different.join("\n")
        );
    }
}

/// A line without the receipt's cost.
fn costless(line: &str) -> String {
    let around = line
        .split_once(",\"cost\":{")
        .and_then(|(before, rest)| Some((before, rest.split_once('}')?.1)));
    around.map_or_else(|| line.to_owned(), |(before, after)| format!("{before}{after}"))
}

/// Replaces what differs from run to run.
fn normal(text: &str) -> String {
    let mut lines = vec![];
    let mut events = None;
    // Whether a node has counted what a preview used that lived for seconds, is chance.
    let cost = [
        "Cost:",
        "Cpu Milliseconds:",
        "Memory Peak Bytes:",
        "Partial:",
        "Sampled At:",
    ];
    let is_cost = |line: &&str| cost.iter().any(|name| line.trim_start().starts_with(name));
    for line in text.lines().filter(|line| !is_cost(line)) {
        let line = match line.split_once("Signed:") {
            Some((indent, _)) if indent.trim().is_empty() => format!("{indent}Signed:   <signed>"),
            _ => spaced(&words(&costless(line))),
        };
        if line == "Events:" {
            events = Some(lines.len() + 1);
        }
        // Ages stand in tables only: times to live of the spec are to be seen.
        let table = events.is_some() || lines.len() < 3;
        lines.push(if table { ageless(&line) } else { line });
    }
    if let Some(first) = events {
        // Events of one second come in any order.
        lines
            .iter_mut()
            .skip(first + 2)
            .for_each(|line| *line = line.trim_end().to_owned());
        lines.get_mut(first + 2..).unwrap_or_default().sort();
    }
    lines.join("\n") + "\n"
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-:".contains(c)
}

fn words(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("http://p-") {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            out += "<link>";
            rest = &rest[end..];
        } else if is_word(first) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            // A colon or full stop at its end belongs to the sentence.
            let word = rest[..end].trim_end_matches([':', '.']);
            let word = if word.is_empty() { &rest[..end] } else { word };
            out += &stand_in(word);
            rest = &rest[word.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn stand_in(word: &str) -> String {
    let hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let bytes = word.as_bytes();
    let dashes = [8, 13, 18, 23].iter().all(|i| bytes.get(*i) == Some(&b'-'));
    if word.len() == 36 && dashes && hex(&word.replace('-', "")) {
        "<uid>".to_owned()
    } else if word.len() >= 20 && word.ends_with('Z') && bytes[4] == b'-' && bytes[10] == b'T' {
        "<time>".to_owned()
    } else if word.strip_prefix(names::CELL_PREFIX).is_some_and(hex) {
        "<cell>".to_owned()
    } else if word.strip_prefix("sha256:").is_some_and(hex) {
        "<digest>".to_owned()
    } else if let Some((dimension, _)) = slots::parse(word) {
        format!("<slot of the {}>", dimension.as_str())
    } else if let Some((_, port)) = word.split_once(':').filter(|(ip, _)| ip.starts_with("10.96.")) {
        // Which port of the responder is shut follows from the cell.
        let port = if port.starts_with("200") { "<port>" } else { port };
        format!("<service>:{port}")
    } else if word.len() == 32 && hex(word) {
        "<nonce>".to_owned()
    } else if word.starts_with("10.244.") {
        "<pod-ip>".to_owned()
    } else {
        word.to_owned()
    }
}

/// The columns of kubectl are as wide as what is in them: three spaces, whatever their width; a line's beginning stays.
fn spaced(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut out = line[..indent].to_owned();
    let columns: Vec<_> = line[indent..]
        .split("  ")
        .map(str::trim)
        .filter(|c| !c.is_empty())
        .collect();
    out += &columns.join("   ");
    // How a packet was refused depends on the moment: by a rule that rejects, or by silence.
    for how in ["refused", "timed out", "reset"] {
        out = out.replace(&format!("shut: {how}"), "shut: <how>");
    }
    for (key, stand_in) in [("Rounds:", "<n>"), ("Resource Version:", "<n>")] {
        if out.trim_start().starts_with(key) {
            return format!("{}{key}   {stand_in}", &out[..indent]);
        }
    }
    out
}

fn ageless(line: &str) -> String {
    let is_age = |word: &str| {
        word.len() >= 2
            && word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_digit() || "smh".contains(c))
            && word.ends_with(['s', 'm', 'h'])
    };
    let columns: Vec<_> = line
        .split("   ")
        .map(|column| match column.split(' ').next() {
            Some(first) if is_age(first) => "<age>",
            _ => column,
        })
        .collect();
    columns.join("   ")
}

fn missing(shop: &Shop) -> vitrine_crds::SkuListing {
    let mut listing = objects::script("missing", &shop.vitrine.busybox, "true");
    // A registry that refuses, with the same words wherever the cluster runs.
    listing.spec.preview.image = format!("127.0.0.1:1/nowhere@sha256:{}", "0".repeat(64));
    listing
}

#[tokio::test(flavor = "multi_thread")]
async fn get_and_describe_say_how_why_where_and_until_when_in_eight_states() {
    let _alone = alone().await;
    let shop = Shop::open("states").await;
    let mut goldens = Goldens { different: vec![] };
    shop.offer_script("page", objects::SERVE).await;

    // First, for it takes longest: the kubelet tries twice before a refusal counts.
    shop.offer(&missing(&shop)).await;
    shop.ask("try-cannot-start", "missing", "1m").await;

    let subject = format!("{}-alice", shop.namespace);
    let alice = |name: &str| objects::preview(name, "page", &subject, Some("10m"));
    shop.ask_for(alice("try-ready")).await;
    shop.ready("try-ready").await;
    shop.told("try-ready", "Answering").await;
    goldens.check(&shop, "ready", "try-ready");
    shop.ask_for(alice("try-queued")).await;
    shop.until("try-queued", "queued", READY, |s| {
        s.reason == Some(StatusReason::WaitingForSlot)
    })
    .await;
    shop.told("try-queued", "WaitingForSlot").await;
    goldens.check(&shop, "queued", "try-queued");

    // Within the platform's envelope, and more than the listing offers.
    let mut wish = objects::preview("try-refused", "page", "subject-of-refused", Some("1m"));
    wish.spec.size = Some(Size {
        cpu: "200m".to_owned(),
        memory: "32Mi".to_owned(),
        ephemeral_storage: "8Mi".to_owned(),
    });
    shop.ask_for(wish).await;
    shop.until("try-refused", "refused", READY, |s| s.phase == Phase::Refused)
        .await;
    shop.told("try-refused", "OutsideEnvelope").await;
    goldens.check(&shop, "refused", "try-refused");

    shop.until("try-cannot-start", "over", READY, |s| s.phase.is_terminal())
        .await;
    shop.told("try-cannot-start", "Receipt").await;
    goldens.check(&shop, "cannot-start", "try-cannot-start");

    let scheduler = shop.vitrine.without("scheduler", Action::Stop);
    shop.ask("try-provisioning", "page", "1m").await;
    shop.until("try-provisioning", "provisioning", READY, |s| {
        s.reason == Some(StatusReason::WaitingForNode) && s.pod.is_some()
    })
    .await;
    shop.told("try-provisioning", "CellMade").await;
    goldens.check(&shop, "provisioning", "try-provisioning");
    scheduler.back();

    let netpol = shop.vitrine.without("netpol", Action::Pause);
    shop.ask("try-proving", "page", "1m").await;
    shop.until("try-proving", "proving", READY, |s| s.phase == Phase::Proving)
        .await;
    goldens.check(&shop, "proving", "try-proving");
    netpol.back();

    shop.ask("try-ended", "page", "5s").await;
    shop.ready("try-ended").await;
    let kubelet = shop.vitrine.without("kubelet", Action::Stop);
    shop.until("try-ended", "ending", READY, is_unproven).await;
    shop.told("try-ended", "TimeOver").await;
    goldens.check(&shop, "ending", "try-ended");
    kubelet.back();
    shop.over("try-ended").await;
    shop.told("try-ended", "Receipt").await;
    goldens.check(&shop, "ended", "try-ended");

    shop.close().await;
    goldens.verdict();
}

/// Offers a page of a size that nobody else's has: no cell that others had before fits its previews.
async fn offer_apart(shop: &Shop, memory: &str) {
    let mut listing = objects::script("page", &shop.vitrine.busybox, objects::SERVE);
    listing.spec.preview.size.memory = memory.to_owned();
    shop.offer(&listing).await;
}

/// Waits until the cluster knows something of a preview's pod.
async fn known(shop: &Shop, preview: &str, knows: impl Fn(&Pod) -> bool) -> Instant {
    eventually("the cluster knows", READY, async || {
        let status = shop
            .previews()
            .get(preview)
            .await
            .map_err(|error| error.to_string())?
            .status;
        let cell = status.and_then(|status| status.cell).ok_or("it has no cell")?;
        let pod = shop
            .within::<Pod>(&cell)
            .get_opt(names::POD)
            .await
            .map_err(|error| error.to_string())?;
        match pod {
            Some(pod) if knows(&pod) => Ok(Instant::now()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

async fn says(shop: &Shop, preview: &str, reason: StatusReason, known: Instant) {
    let status = shop
        .until(preview, reason.as_str(), TOLD, |s| s.reason == Some(reason))
        .await;
    println!(
        "{}: said within {} ms of knowing: {}",
        reason.as_str(),
        known.elapsed().as_millis(),
        status.message.unwrap_or_default()
    );
    assert!(known.elapsed() <= TOLD);
    let over = shop.over(preview).await;
    assert_eq!(over.phase, Phase::Failed);
    assert_eq!(over.receipt.unwrap().cause, reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_is_told_within_seconds() {
    let _together = together().await;
    let shop = Shop::open("missing").await;
    shop.offer(&missing(&shop)).await;
    shop.ask("image", "missing", "1m").await;
    let known = known(&shop, "image", |pod| {
        let status = pod.status.clone().unwrap_or_default();
        status
            .container_statuses
            .iter()
            .flatten()
            .filter_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone())
            .any(|reason| reason == "ErrImagePull" || reason == "ImagePullBackOff")
    })
    .await;
    says(&shop, "image", StatusReason::ImageUnavailable, known).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_that_exits_at_once_is_told_within_seconds() {
    let _together = together().await;
    let shop = Shop::open("crash").await;
    shop.offer_script("crash", "echo no licence > /dev/termination-log; exit 3")
        .await;
    shop.ask("crash", "crash", "1m").await;
    let known = known(&shop, "crash", |pod| {
        let status = pod.status.clone().unwrap_or_default();
        status
            .container_statuses
            .iter()
            .flatten()
            .any(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some()))
    })
    .await;
    says(&shop, "crash", StatusReason::ProductCrashed, known).await;
    let over = shop.over("crash").await;
    let message = over.message.unwrap_or_default();
    assert!(message.contains("exit code 3: no licence"), "{message}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_nobody_counts_is_told_and_no_pod_is_made_before() {
    let _alone = alone().await;
    let shop = Shop::open("uncounted").await;
    offer_apart(&shop, "31Mi").await;
    let controllers = shop.vitrine.without("controller-manager", Action::Pause);
    let preview = shop.ask("page", "page", "5s").await;
    let told = shop
        .until("page", "told", TOLD, |s| {
            s.reason == Some(StatusReason::WaitingForQuota)
        })
        .await;
    assert_eq!(told.phase, Phase::Provisioning);
    let pods = shop.within::<Pod>(&Tenant::of(&preview).unwrap().cell);
    assert!(pods.get_opt(names::POD).await.unwrap().is_none());
    controllers.back();
    shop.ready("page").await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_refuses_the_pod_is_told_within_seconds() {
    let _alone = alone().await;
    let shop = Shop::open("quota").await;
    offer_apart(&shop, "30Mi").await;
    // Ours alone never refuses ours. Another one is put into the cell while nobody counts, and says itself that it has been counted: once
    // ours count, a cell takes no quota, and before, no pod is made.
    let controllers = shop.vitrine.without("controller-manager", Action::Pause);
    let preview = shop.ask("page", "page", "1m").await;
    shop.until("page", "told", END, |s| {
        s.reason == Some(StatusReason::WaitingForQuota)
    })
    .await;
    let cell = Tenant::of(&preview).unwrap().cell;
    shop.vitrine.break_glass_create(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": cell},
        "spec": {"hard": {"pods": "0"}}
    }));
    let counted = r#"{"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}"#;
    shop.vitrine.break_glass(&[
        "-n",
        &cell,
        "patch",
        "resourcequota",
        "none",
        "--subresource=status",
        "--type=merge",
        "-p",
        counted,
    ]);
    controllers.back();
    let told = shop
        .until("page", "told", END, |s| {
            s.reason == Some(StatusReason::QuotaExceeded)
        })
        .await;
    let message = told.message.unwrap_or_default();
    assert!(message.contains("exceeded quota: none"), "{message}");
    assert_eq!(shop.over("page").await.phase, Phase::Failed);
    shop.close().await;
}
