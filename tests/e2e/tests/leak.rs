//! Leak 0: previews of a hostile image that sends to every target, by every protocol, from its first instruction to its last, and
//! nothing that passes. Counted where packets come out of the node's filter, and by the outside world itself.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, PostParams};
use vitrine_devcluster::{Action, Place};
use vitrine_e2e::{
    eventually::eventually,
    installed::{Shop, alone, now_ms},
    soak,
};
use vitrine_kit::{images, objects};
use vitrine_policies::names;

/// What the seller sends. The probe, which knocks by TCP before the rules are in force, sends no byte, and nothing by UDP.
const WORD: &str = "leak";
/// The node's filter decides in the table `filter`; what comes to these chains has passed (netfilter, "security" table).
const PASSED: [&str; 2] = ["INPUT", "FORWARD"];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "icmp"];
/// A preview's life: long enough for many rounds.
const TTL: &str = "8s";
/// Twenty at once, on a busy node.
const PATIENCE: Duration = Duration::from_secs(180);

/// Sends to all of these, again and again: `devcluster/go/hostile`. UDP goes to a port where nobody listens, which is none of the
/// filter's business, and to where DNS is asked.
fn hostile(tcp: &[String], hosts: &[String]) -> Vec<String> {
    let connections = tcp.iter().map(|address| format!("tcp:{address}"));
    let datagrams = hosts.iter().flat_map(|host| {
        [
            format!("udp:{host}:69"),
            format!("dns:{host}"),
            format!("icmp:{host}"),
        ]
    });
    ["/hostile", WORD, "8090"]
        .map(str::to_owned)
        .into_iter()
        .chain(connections)
        .chain(datagrams)
        .collect()
}

/// Rules that count and do nothing else, until they are dropped.
struct Counters<'a>(&'a Shop);

impl<'a> Counters<'a> {
    fn new(shop: &'a Shop) -> Self {
        let counters = Self(shop);
        counters.all("-A");
        counters
    }

    fn all(&self, action: &str) {
        for chain in PASSED {
            for protocol in PROTOCOLS {
                let mut rule = vec!["iptables", "-w", "-t", "security", action, chain];
                rule.extend(["-s", "10.244.0.0/16", "-p", protocol]);
                rule.extend(["-m", "string", "--algo", "bm", "--string", WORD]);
                let done = self.0.vitrine.cluster.exec(Place::Node, &rule).unwrap();
                assert!(done.stderr.is_empty(), "{}", done.stderr);
            }
        }
    }

    /// Packets by protocol, in both chains together.
    fn packets(&self) -> [u64; 3] {
        let mut packets = [0; 3];
        for chain in PASSED {
            let list = ["iptables", "-w", "-t", "security", "-nvxL", chain];
            let text = self.0.vitrine.cluster.exec(Place::Node, &list).unwrap().stdout;
            for line in text.lines().filter(|line| line.contains("10.244.0.0/16")) {
                // Packets, bytes, protocol: by number (iptables 1.8.9 with -n) or by name. The rules have no target.
                let words: Vec<_> = line.split_whitespace().collect();
                let protocol = match words[2] {
                    "tcp" | "6" => 0,
                    "udp" | "17" => 1,
                    "icmp" | "1" => 2,
                    other => panic!("{other} in {line}"),
                };
                packets[protocol] += words[0].parse::<u64>().unwrap();
            }
        }
        packets
    }
}

impl Drop for Counters<'_> {
    fn drop(&mut self) {
        self.all("-D");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_hostile_previews_send_passes_and_without_enforcement_all_of_it_would() {
    let _alone = alone().await;
    let shop = Shop::open("leak").await;
    let (batches, size) = if soak() { (5, 20) } else { (1, 4) };
    let node = shop.vitrine.cluster.node_address().to_string();
    let (responder, decoy) = (
        shop.house("vitrine-responder").await,
        shop.house("vitrine-decoy").await,
    );
    let hosts = [
        "203.0.113.10",
        "169.254.169.254",
        "10.96.0.10",
        "10.96.0.1",
        &node,
        &responder,
        &decoy,
    ]
    .map(str::to_owned);
    let tcp = [
        "203.0.113.10:80".to_owned(),
        "203.0.113.10:443".to_owned(),
        "169.254.169.254:80".to_owned(),
        "10.96.0.1:443".to_owned(),
        "10.96.0.10:53".to_owned(),
        format!("{node}:6443"),
        format!("{node}:10250"),
        format!("{decoy}:8080"),
        // Neither the port of any cell's canary.
        format!("{responder}:8082"),
    ];
    let image = images::hostile().unwrap();
    shop.vitrine.cluster.import_image(&image).unwrap();
    let mut listing = objects::command("hostile", &image, &hostile(&tcp, &hosts));
    listing.spec.preview.size.memory = "64Mi".to_owned();
    shop.offer(&listing).await;
    let counters = Counters::new(&shop);
    let before = shop.vitrine.newest_hit();
    let mut seal = None;
    let begun = now_ms();
    for batch in 0..batches {
        let asked: Vec<_> = (0..size).map(|n| format!("hostile-{batch}-{n}")).collect();
        join_all(asked.iter().map(|name| shop.ask(name, "hostile", TTL))).await;
        let over = join_all(asked.iter().map(|name| {
            shop.until(name, "over", PATIENCE, |status| {
                status.phase.is_terminal() || status.receipt.is_some()
            })
        }))
        .await;
        for status in &over {
            assert!(status.started_at.is_some(), "it was never ready: {status:?}");
        }
        if seal.is_none() {
            let live = shop.live("seal", objects::SERVE, "1m").await;
            let policy: NetworkPolicy = shop.within(&live.cell).get(names::SEAL).await.unwrap();
            seal = policy.spec;
            shop.previews()
                .delete("seal", &DeleteParams::default())
                .await
                .unwrap();
        }
        let addresses: Vec<_> = over
            .iter()
            .filter_map(|status| status.pod.as_ref()?.ip.clone())
            .collect();
        let hits = shop.vitrine.hits_from(&addresses, before);
        let said: Vec<_> = hits.iter().filter(|hit| hit.bytes > 0).collect();
        assert!(said.is_empty(), "arrived outside: {said:?}");
    }
    let passed = counters.packets();
    println!(
        "of {} hostile previews, in {} s, [tcp, udp, icmp] packets that passed: {passed:?}",
        batches * size,
        (now_ms() - begun) / 1000
    );
    assert_eq!(passed, [0; 3]);

    // The same product under the same policy, while the controller that enforces does nothing.
    let netpol = shop.vitrine.without("netpol", Action::Pause);
    let policies = shop.within::<NetworkPolicy>(&shop.namespace);
    let mut same = NetworkPolicy {
        spec: seal,
        ..NetworkPolicy::default()
    };
    same.metadata.name = Some("same".to_owned());
    policies.create(&PostParams::default(), &same).await.unwrap();
    shop.bare_pod_of(&shop.namespace, "bare", &image, &hostile(&tcp, &hosts))
        .await;
    let control = eventually(
        "the method sees every protocol",
        Duration::from_secs(60),
        async || {
            let passed = counters.packets();
            if passed.iter().all(|count| *count > 0) {
                Ok(passed)
            } else {
                Err(format!("{passed:?}"))
            }
        },
    )
    .await;
    println!("control: of one bare pod at least {control:?}");
    netpol.back();
    drop(counters);
    shop.close().await;
}
