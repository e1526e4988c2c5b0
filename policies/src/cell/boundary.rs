//! The cell's boundary: Namespace, ResourceQuota, LimitRange, ServiceAccount. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        LimitRange, LimitRangeItem, LimitRangeSpec, Namespace, ResourceQuota, ResourceQuotaSpec,
        ServiceAccount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;
use vitrine_crds::Amount;

use super::{labels, metadata, pod};
use crate::{Envelope, names};

/// The namespace. Pod Security "restricted" is enforced whatever the platform's default is.
pub fn namespace(cell: &str) -> Namespace {
    let mut labels = labels();
    for mode in ["enforce", "warn", "audit"] {
        labels.insert(
            format!("pod-security.kubernetes.io/{mode}"),
            "restricted".to_owned(),
        );
        labels.insert(
            format!("pod-security.kubernetes.io/{mode}-version"),
            "latest".to_owned(),
        );
    }
    Namespace {
        metadata: ObjectMeta {
            name: Some(cell.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

/// The quota: the listing's size and Vitrine's fixed overhead, and one pod.
pub fn quota(cell: &str, envelope: &Envelope) -> ResourceQuota {
    let overhead = pod::overhead();
    let mut hard: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut set = |name: &str, amount: String| hard.insert(name.to_owned(), Quantity(amount));
    let memory = envelope.memory.plus(overhead.memory);
    let storage = envelope.ephemeral_storage.plus(overhead.ephemeral_storage);
    for (side, cpu) in [("requests", overhead.cpu_request), ("limits", overhead.cpu_limit)] {
        set(&format!("{side}.cpu"), envelope.cpu.plus(cpu).to_string());
        set(&format!("{side}.memory"), memory.to_string());
        set(&format!("{side}.ephemeral-storage"), storage.to_string());
    }
    // One, as a fence: two pods can never be in one cell, whoever makes them (attacks, 8).
    set("count/pods", "1".to_owned());
    limited(cell, names::SEAL, hard)
}

/// The other quota: as many as a cell has of what every cell has, and none of every other kind that can be counted. It counts nothing that
/// comes and goes with previews: Kubernetes writes a quota whole whenever it counts, three times a preview, and as one with the other it was
/// a twelfth of the API server's time.
pub fn closed(cell: &str) -> ResourceQuota {
    // The controller-manager itself puts one into every namespace: kube-root-ca.crt and the default ServiceAccount.
    let ours = [
        ("count/configmaps", "1"),
        ("count/serviceaccounts", "2"),
        // This one and the other.
        ("count/resourcequotas", "2"),
        ("count/limitranges", "1"),
    ];
    // Everything else that a quota can count, whoever makes it: only network policies are left to the watch, which ends what has
    // another than ours.
    let none = [
        "count/secrets",
        "count/services",
        "count/persistentvolumeclaims",
        "count/endpoints",
        "count/podtemplates",
        "count/replicationcontrollers",
        "count/controllerrevisions.apps",
        "count/deployments.apps",
        "count/replicasets.apps",
        "count/statefulsets.apps",
        "count/daemonsets.apps",
        "count/jobs.batch",
        "count/cronjobs.batch",
        "count/horizontalpodautoscalers.autoscaling",
        "count/leases.coordination.k8s.io",
        "count/endpointslices.discovery.k8s.io",
        "count/ingresses.networking.k8s.io",
        "count/poddisruptionbudgets.policy",
        "count/roles.rbac.authorization.k8s.io",
        "count/rolebindings.rbac.authorization.k8s.io",
        "count/resourceclaims.resource.k8s.io",
        "count/resourceclaimtemplates.resource.k8s.io",
        "count/csistoragecapacities.storage.k8s.io",
    ];
    let none = none.into_iter().map(|kind| (kind, "0"));
    let hard = ours.into_iter().chain(none);
    let hard = hard.map(|(kind, most)| (kind.to_owned(), Quantity(most.to_owned())));
    limited(cell, names::CLOSED, hard.collect())
}

/// How many objects of a kind there may be, as a key of a quota (Kubernetes "Resource Quotas", object count quota).
const OBJECTS: &str = "count/";

/// The kinds of which a quota counts more than `desired` allows: what is too many came in before the quota was, or past it. As resources
/// (`pods`, `deployments.apps`).
pub fn exceeded<'a>(live: &'a ResourceQuota, desired: &ResourceQuota) -> impl Iterator<Item = &'a str> {
    counted(live, desired).filter_map(|(kind, used, most)| (used > most).then_some(kind))
}

/// The kinds of which a quota counts fewer than `desired` allows, and how many it counts: if there are more of them, there is room for what
/// is no part of the cell.
pub fn lacking<'a>(
    live: &'a ResourceQuota,
    desired: &ResourceQuota,
) -> impl Iterator<Item = (&'a str, usize)> {
    counted(live, desired).filter_map(|(kind, used, most)| (used < most).then_some((kind, used)))
}

/// How many a quota counts of a kind of object, given as a resource.
pub fn counts(quota: &ResourceQuota, kind: &str) -> Option<usize> {
    let used = quota.status.as_ref()?.used.as_ref()?;
    used.get(&format!("{OBJECTS}{kind}"))?.0.parse().ok()
}

/// What a quota counts of each kind of object, beside what is allowed.
fn counted<'a>(
    live: &'a ResourceQuota,
    desired: &ResourceQuota,
) -> impl Iterator<Item = (&'a str, usize, usize)> {
    let allowed = desired.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let used = live.status.as_ref().and_then(|status| status.used.as_ref());
    used.into_iter().flatten().filter_map(move |(key, used)| {
        let most = allowed?.get(key)?;
        Some((
            key.strip_prefix(OBJECTS)?,
            used.0.parse().ok()?,
            most.0.parse().ok()?,
        ))
    })
}

fn limited(cell: &str, name: &str, hard: BTreeMap<String, Quantity>) -> ResourceQuota {
    ResourceQuota {
        metadata: metadata(cell, name),
        spec: Some(ResourceQuotaSpec {
            hard: Some(hard),
            ..ResourceQuotaSpec::default()
        }),
        ..ResourceQuota::default()
    }
}

/// The limit range: what no single container may exceed, also one that names no limits.
pub fn limit_range(cell: &str, envelope: &Envelope) -> LimitRange {
    let quantities = |cpu: Amount, memory: Amount, storage: Amount| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_string())),
            ("memory".to_owned(), Quantity(memory.to_string())),
            ("ephemeral-storage".to_owned(), Quantity(storage.to_string())),
        ]))
    };
    let overhead = pod::overhead();
    let most = quantities(
        envelope.cpu.max(overhead.cpu_limit),
        envelope.memory.max(overhead.memory),
        envelope.ephemeral_storage.max(overhead.ephemeral_storage),
    );
    let default = quantities(overhead.cpu_request, overhead.memory, overhead.ephemeral_storage);
    LimitRange {
        metadata: metadata(cell, names::SEAL),
        spec: Some(LimitRangeSpec {
            limits: vec![LimitRangeItem {
                type_: "Container".to_owned(),
                max: most,
                default: default.clone(),
                default_request: default,
                ..LimitRangeItem::default()
            }],
        }),
    }
}

/// The pod's ServiceAccount: a name without a token and without rights.
pub fn service_account(cell: &str) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(cell, names::SERVICE_ACCOUNT),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
