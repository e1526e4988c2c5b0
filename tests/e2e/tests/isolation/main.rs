//! Isolation from inside: against targets that answer and count, before and after a preview is ready, with the network
//! policy controller at work and stopped.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a17_old_rules;

use std::time::Duration;

use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use kube::api::PostParams;
use vitrine_crds::{Phase, StatusReason};
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone, assert_verified, millis, now_ms, together},
};
use vitrine_kit::objects;
use vitrine_policies::names;

/// Tries every address given for its life, all at once in each round, and shows what it reached on its page. What was
/// reached is noted by a program that runs only once a connection stands: no exit code to be misread.
fn try_everything(addresses: &[String]) -> String {
    format!(
        r#"mkdir -p /data/www; cat /proc/net/if_inet6 > /data/www/v6 2>/dev/null; httpd -p 8090 -h /data/www
n=0
while :; do
  : > /data/round; p=
  for a in {}; do
    (nc -w 1 ${{a%:*}} ${{a#*:}} -e /bin/sh -c "echo REACHED $a >> /data/round" < /dev/null > /dev/null 2>&1) & p="$p $!"
  done
  wait $p
  n=$((n + 1)); (echo "round $n"; sort /data/round) > /data/new; mv /data/new /data/www/tried
done"#,
        addresses.join(" ")
    )
}

/// Asks the internet every 10 ms from its first instruction on, and serves a page so as to become ready.
const HOSTILE: &str = r"(while :; do
  (printf 'GET /hostile HTTP/1.0\r\n\r\n' | nc -w 1 203.0.113.10 80 > /dev/null 2>&1) &
  sleep 0.01
done) &
mkdir -p /data/www && echo hello > /data/www/index.html && exec httpd -f -p 8090 -h /data/www";

const TARGETS: [&str; 8] = [
    "api-server",
    "api-server-node",
    "cluster-dns",
    "internet",
    "kubelet",
    "metadata",
    "neighbour",
    "other-port",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_target_is_up_outside_and_shut_inside_before_and_after_ready() {
    let _together = together().await;
    let shop = Shop::open("isolation").await;
    let (responder, decoy) = (
        shop.house("vitrine-responder").await,
        shop.house("vitrine-decoy").await,
    );
    let node = shop.vitrine.cluster.node_address();
    let mut addresses = vec![
        "169.254.169.254:80".to_owned(),
        "203.0.113.10:80".to_owned(),
        "203.0.113.10:443".to_owned(),
        "10.96.0.1:443".to_owned(),
        format!("{node}:6443"),
        format!("{node}:10250"),
        "10.96.0.10:53".to_owned(),
        format!("{decoy}:8080"),
        format!("{responder}:8082"),
    ];
    let ports = names::CANARY_FIRST..names::CANARY_FIRST + names::CANARY_COUNT;
    addresses.extend(ports.map(|port| format!("{responder}:{port}")));
    let mut listing = objects::script("tries", &shop.vitrine.busybox, &try_everything(&addresses));
    // A round starts as many processes as there are addresses.
    listing.spec.preview.size.cpu = "300m".to_owned();
    listing.spec.preview.size.memory = "96Mi".to_owned();
    shop.offer(&listing).await;
    let before = shop.vitrine.newest_hit();
    shop.ask("tries", "tries", "3m").await;
    let live = shop.ready("tries").await;

    let isolation = live.status.isolation.clone().unwrap();
    let mut seen: Vec<_> = isolation.targets.iter().map(|t| t.name.as_str()).collect();
    seen.sort_unstable();
    assert_eq!(seen, TARGETS);
    for target in &isolation.targets {
        assert!(target.required, "{target:?}");
        assert!(target.inside.starts_with("shut: "), "{target:?}");
        assert_eq!(target.outside, "up", "{target:?}");
    }
    assert_eq!(isolation.pod_uid, live.pod);

    let canary = format!("REACHED {responder}:{}", names::canary_port(&live.cell));
    let mut rounds = 0;
    // The first rounds and a later one: what is shut stays shut. That the canary is reached shows that the product can try.
    for wanted in [1, 4] {
        let page = eventually("the product has tried", Duration::from_secs(60), async || {
            let page = live.page(shop.vitrine, "/tried").await.body;
            let round = page.lines().next().and_then(|line| line.strip_prefix("round "));
            rounds = round.and_then(|n| n.parse::<u32>().ok()).unwrap_or(0);
            if rounds >= wanted { Ok(page) } else { Err(page) }
        })
        .await;
        let reached: Vec<_> = page.lines().skip(1).collect();
        assert_eq!(reached, [canary.as_str()], "round {rounds}");
    }
    let v6 = live.page(shop.vitrine, "/v6").await;
    assert_eq!(
        (v6.status, v6.body.as_str()),
        (200, ""),
        "no IPv6 address in a pod"
    );
    // The probe may knock before the rules are in force, without a byte and before the product is started.
    let started = product_started(&shop, &live.cell).await;
    let late: Vec<_> = shop
        .vitrine
        .hits_from(std::slice::from_ref(&live.ip), before)
        .into_iter()
        .filter(|hit| hit.bytes > 0 || hit.at_ms >= started)
        .collect();
    assert!(late.is_empty(), "{late:?}");
    println!(
        "{} addresses tried in {rounds} rounds, proven in {} rounds of the probe",
        addresses.len(),
        isolation.rounds
    );
    shop.close().await;
}

/// When the kubelet started the product, milliseconds since 1970, as the API tells it: to the second.
async fn product_started(shop: &Shop, cell: &str) -> u64 {
    let pod: Pod = shop.within(cell).get(names::POD).await.unwrap();
    let status = pod.status.unwrap_or_default();
    let product = status.container_statuses.iter().flatten().next().unwrap().clone();
    let running = product.state.and_then(|state| state.running).unwrap();
    millis(&running.started_at.unwrap().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_twelve_hostile_previews_at_once_arrives_outside_and_without_enforcement_it_would() {
    let _alone = alone().await;
    let shop = Shop::open("twelve").await;
    let mut listing = objects::script("hostile", &shop.vitrine.busybox, HOSTILE);
    listing.spec.preview.size.memory = "64Mi".to_owned();
    shop.offer(&listing).await;
    let before = shop.vitrine.newest_hit();
    let begun = now_ms();
    let asked: Vec<_> = (0..12).map(|n| format!("hostile-{n}")).collect();
    futures::future::join_all(asked.iter().map(|name| shop.ask(name, "hostile", "2m"))).await;
    let live = futures::future::join_all(asked.iter().map(|name| shop.ready(name))).await;
    println!("twelve at once were ready after {} ms", now_ms() - begun);
    let seal: NetworkPolicy = shop.within(&live[0].cell).get(names::SEAL).await.unwrap();
    // They have tried for their life: give the last one two seconds of it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let addresses: Vec<_> = live.iter().map(|live| live.ip.clone()).collect();
    let hits = shop.vitrine.hits_from(&addresses, before);
    let mut arrived = 0;
    for one in &live {
        let started = product_started(&shop, &one.cell).await;
        arrived += hits
            .iter()
            .filter(|hit| hit.source.ip().to_string() == one.ip && (hit.bytes > 0 || hit.at_ms >= started))
            .count();
    }
    println!(
        "of twelve hostile previews {arrived} connections arrived; of their probes, before enforcement, {}",
        hits.len() - arrived
    );
    assert_eq!(arrived, 0, "{hits:?}");

    // The same product without a probe before it, while the controller that enforces does nothing.
    let netpol = shop.vitrine.without("netpol", Action::Pause);
    let policies = shop.within::<NetworkPolicy>(&shop.namespace);
    let mut same = NetworkPolicy {
        spec: seal.spec,
        ..NetworkPolicy::default()
    };
    same.metadata.name = Some("same".to_owned());
    policies.create(&PostParams::default(), &same).await.unwrap();
    shop.bare_pod(&shop.namespace, "bare", HOSTILE).await;
    let address = shop.address(&shop.namespace, "bare").await;
    let bare = eventually("the method sees a leak", Duration::from_secs(30), async || {
        let hits = shop.vitrine.hits_from(std::slice::from_ref(&address), before);
        let arrived = hits.iter().filter(|hit| hit.bytes > 0).count();
        if arrived > 0 {
            Ok(arrived)
        } else {
            Err("nothing arrived".to_owned())
        }
    })
    .await;
    println!("control: of one bare pod at least {bare} connections arrived");
    netpol.back();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_policy_controller_stopped_no_preview_is_ready_and_the_reason_says_why() {
    let _alone = alone().await;
    let shop = Shop::open("stopped").await;
    let policy = shop.vitrine.with_hasty_proof();
    let netpol = shop.vitrine.without("netpol", Action::Stop);
    shop.offer_script("page", objects::SERVE).await;
    shop.ask("page", "page", "1m").await;
    let told = shop
        .until("page", "told", READY, |s| {
            s.reason == Some(StatusReason::NetworkNotEnforcing)
        })
        .await;
    netpol.back();
    policy.back();
    let message = told.message.unwrap_or_default();
    assert!(
        message.contains("internet (203.0.113.10:80)"),
        "what was reached is named: {message}"
    );
    let over = shop.over("page").await;
    assert_eq!(over.phase, Phase::Failed);
    assert!(
        over.started_at.is_none() && over.isolation.is_none(),
        "it was never ready: {over:?}"
    );
    assert_verified(&over, StatusReason::NetworkNotEnforcing);
    shop.close().await;
}
