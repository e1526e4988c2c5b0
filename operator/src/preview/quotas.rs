//! What the quotas of a cell count, and what they refuse. Reads what is in cells, deletes quotas that have to count anew.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ConfigMap, ResourceQuota, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Preconditions},
    core::PartialObjectMeta,
};
use vitrine_policies::{cell::boundary, names};

use super::{
    Context,
    decide::{self, Cell},
    make::Part,
};
use crate::error::{self, Error, Result, found};

/// How long a cell waits for what the controller-manager puts into every namespace; it takes a twentieth of a second where it is not busy, and
/// a watch tells. Some clusters have it put in less.
pub const FURNISHED: Duration = Duration::from_secs(2);
/// The ServiceAccount and the ConfigMap that it puts in (kube-controller-manager, serviceaccount-controller and
/// root-ca-certificate-publisher-controller).
const ACCOUNT: &str = "default";
const AUTHORITY: &str = "kube-root-ca.crt";

/// Whether the controller-manager has put its own into a cell, or has had its time for that. Its ConfigMap, which no watch tells of, comes
/// at about the same time as its account.
///
/// # Errors
/// If the API server does not answer.
pub async fn is_furnished(context: &Context, name: &str, cell: &Cell) -> Result<bool> {
    let namespace = cell.namespace.as_ref().map(|namespace| &namespace.metadata);
    let made = namespace.and_then(|made| made.creation_timestamp.as_ref());
    if made.is_some_and(|made| decide::remaining(made.0, FURNISHED, Timestamp::now()).is_none()) {
        return Ok(true);
    }
    let accounts: Api<ServiceAccount> = context.api(name);
    let account = found(accounts.get_metadata(ACCOUNT).await);
    let account = account.map_err(Error::kube("get", "ServiceAccount", format!("{name}/{ACCOUNT}")))?;
    Ok(account.is_some())
}

/// Whether this is the account that a cell waits for before it is closed.
pub fn furnishes(account: &PartialObjectMeta<ServiceAccount>) -> bool {
    account.metadata.name.as_deref() == Some(ACCOUNT)
}

/// Whether this is the quota that a cell waits for before its pod is made: the last of its parts, and counted.
pub fn closes(quota: &ResourceQuota) -> bool {
    quota.metadata.name.as_deref() == Some(names::CLOSED) && is_counted(quota)
}

/// Whether the controller-manager has counted for a quota; before, it refuses nothing.
pub fn is_counted(quota: &ResourceQuota) -> bool {
    quota.status.as_ref().is_some_and(|status| status.hard.is_some())
}

/// Whether the quota that closes a cell counts fewer than there are; then it is removed, and the next look makes one that counts anew.
///
/// The controller-manager counts by its own watches, which may not have told of all; then it does not count again for five minutes, and for
/// what it missed something else has room.
///
/// # Errors
/// If the API server does not answer.
pub async fn misses_some(context: &Context, cell: &str, closed: &ResourceQuota) -> Result<bool> {
    for (kind, counted) in boundary::lacking(closed, &boundary::closed(cell)) {
        if there(context, cell, kind).await?.len() > counted {
            tracing::info!(
                cell,
                kind,
                counted,
                "a quota counts fewer than there are; counting anew"
            );
            count_anew(context, closed).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether to try again what a quota of ours refused: because our object is there after all, because the quota counts otherwise by now, or
/// because it counts one that is not; then the quota is removed, and the next attempt makes one that counts anew. Where what is there is as
/// many as the quota allows, somebody else's object is what is too many.
///
/// A create that is cut off between the quota's admission and the store (its operator was killed) leaves such a charge, and
/// the controller-manager looks only every five minutes. The object's name, not the quota, keeps two attempts from two.
///
/// # Errors
/// If the API server does not answer.
pub async fn recount<K: Part>(context: &Context, desired: &K, error: &Error) -> Result<bool> {
    let Some(by) = refusing(error) else {
        return Ok(false);
    };
    let cell = desired.meta().namespace.as_deref().unwrap_or_default();
    let quotas: Api<ResourceQuota> = context.api(cell);
    let quota = found(quotas.get(by).await).map_err(Error::kube("get", "ResourceQuota", by))?;
    let Some(quota) = quota else { return Ok(true) };
    let kind = K::plural(&());
    let charged = boundary::counts(&quota, &kind);
    let there = there(context, cell, &kind).await?;
    // Charged first, stored then: an operator beside this one may have stored our object since we asked for it.
    let ours = desired.name_any();
    if there.iter().any(|object| object.name.as_ref() == Some(&ours)) {
        return Ok(true);
    }
    // The pod that was there before this one, a moment ago.
    if counts_otherwise(error, &quota) {
        return Ok(true);
    }
    if charged.is_none_or(|charged| charged <= there.len()) {
        return Ok(false);
    }
    tracing::info!(
        cell,
        by,
        "the quota counts a {} that was never made; counting anew",
        K::KIND
    );
    count_anew(context, &quota).await?;
    Ok(true)
}

/// Has a quota made anew by the next look: a new one is counted at once, one that is there every five minutes.
async fn count_anew(context: &Context, quota: &ResourceQuota) -> Result<()> {
    let (cell, name) = (quota.namespace().unwrap_or_default(), quota.name_any());
    let quotas: Api<ResourceQuota> = context.api(&cell);
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: quota.uid(),
        resource_version: None,
    });
    let deleted = found(quotas.delete(&name, &params).await);
    deleted.map_err(Error::kube("recount", "ResourceQuota", format!("{cell}/{name}")))?;
    Ok(())
}

/// What there is in a cell of a kind of the core group, given as a resource; of all that cells have and quotas count, each is in that group.
async fn there(context: &Context, cell: &str, kind: &str) -> Result<Vec<ObjectMeta>> {
    if kind == ConfigMap::plural(&()) {
        // By its name, since the operator may read no other.
        let maps: Api<ConfigMap> = context.api(cell);
        let authority = found(maps.get_metadata(AUTHORITY).await);
        let authority = authority.map_err(Error::kube("get", "ConfigMap", format!("{cell}/{AUTHORITY}")))?;
        return Ok(authority
            .map(|authority| authority.metadata)
            .into_iter()
            .collect());
    }
    let resource = ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: kind.to_owned(),
        plural: kind.to_owned(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), cell, &resource);
    let there = api.list_metadata(&ListParams::default()).await;
    let there = there.map_err(Error::kube("list what is in", "Namespace", cell))?;
    Ok(there.items.into_iter().map(|object| object.metadata).collect())
}

