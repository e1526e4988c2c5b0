//! Proves that the chart's admission policies are in force: tries, as dry runs, what each of them must refuse. Writes nothing.
//!
//! A policy that exists is not one in force: its binding may be gone, or an API server may not have read it yet.

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Resource,
    api::{ObjectMeta, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use vitrine_policies::names;

use crate::{
    error::{self, Error, Result},
    preview::Settings,
};

/// What is tried. It has no name that the operator may write, and never comes to be.
const PROOF: &str = "proof";

/// Tries each policy.
///
/// # Errors
/// If one did not refuse, or something else came of the try.
pub async fn prove(client: &Client, settings: &Settings) -> Result<()> {
    let named = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata: named(PROOF),
        ..ServiceAccount::default()
    };
    let namespace = Namespace {
        // Without the label that goes with such a name.
        metadata: named(&format!("{}{PROOF}", names::CELL_PREFIX)),
        ..Namespace::default()
    };
    let lease = Lease {
        metadata: named(PROOF),
        ..Lease::default()
    };
    let receipt = ConfigMap {
        metadata: named(&format!("{}{PROOF}", vitrine_receipts::names::PREFIX)),
        ..ConfigMap::default()
    };
    let within = |name: &str| Api::<ServiceAccount>::namespaced(client.clone(), name);
    refused("vitrine-cells", &within(names::SENTINEL), &account).await?;
    refused("vitrine-operator", &within(&settings.house.namespace), &account).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    refused("vitrine-cell-namespaces", &namespaces, &namespace).await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &settings.slots);
    refused("vitrine-slots", &leases, &lease).await?;
    let receipts: Api<ConfigMap> = Api::namespaced(client.clone(), &settings.receipts);
    refused("vitrine-receipts", &receipts, &receipt).await
}

async fn refused<K>(policy: &str, api: &Api<K>, object: &K) -> Result<()>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let not_in_force = |what: &str| {
        Err(Error::Installation(format!(
            "ValidatingAdmissionPolicy {policy} is not in force: {what}; is it there, and its binding?"
        )))
    };
    match api.create(&dry, object).await {
        Ok(_) => not_in_force("what it must refuse was let through"),
        Err(error) => match error::status(&error) {
            Some(status) if status.message.contains(&format!("'{policy}'")) => Ok(()),
            Some(status) => not_in_force(&format!("the API server said {:?}", status.message)),
            None => Err(Error::kube("try", "ValidatingAdmissionPolicy", policy)(error)),
        },
    }
}
