//! Attack 2: a NetworkPolicy of somebody else, in a namespace of theirs, that the enforcer cannot read: it stops enforcing for new
//! pods, and says so in its log only.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::PostParams;
use serde_json::json;
use vitrine_crds::Phase;
use vitrine_e2e::installed::{READY, Shop, alone};
use vitrine_kit::objects;

const NAME: &str = "unreadable";

/// While it is there, the enforcer does nothing new for anybody; dropping deletes it.
struct Unreadable<'a>(&'a Shop);

impl Drop for Unreadable<'_> {
    fn drop(&mut self) {
        let delete = ["-n", &self.0.namespace, "delete", "networkpolicy", NAME];
        if let Err(error) = self.0.vitrine.try_kubectl(&delete) {
            eprintln!("the policy that stops the enforcer could not be deleted: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_policy_elsewhere_keeps_the_enforcer_from_its_work_no_preview_is_ready() {
    let _alone = alone().await;
    let shop = Shop::open("foreign").await;
    let policy = shop.vitrine.with_hasty_proof();
    shop.offer_script("page", objects::SERVE).await;
    let before = shop.live("before", objects::SERVE, "3m").await;
    let everywhere = json!({"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}});
    let foreign = json!({
        "metadata": {"name": NAME},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [everywhere]}]}
    });
    let foreign: NetworkPolicy = serde_json::from_value(foreign).unwrap();
    let policies = shop.within::<NetworkPolicy>(&shop.namespace);
    policies.create(&PostParams::default(), &foreign).await.unwrap();
    let unreadable = Unreadable(&shop);
    shop.bare_pod(&shop.namespace, "bare", "sleep 600").await;
    shop.address(&shop.namespace, "bare").await;

    shop.ask("page", "page", "1m").await;
    shop.not_enforced("page").await;
    // What was confined before stays confined.
    let lives = shop
        .until("before", "it lives", READY, |s| s.phase == Phase::Ready)
        .await;
    assert_eq!(lives.pod.map(|pod| pod.uid), Some(before.pod));
    drop(unreadable);
    shop.ask("after", "page", "1m").await;
    shop.ready("after").await;
    policy.back();
    shop.close().await;
}
