//! Isolation from inside: against targets that answer and count, before and after a preview is ready, with the network
//! policy controller at work, stopped, and robbed of its rules.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ContainerStatus, Pod},
    networking::v1::NetworkPolicy,
};
use kube::api::PostParams;
use vitrine_crds::{Phase, StatusReason, preview_policy::NodeSetAside};
use vitrine_devcluster::{Action, Place};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, READY, Shop, alone, assert_verified, millis, now_ms, together},
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
    let until = now_ms() + 2000;
    eventually("time", Duration::from_secs(5), async || {
        if now_ms() > until {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
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

/// Takes every rule of the policy controller away.
fn flush(shop: &Shop) {
    let flush = ["iptables", "-w", "-F", "KUBE-ROUTER-FORWARD"];
    let done = shop.vitrine.cluster.exec(Place::Node, &flush).unwrap();
    assert_eq!(done.code, 0, "{done:?}");
}

/// Waits until the product of a preview is seen to have ended.
async fn killed(shop: &Shop, live: &Live) {
    let pods = shop.within::<Pod>(&live.cell);
    eventually("the product is killed", Duration::from_secs(20), async || {
        let pod = pods.get_opt(names::POD).await;
        let status = pod.map_err(|error| error.to_string())?.and_then(|pod| pod.status);
        let states = status.unwrap_or_default().container_statuses.unwrap_or_default();
        let over = |c: &ContainerStatus| c.state.as_ref().is_some_and(|s| s.terminated.is_some());
        if states.iter().all(over) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_flushed_under_a_running_preview_end_it_within_five_seconds_and_its_node_gets_no_other() {
    let _alone = alone().await;
    let shop = Shop::open("flushed").await;
    let policy = shop.vitrine.with_policy(
        r#"{"spec":{"isolation":{"nodeQuarantine":"40s"}}}"#,
        r#"{"spec":{"isolation":{"nodeQuarantine":null}}}"#,
    );
    let live = shop.live("page", objects::SERVE, "3m").await;
    // Afterwards the controller makes its rules anew: it would look by itself only every five minutes (attacks, 10).
    let netpol = shop.vitrine.without("netpol", Action::Stop);
    let flushed = now_ms();
    flush(&shop);
    let told = shop
        .until("page", "told", Duration::from_secs(20), |s| {
            s.phase == Phase::Ending || s.phase.is_terminal()
        })
        .await;
    let told_ms = now_ms() - flushed;
    killed(&shop, &live).await;
    let killed_ms = now_ms() - flushed;
    shop.until("page", "proven to have ended", Duration::from_secs(20), |s| {
        s.receipt.is_some()
    })
    .await;
    let ended_ms = now_ms() - flushed;
    let over = shop.over("page").await;
    let over_ms = now_ms() - flushed;
    netpol.back();
    assert_eq!(told.reason, Some(StatusReason::IsolationBroken), "{told:?}");
    println!(
        "from the flush: told after {told_ms} ms, the product seen killed after {killed_ms} ms, \
         end proven after {ended_ms} ms, nothing left after {over_ms} ms"
    );
    for (what, ms) in [
        ("told", told_ms),
        ("killed", killed_ms),
        ("proven to have ended", ended_ms),
    ] {
        assert!(ms <= 5000, "{what} after {ms} ms");
    }
    assert_verified(&over, StatusReason::IsolationBroken);
    assert!(live.expires_ms > now_ms(), "not its time but the breach ended it");

    // The only node: whoever comes now waits until it is trusted again.
    shop.ask("next", "page", "1m").await;
    let waits = shop
        .until("next", "it waits", READY, |s| s.queue_position.is_some())
        .await;
    assert_eq!(waits.reason, Some(StatusReason::WaitingForCapacity), "{waits:?}");
    let aside = shop.vitrine.kubectl(&[
        "get",
        "previewpolicy",
        "default",
        "-o",
        "jsonpath={.status.nodesSetAside}",
    ]);
    let aside: Vec<NodeSetAside> = serde_json::from_str(&aside).unwrap();
    assert!(aside[0].reason.starts_with("isolation broken"), "{aside:?}");
    let events = shop.events("page").await;
    assert!(
        events.iter().any(|event| event.starts_with("NodeSetAside")),
        "{events:?}"
    );
    let ready = shop
        .until(
            "next",
            "the node is trusted again",
            Duration::from_secs(90),
            |s| s.phase == Phase::Ready,
        )
        .await;
    assert!(ready.started_at.unwrap().0 >= aside[0].until.0);
    drop(policy);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_operator_a_killed_sidecar_or_a_breach_ends_the_product_all_the_same() {
    let _alone = alone().await;
    let shop = Shop::open("unwatched").await;
    let blind = shop.live("blind", objects::SERVE, "3m").await;
    let leaking = shop.live("leaking", objects::SERVE, "3m").await;
    let operator = shop.vitrine.without_operator();

    let begun = now_ms();
    let kill = "tr '\\0' ' ' < $p/cmdline | grep -q 'probe watch' && kill -9 ${p#/proc/} && echo killed";
    assert_eq!(shop.each_process(&blind.pod, kill), "killed\n", "one sidecar");
    killed(&shop, &blind).await;
    println!(
        "sidecar killed: the product seen killed after {} ms",
        now_ms() - begun
    );

    let netpol = shop.vitrine.without("netpol", Action::Stop);
    let begun = now_ms();
    flush(&shop);
    killed(&shop, &leaking).await;
    let ms = now_ms() - begun;
    println!("chains flushed: the product seen killed after {ms} ms");
    assert!(ms <= 5000, "killed after {ms} ms");

    netpol.back();
    operator.back();
    for live in [&blind, &leaking] {
        assert_verified(&shop.over(&live.name).await, StatusReason::IsolationBroken);
    }
    shop.close().await;
}
