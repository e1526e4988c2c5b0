//! Attack 3: the policy that confines is away for a moment, and put back: a connection that was opened in the gap would live on.

use vitrine_policies::names;

use super::ends;

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_network_policy_is_restored_and_the_preview_ends() {
    ends("deleted", |shop, live| {
        shop.vitrine
            .break_glass(&["-n", &live.cell, "delete", "networkpolicy", names::SEAL]);
    })
    .await;
}
