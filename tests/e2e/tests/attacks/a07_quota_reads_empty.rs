//! Attack 7: a cell whose quota reads as if nothing were used, while the product runs: the API server counts no pod that is said to
//! have failed.

use k8s_openapi::api::core::v1::ResourceQuota;
use vitrine_crds::StatusReason;
use vitrine_devcluster::Action;
use vitrine_e2e::{
    eventually::eventually,
    installed::{READY, Shop, alone, assert_verified, is_unproven},
};
use vitrine_kit::objects;
use vitrine_policies::names;

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_quota_proves_no_end() {
    let _alone = alone().await;
    let shop = Shop::open("empty").await;
    let live = shop.live("page", objects::SERVE, "3m").await;
    // The kubelet would say at once what is true.
    let kubelet = shop.vitrine.without("kubelet", Action::Stop);
    shop.vitrine.break_glass(&[
        "-n",
        &live.cell,
        "patch",
        "pod",
        names::POD,
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"phase":"Failed"}}"#,
    ]);
    let quotas = shop.within::<ResourceQuota>(&live.cell);
    eventually("the quota reads empty", READY, async || {
        let quota = quotas.get(names::SEAL).await.map_err(|error| error.to_string())?;
        let used = quota.status.and_then(|status| status.used).unwrap_or_default();
        let empty = ["limits.cpu", "limits.memory"]
            .iter()
            .all(|key| used.get(*key).is_some_and(|amount| amount.0 == "0"));
        if empty { Ok(()) } else { Err(format!("{used:?}")) }
    })
    .await;
    shop.until(
        "page",
        "it is ending, and not proven to have ended",
        READY,
        is_unproven,
    )
    .await;
    assert!(!shop.processes(&live.pod).is_empty(), "the product runs");
    assert!(
        shop.slots().get_opt(&live.slot).await.unwrap().is_some(),
        "its slot is kept"
    );
    kubelet.back();
    assert_verified(&shop.over("page").await, StatusReason::PodRejected);
    shop.nothing_left(&live).await;
    shop.close().await;
}
