//! Attack 18: slots are written or let go by somebody else, so that more is let in than the limits say.

use serde_json::json;
use vitrine_e2e::{
    installed::{OPERATOR, SRE, together},
    manifest::Manifest,
    operator::SLOTS,
};
use vitrine_policies::names;

use super::{ADMIN, As, live};

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_made_and_freed_by_the_operator_alone() {
    let _together = together().await;
    let (shop, live) = live("slots").await;
    let policy = "vitrine-slots";
    let lease = |name: &str| {
        Manifest::new(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}),
        )
    };
    let slot = lease(&format!("subject-{}-0", names::digest(&["a"])));
    let other = lease("vitrine-operator");
    let admin = As(shop.vitrine, ADMIN);
    admin.refused(policy, &["-n", SLOTS, "create", "-f", slot.path()]);
    admin.refused(policy, &["-n", SLOTS, "delete", "lease", &live.slot]);
    admin.refused(policy, &["-n", SLOTS, "annotate", "lease", &live.slot, "a=b"]);
    let operator = As(shop.vitrine, OPERATOR);
    operator.allowed(&["-n", SLOTS, "create", "-f", slot.path()]);
    operator.refused(policy, &["-n", SLOTS, "create", "-f", other.path()]);
    operator.allowed(&["-n", SLOTS, "delete", "lease", &live.slot]);
    As(shop.vitrine, SRE).allowed(&["-n", SLOTS, "delete", "lease", &live.slot]);
    shop.close().await;
}
