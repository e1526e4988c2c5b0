//! A cell of a pool whose quota somebody widens, while it waits and while it rests.

use k8s_openapi::api::core::v1::{Namespace, Pod, ResourceQuota};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use vitrine_e2e::{
    eventually::eventually,
    house::{House, PATIENCE},
    operator::{Operator, Options},
};
use vitrine_policies::names;

use crate::{GONE, change, is_full, offer, ready, retire, until, waiting};

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_whose_quota_was_widened_is_removed_whether_it_waited_or_rested() {
    let house = House::take("pools-widened", 1, "24h").await;
    let _operator = Operator::ready(&house.post, &Options::alone("pools-widened"), None).await;
    offer(&house, "pool", 1, json!({})).await;
    until(&house, "pool", "it is full", is_full).await;

    let (waits, before, _) = waiting(&house).await.unwrap();
    let waited = widen(&house, &waits).await;
    // Another is made, and the one that was had comes back.
    let one = eventually("another pod waits", GONE, async || {
        let (cell, epoch, _) = waiting(&house).await?;
        if epoch == before {
            Err(format!("{cell} waits"))
        } else {
            Ok(cell)
        }
    });
    let rests = one.await;
    until(&house, "pool", "it is full again", is_full).await;
    house.preview("first", "anna", None).await;
    house.until("first", "it is ready", PATIENCE, ready).await;
    until(&house, "pool", "another is made", |s| {
        s.claimed == 1 && s.ready == 1
    })
    .await;
    house.delete("first").await;
    house.until_gone("first", GONE).await;
    eventually("nothing is in the cell that was had", PATIENCE, async || {
        let pods: Api<Pod> = Api::namespaced(house.client.clone(), &rests);
        match pods.get_opt(names::POD).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let rested = widen(&house, &rests).await;
    // More than there are: those that rest are filled first.
    change(&house, "pool", json!({"replicas": 5})).await;
    gone(&house, &waits, &waited).await;
    gone(&house, &rests, &rested).await;
    until(&house, "pool", "it is full again", |s| s.ready == 5).await;

    retire(&house, "pool").await;
    house.until_empty(GONE).await;
}

/// Lets a cell have more pods than one; its uid.
async fn widen(house: &House, cell: &str) -> Option<String> {
    let quotas: Api<ResourceQuota> = Api::namespaced(house.client.clone(), cell);
    let wide = Patch::Merge(json!({"spec": {"hard": {"count/pods": "9"}}}));
    quotas
        .patch(names::SEAL, &PatchParams::default(), &wide)
        .await
        .unwrap();
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    namespaces.get(cell).await.unwrap().metadata.uid
}

/// Waits until a cell is told to go.
async fn gone(house: &House, cell: &str, uid: &Option<String>) {
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    eventually("the widened cell goes", GONE, async || {
        let namespace = namespaces
            .get_opt(cell)
            .await
            .map_err(|error| error.to_string())?;
        // Its name is used again.
        let stays = namespace.is_some_and(|namespace| {
            namespace.metadata.uid == *uid && namespace.metadata.deletion_timestamp.is_none()
        });
        if stays {
            Err(format!("{cell} is there"))
        } else {
            Ok(())
        }
    })
    .await;
}
