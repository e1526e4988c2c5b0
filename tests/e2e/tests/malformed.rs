//! A stored preview that cannot be read stops no other, and is counted.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, CustomResourceExt, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    eventually::eventually,
    house::{House, LISTING, PATIENCE, strip},
    operator::{Operator, Options},
};

/// Lets the API server store anything as the spec of a preview, as an older or newer version of the CRD might.
async fn loosen(crds: &Api<CustomResourceDefinition>, name: &str) {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let patch = json!([
        {"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec", "value": any},
        {"op": "remove", "path": "/spec/versions/0/selectableFields"},
    ]);
    let patch: Patch<()> = Patch::Json(serde_json::from_value(patch).unwrap());
    crds.patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn try_it(house: &House) {
    let api: Api<DynamicObject> = Api::namespaced_with(
        house.client.clone(),
        &house.shop,
        &ApiResource::erase::<PreviewSandbox>(&()),
    );
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewSandbox", "metadata": {"name": "malformed"},
        "spec": {"listingRef": {"name": LISTING}, "subject": 5}
    }))
    .unwrap();
    // Until the API server uses the looser schema.
    eventually("the malformed preview is stored", PATIENCE, async || {
        let made = api.create(&PostParams::default(), &object).await;
        made.map(drop).map_err(|error| error.to_string())
    })
    .await;

    let operator = Operator::ready(&house.post, &Options::alone("malformed"), None).await;
    house.preview("fine", "anna", None).await;
    let ready = |p: &PreviewSandbox| p.status.as_ref().is_some_and(|s| s.phase == Phase::Ready);
    house.until("fine", "it is ready", PATIENCE, ready).await;
    eventually("it is counted", PATIENCE, async || {
        let metrics = operator.get("/metrics").await.ok_or("no answer")?.body;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("vitrine_malformed_objects_total "))
            .and_then(|count| count.parse::<u32>().ok());
        match count {
            Some(1..) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    house.delete("fine").await;
    house.until_gone("fine", PATIENCE).await;
    assert!(operator.runs(), "{}", operator.last_words());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_preview_does_not_stop_the_others_and_is_counted() {
    let house = House::take("malformed", 1, "24h").await;
    let crds: Api<CustomResourceDefinition> = Api::all(house.client.clone());
    let name = PreviewSandbox::crd().name_any();
    let sound = crds.get(&name).await.unwrap();
    loosen(&crds, &name).await;
    let tried = AssertUnwindSafe(try_it(&house)).catch_unwind().await;
    // Whatever came of it: the next test needs the schema, and no object that breaks it.
    strip(&house.previews(), "malformed").await;
    let mut now = crds.get(&name).await.unwrap();
    now.spec = sound.spec;
    crds.replace(&name, &PostParams::default(), &now).await.unwrap();
    if let Err(panic) = tried {
        std::panic::resume_unwind(panic);
    }
    house.until_empty(PATIENCE).await;
}
