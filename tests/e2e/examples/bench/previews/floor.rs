//! The floor: the writes of one warm claim, of the same sizes, by nobody's decision and on the same server. Writes the cluster.

use std::time::{Duration, Instant};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::json;
use vitrine_e2e::house::House;

use super::side::Side;
use crate::stats::Sorted;

/// How often: enough for a p99.
const TIMES: usize = 200;
/// Of what a claim writes besides, in bytes: the annotations of a cell, and the status of a preview that is ready.
const RECORD: usize = 1000;
const STATUS: usize = 3500;

/// From a create to the answer of the last of its writes, one claim after the other: create; then lease and namespace at once; then
/// the status. While no controller runs.
pub async fn measure(side: &Side, house: &House) -> Sorted {
    let claims = side.claims();
    // Beside the claims: slots are the operator's alone.
    let leases: Api<Lease> = Api::namespaced(house.client.clone(), &house.shop);
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let shop = house.shop.as_str();
    let mut times: Vec<Duration> = vec![];
    for number in 0..TIMES {
        let name = format!("floor-{number}");
        let lease: Lease = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"a": "b".repeat(60), "c": "d".repeat(36), "e": "f".repeat(32)}, "annotations": {"g": "h".repeat(80)}},
            "spec": {"holderIdentity": "i".repeat(36)}
        }))
        .unwrap();
        let begun = Instant::now();
        let claim = claims
            .create(&PostParams::default(), &side.claim(&name))
            .await
            .unwrap();
        let record = Patch::Merge(
            json!({"metadata": {"annotations": {"vitrine-bench/record": format!("{number:0RECORD$}")}}}),
        );
        let (params, create) = (PatchParams::default(), PostParams::default());
        let (lease, record) = tokio::join!(
            leases.create(&create, &lease),
            namespaces.patch(shop, &params, &record)
        );
        lease.unwrap();
        record.unwrap();
        let mut ended: DynamicObject = claim;
        ended.data["status"] = json!({"phase": "Refused", "url": "u".repeat(STATUS)});
        claims
            .replace_status(&name, &PostParams::default(), &ended)
            .await
            .unwrap();
        times.push(begun.elapsed());
        leases.delete(&name, &DeleteParams::default()).await.unwrap();
        // It is held from its creation, and nobody is there to let go of it.
        vitrine_e2e::house::strip(&claims, &name).await;
    }
    Sorted::of(times)
}
