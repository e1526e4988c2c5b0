//! Finds what happened to network policies while no watch told of it. Reads NetworkPolicies, has previews looked at.
//!
//! After such a gap all that live are looked at one after the other, which takes minutes where there are thousands. Whether each still has
//! its network policy, and no other, a list of their metadata says within a second.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, ResourceExt, core::PartialObjectMeta, runtime::reflector::ObjectRef};
use serde::Deserialize;
use vitrine_crds::Phase;
use vitrine_policies::names;

use super::{Context, decide::seal_identity};
use crate::{
    api,
    error::{Error, Result},
};

/// After a list that failed.
const AGAIN: Duration = Duration::from_secs(2);
/// Every policy, also those without our label: a foreign one in a cell must be seen.
const ALL: &str = "";

/// Looks after each gap, for ever.
pub async fn run(context: &Context) {
    loop {
        context.looks.unheard().await;
        while let Err(error) = look(context).await {
            context.metrics.failed(&error);
            tracing::warn!(%error, "failed to look at network policies after a gap, will try again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn look(context: &Context) -> Result<()> {
    let policies: Api<NetworkPolicy> = Api::all(context.client.clone());
    let mut seals: HashMap<String, Seals> = HashMap::new();
    let listed = api::each_in(&policies, ALL, |policy: &PartialObjectMeta<NetworkPolicy>| {
        let cell = policy.namespace().unwrap_or_default();
        if context.watched.cells.has(&cell) {
            seals.entry(cell).or_default().add(policy);
        }
    });
    listed
        .await
        .map_err(Error::kube("list", "NetworkPolicy", "all"))?;
    let mut broken = 0_u64;
    let compare = |preview: Lives| {
        let (status, Some(namespace)) = (&preview.status, &preview.metadata.namespace) else {
            return;
        };
        let Some((status, cell)) = status
            .as_ref()
            .and_then(|status| Some((status, status.cell.as_ref()?)))
        else {
            return;
        };
        if status.phase == Phase::Ready && seals.get(cell).is_none_or(|found| !found.are(&status.seal)) {
            let name = &preview.metadata.name;
            context.looks.touch(&ObjectRef::new(name).within(namespace));
            context.wakes.preview(namespace, name);
            broken += 1;
        }
    };
    context.watched.previews.skim(compare).await;
    if broken > 0 {
        tracing::warn!(
            previews = broken,
            "network policies are other than they were before a watch was interrupted"
        );
    }
    Ok(())
}

/// The network policies of one cell.
#[derive(Default)]
struct Seals {
    own: Option<String>,
    others: bool,
}

impl Seals {
    fn add(&mut self, policy: &PartialObjectMeta<NetworkPolicy>) {
        if policy.name_any() == names::SEAL {
            self.own = Some(seal_identity(policy));
        } else {
            self.others = true;
        }
    }

    fn are(&self, seal: &Option<String>) -> bool {
        !self.others && self.own.is_some() && self.own == *seal
    }
}

/// What of a preview is compared.
#[derive(Deserialize)]
struct Lives {
    metadata: Named,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    phase: Phase,
    cell: Option<String>,
    seal: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(name: &str, uid: &str, generation: i64) -> PartialObjectMeta<NetworkPolicy> {
        let metadata = json!({"name": name, "namespace": "cell", "uid": uid, "generation": generation});
        PartialObjectMeta {
            metadata: serde_json::from_value(metadata).unwrap(),
            ..PartialObjectMeta::default()
        }
    }

    #[test]
    fn a_seal_is_the_very_policy_unchanged_and_alone() {
        let found = |policies: &[PartialObjectMeta<NetworkPolicy>]| {
            let mut seals = Seals::default();
            policies.iter().for_each(|policy| seals.add(policy));
            seals
        };
        let seal = Some("a/1".to_owned());
        assert!(found(&[policy("vitrine", "a", 1)]).are(&seal));
        assert!(!found(&[policy("vitrine", "a", 2)]).are(&seal), "changed");
        assert!(!found(&[policy("vitrine", "b", 1)]).are(&seal), "made anew");
        assert!(!found(&[policy("vitrine", "a", 1), policy("other", "c", 1)]).are(&seal));
        assert!(!found(&[]).are(&seal) && !found(&[]).are(&None));
    }
}
