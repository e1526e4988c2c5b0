//! Finds what happened to network policies while no watch told of it. Reads NetworkPolicies, has previews looked at.
//!
//! After such a gap all that live are looked at one after the other, which takes minutes where there are thousands. Whether each still has
//! its network policy, and no other, a list of their metadata says within a second.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

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
/// The first list after a start comes so much later: beside the first claims it made those wait, and an operator larger than it is ever
/// after.
const AFTER_START: Duration = Duration::from_secs(10);
/// Every policy, also those without our label: a foreign one in a cell must be seen.
const ALL: &str = "";

/// Looks after each gap, for ever.
pub async fn run(context: &Context) {
    tokio::time::sleep(AFTER_START).await;
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
    let mut seals = Seals::default();
    let listed = api::each_in(&policies, ALL, |policy: &PartialObjectMeta<NetworkPolicy>| {
        let cell = policy.namespace().unwrap_or_default();
        if context.watched.cells.has(&cell) {
            seals.add(&cell, policy);
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
        if status.phase == Phase::Ready && !seals.has(cell, status.seal.as_deref()) {
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

/// The network policies of all cells, by hashes: of ten thousand cells, names and uids would be a megabyte and a half.
#[derive(Default)]
struct Seals {
    hasher: RandomState,
    /// What the only policy of a cell is known by; `None` where there is another one too.
    known: HashMap<u64, Option<u64>>,
}

impl Seals {
    fn add(&mut self, cell: &str, policy: &PartialObjectMeta<NetworkPolicy>) {
        let own = policy.name_any() == names::SEAL;
        let seal = own.then(|| self.hasher.hash_one(seal_identity(policy)));
        let known = self.known.entry(self.hasher.hash_one(cell)).or_insert(seal);
        if *known != seal {
            *known = None;
        }
    }

    /// Whether a cell has this policy, and no other.
    fn has(&self, cell: &str, seal: Option<&str>) -> bool {
        let known = self.known.get(&self.hasher.hash_one(cell)).copied().flatten();
        known.is_some() && known == seal.map(|seal| self.hasher.hash_one(seal))
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
            policies.iter().for_each(|policy| seals.add("cell", policy));
            seals
        };
        let seal = Some("a/1");
        assert!(found(&[policy("vitrine", "a", 1)]).has("cell", seal));
        assert!(!found(&[policy("vitrine", "a", 1)]).has("another", seal));
        assert!(!found(&[policy("vitrine", "a", 2)]).has("cell", seal), "changed");
        assert!(
            !found(&[policy("vitrine", "b", 1)]).has("cell", seal),
            "made anew"
        );
        for two in [["vitrine", "other"], ["other", "vitrine"]] {
            let two = two.map(|name| policy(name, "a", 1));
            assert!(!found(&two).has("cell", seal), "not alone");
        }
        assert!(!found(&[]).has("cell", seal) && !found(&[]).has("cell", None));
    }
}
