//! Proves that the chart's admission policies are in force: tries, as dry runs, what each of them must refuse. Writes nothing but
//! the ServiceAccount that a pod to try needs.
//!
//! A policy that exists is not one in force: its binding may be gone, or an API server may not have read it yet.

mod trials;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};
use vitrine_crds::{POLICY_NAME, PreviewPolicy, PreviewSandbox};
use vitrine_policies::names;

use crate::{
    error::{self, Error, Result, found},
    preview::Settings,
};

/// Tries each policy.
///
/// # Errors
/// If one did not refuse, or something else came of the try: all of them are named. If the API server does not answer.
pub async fn prove(client: &Client, settings: &Settings) -> Result<()> {
    let (house, slots, receipts) = (&settings.house.namespace, &settings.slots, &settings.receipts);
    let accounts = |namespace: &str| Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let maps = |namespace: &str| Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client.clone(), slots);
    let previews: Api<PreviewSandbox> = Api::namespaced(client.clone(), house);
    let mut complaints = vec![
        complaint("vitrine-cells", &accounts(names::SENTINEL), &trials::account()).await?,
        complaint("vitrine-operator", &accounts(house), &trials::account()).await?,
        complaint("vitrine-cell-namespaces", &namespaces, &trials::namespace()).await?,
        complaint("vitrine-slots", &leases, &trials::slot()).await?,
        complaint("vitrine-receipts", &maps(receipts), &trials::receipt()).await?,
        complaint("vitrine-keys", &maps(house), &trials::keys()).await?,
        complaint("vitrine-trust", &previews, &trials::trusted_preview()?).await?,
    ];
    // The last two judge by the platform's policy: without one nothing is admitted, and no pod made.
    let policies: Api<PreviewPolicy> = Api::all(client.clone());
    let policy = found(policies.get(POLICY_NAME).await);
    if let Some(policy) = policy.map_err(Error::kube("get", "PreviewPolicy", POLICY_NAME))? {
        complaints.push(complaint("vitrine-envelope", &previews, &trials::reaching_preview()?).await?);
        if let Some(pod) = trials::pod_from_elsewhere(&policy.spec, &settings.probe)? {
            account_for_pods(&accounts(names::SENTINEL)).await?;
            let pods: Api<Pod> = Api::namespaced(client.clone(), names::SENTINEL);
            complaints.push(complaint("vitrine-images", &pods, &pod).await?);
        }
    }
    let complaints: Vec<_> = complaints.into_iter().flatten().collect();
    if complaints.is_empty() {
        return Ok(());
    }
    Err(Error::Installation(format!(
        "admission policies are not in force: {}; are they there, and their bindings?",
        complaints.join(", ")
    )))
}

/// What is to be said of a policy if it does not refuse this object.
async fn complaint<K>(policy: &str, api: &Api<K>, object: &K) -> Result<Option<String>>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let let_through = || Ok(Some(format!("{policy} (what it must refuse was let through)")));
    match api.create(&dry, object).await {
        Ok(_) => let_through(),
        Err(error) => match error::status(&error) {
            Some(status) if status.message.contains(&format!("'{policy}'")) => Ok(None),
            // Policies come before the store.
            Some(status) if status.is_already_exists() => let_through(),
            // The first who refuses is named, and ours comes no further: it cannot be proven beside another that refuses the same.
            Some(status) => Ok(Some(format!(
                "{policy} (the API server said {:?}; if that is a policy of the platform's, exempt {} and this release from it)",
                status.message,
                names::SENTINEL
            ))),
            None => Err(Error::kube("try", "ValidatingAdmissionPolicy", policy)(error)),
        },
    }
}

/// Makes the account that a pod to try has, once a cluster.
async fn account_for_pods(accounts: &Api<ServiceAccount>) -> Result<()> {
    let name = || format!("{}/{}", names::SENTINEL, names::SERVICE_ACCOUNT);
    let there = found(accounts.get_metadata(names::SERVICE_ACCOUNT).await);
    if there
        .map_err(Error::kube("get", "ServiceAccount", name()))?
        .is_some()
    {
        return Ok(());
    }
    match accounts
        .create(&PostParams::default(), &trials::pods_account())
        .await
    {
        // Another operator was quicker.
        Err(error) if error::status(&error).is_some_and(kube::core::Status::is_already_exists) => Ok(()),
        made => made
            .map(drop)
            .map_err(Error::kube("create", "ServiceAccount", name())),
    }
}