/// Which quota of ours it was that refused, if one did. The API server tells it in words only (apiserver, quota admission:
/// "exceeded quota: NAME, requested: …").
fn refusing(error: &Error) -> Option<&'static str> {
    let answer = quotas_answer(error)?;
    let refused = |by: &&str| answer.message.contains(&format!("exceeded quota: {by}, "));
    [names::SEAL, names::CLOSED].into_iter().find(refused)
}

/// Whether a quota counts otherwise than it did when it refused: it says what it counted ("used: KEY=AMOUNT,…").
fn counts_otherwise(error: &Error, quota: &ResourceQuota) -> bool {
    let said = quotas_answer(error).and_then(|answer| answer.message.split_once(", used: "));
    let said = said.and_then(|(_, rest)| rest.split_once(", limited: "));
    let now = quota.status.as_ref().and_then(|status| status.used.as_ref());
    let (Some((said, _)), Some(now)) = (said, now) else {
        return false;
    };
    let amounts = said.split(',').filter_map(|amount| amount.split_once('='));
    let mut amounts = amounts.map(|(key, then)| (now.get(key), then));
    amounts.any(|(now, then)| now.is_some_and(|now| now.0 != then))
}

/// Whether it was a quota that refused.
pub fn is_by_quota(error: &Error) -> bool {
    quotas_answer(error).is_some()
}

/// The answer of a quota that refused; the API server has no reason of its own for it.
fn quotas_answer(error: &Error) -> Option<&kube::core::Status> {
    let Error::Kube { source, .. } = error else {
        return None;
    };
    error::status(source).filter(|answer| answer.is_forbidden() && answer.message.contains("exceeded quota"))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    fn refused(message: &str) -> Error {
        let answer = Status::failure(message, "Forbidden").with_code(403);
        Error::kube("create", "Pod", "cell/preview")(kube::Error::Api(Box::new(answer)))
    }

    fn counting(used: serde_json::Value) -> ResourceQuota {
        serde_json::from_value(json!({"status": {"used": used}})).unwrap()
    }

    #[test]
    fn a_quota_that_refuses_says_which_it_is() {
        let ours = refused(
            "pods \"preview\" is forbidden: exceeded quota: vitrine, requested: count/pods=1, used: count/pods=1, limited: count/pods=1",
        );
        assert_eq!((is_by_quota(&ours), refusing(&ours)), (true, Some(names::SEAL)));
        let foreign = refused("exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0");
        assert_eq!((is_by_quota(&foreign), refusing(&foreign)), (true, None));
        assert!(!is_by_quota(&refused("pods \"preview\" is forbidden")));
    }

    /// Cells were removed because the pod before was counted a moment longer than it was there.
    #[test]
    fn what_a_quota_refused_by_is_compared_with_what_it_counts_now() {
        let both = refused(
            "exceeded quota: vitrine, requested: count/pods=1,limits.cpu=100m, used: count/pods=1,limits.cpu=1, limited: count/pods=1,limits.cpu=1",
        );
        let otherwise = |used| counts_otherwise(&both, &counting(used));
        assert!(!otherwise(
            json!({"count/pods": "1", "limits.cpu": "1", "limits.memory": "9"})
        ));
        assert!(otherwise(json!({"count/pods": "0", "limits.cpu": "1"})));
        assert!(otherwise(json!({"count/pods": "1", "limits.cpu": "0"})));
        assert!(!otherwise(json!({})), "it does not say");
        assert!(!counts_otherwise(
            &refused("no quota"),
            &counting(json!({"count/pods": "0"}))
        ));
    }
}
