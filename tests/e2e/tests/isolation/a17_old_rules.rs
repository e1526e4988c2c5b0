//! Attack 17: the address of a new pod was another pod's a moment ago, and that one's rules, wider ones, are still in force: what the
//! new one may reach can be reached, what lies elsewhere cannot, and a probe that asks no further takes that for its own confinement.

use vitrine_devcluster::{Action, Cluster, POD_CIDR, Place};
use vitrine_e2e::installed::{Shop, alone};
use vitrine_kit::objects;

/// Before the addresses of Services are replaced by those of pods, and after connections are known.
const TABLE: &str = "mangle";
const CHAIN: &str = "OLD-RULES";

/// Rules for every pod that is not there yet: all of the responder is open, everything else is shut. Gone when this is dropped.
struct OldRules<'a>(&'a Cluster);

impl<'a> OldRules<'a> {
    fn of(cluster: &'a Cluster, pods: &str, responder: &str) -> Self {
        let rules = Self(cluster);
        let known = pods.split_whitespace().map(|pod| vec!["-s", pod, "-j", "RETURN"]);
        let others = [
            vec![
                "-m",
                "conntrack",
                "--ctstate",
                "ESTABLISHED,RELATED",
                "-j",
                "RETURN",
            ],
            vec!["-s", POD_CIDR, "-d", responder, "-j", "RETURN"],
            vec!["-s", POD_CIDR, "-j", "DROP"],
        ];
        rules.iptables(&["-N", CHAIN]);
        for rule in known.chain(others) {
            rules.iptables(&[&["-A", CHAIN][..], &rule].concat());
        }
        rules.iptables(&["-I", "PREROUTING", "-j", CHAIN]);
        rules
    }

    fn iptables(&self, what: &[&str]) {
        let done = self
            .0
            .exec(Place::Node, &[&["iptables", "-w", "-t", TABLE], what].concat());
        match done {
            Ok(done) if done.code == 0 => {}
            other => eprintln!("iptables {what:?}: {other:?}"),
        }
    }
}

impl Drop for OldRules<'_> {
    fn drop(&mut self) {
        for what in [
            &["-D", "PREROUTING", "-j", CHAIN][..],
            &["-F", CHAIN],
            &["-X", CHAIN],
        ] {
            self.iptables(what);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wider_rules_of_an_old_pod_do_not_satisfy_the_probe() {
    let _alone = alone().await;
    let shop = Shop::open("old-rules").await;
    let proof = shop.vitrine.with_hasty_proof();
    let responder = shop.house("vitrine-responder").await;
    let pods = shop
        .vitrine
        .kubectl(&["get", "pods", "-A", "-o", "jsonpath={.items[*].status.podIP}"]);
    shop.offer_script("page", objects::SERVE).await;
    let netpol = shop.vitrine.without("netpol", Action::Pause);
    let rules = OldRules::of(&shop.vitrine.cluster, &pods, &responder);
    shop.ask("page", "page", "1m").await;
    let message = shop.not_enforced("page").await;
    assert!(
        message.contains("could still reach other-port") && !message.contains("internet"),
        "only what is the responder's was open: {message}"
    );
    drop(rules);
    netpol.back();
    proof.back();
    shop.ask("after", "page", "1m").await;
    shop.ready("after").await;
    shop.close().await;
}
