//! What each admission policy must refuse to the operator, as objects that nothing else is wrong with. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
};
use kube::api::ObjectMeta;
use serde_json::json;
use vitrine_crds::{
    PreviewPolicySpec, PreviewSandbox, SkuListing,
    preview_policy::{ImageRange, Runtimes, TrustLevels},
};
use vitrine_policies::{
    cell::{boundary, pod},
    envelope, names, probe,
};

use crate::{
    error::{Error, Result},
    link_keys,
};

/// What is tried has names that end like this, and never comes to be.
const PROOF: &str = "proof";
/// The operator's mark on the sentinel, which the chart makes: its pods are meant for it.
const SENTINEL_EPOCH: &str = "sentinel";
/// A name that nothing ever has (RFC 6761, 6.4).
const NOWHERE: &str = "vitrine-proof.invalid";

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

/// Of a name that the operator writes neither in cells nor at home.
pub(super) fn account() -> ServiceAccount {
    ServiceAccount {
        metadata: named(PROOF),
        ..ServiceAccount::default()
    }
}

/// Without the label that goes with such a name.
pub(super) fn namespace() -> Namespace {
    Namespace {
        metadata: named(&format!("{}{PROOF}", names::CELL_PREFIX)),
        ..Namespace::default()
    }
}

/// Of nothing that previews are limited by.
pub(super) fn slot() -> Lease {
    Lease {
        metadata: named(PROOF),
        ..Lease::default()
    }
}

/// Of no preview.
pub(super) fn receipt() -> ConfigMap {
    ConfigMap {
        metadata: named(&format!("{}{PROOF}", vitrine_receipts::names::PREFIX)),
        ..ConfigMap::default()
    }
}

/// Without a key in it.
pub(super) fn keys() -> ConfigMap {
    ConfigMap {
        metadata: named(link_keys::NAME),
        data: Some(BTreeMap::from([(PROOF.to_owned(), String::new())])),
        ..ConfigMap::default()
    }
}

/// A preview, with these fields beside those that it must have.
fn preview(fields: serde_json::Value) -> Result<PreviewSandbox> {
    let mut spec = json!({"listingRef": {"name": PROOF}, "subject": PROOF});
    if let (Some(spec), serde_json::Value::Object(fields)) = (spec.as_object_mut(), fields) {
        spec.extend(fields);
    }
    let spec = serde_json::from_value(spec).map_err(|error| trial("PreviewSandbox", &error))?;
    Ok(PreviewSandbox::new(PROOF, spec))
}

/// Of a trust level that nobody gave whoever asks.
pub(super) fn trusted_preview() -> Result<PreviewSandbox> {
    preview(json!({"trustLevel": "PaymentVerified"}))
}

/// That wants to reach what no policy allows.
pub(super) fn reaching_preview() -> Result<PreviewSandbox> {
    preview(json!({"egress": [NOWHERE]}))
}

/// The ServiceAccount of the pod that is tried in the sentinel: no pod is looked at whose account is not there.
pub(super) fn pods_account() -> ServiceAccount {
    boundary::service_account(names::SENTINEL)
}

/// A preview's pod as the operator makes it, but of an image from elsewhere; `None` if the policy takes images from anywhere.
pub(super) fn pod_from_elsewhere(policy: &PreviewPolicySpec, probe: &pod::ProbeImage) -> Result<Option<Pod>> {
    if policy.images.repositories.is_empty() {
        return Ok(None);
    }
    // As large as a preview may be, under the cluster's own runtime: whatever else a policy says, this is within.
    let mut lax = policy.clone();
    lax.images = ImageRange::default();
    lax.runtimes = Runtimes::default();
    lax.trust_levels = TrustLevels::default();
    lax.ttl.default = lax.ttl.min;
    let listing = json!({
        "sku": PROOF, "seller": PROOF, "version": "1",
        "preview": {"image": format!("{NOWHERE}/{PROOF}@sha256:{}", "0".repeat(64)), "port": 8080, "size": policy.size.max},
    });
    let listing = serde_json::from_value(listing).map_err(|error| trial("SkuListing", &error))?;
    let envelope = envelope::resolve(&lax, &SkuListing::new(PROOF, listing), &preview(json!({}))?)
        .map_err(|refusal| trial("Pod", &refusal))?;
    let orders = probe::Orders {
        nonce: PROOF.to_owned(),
        canary: String::new(),
        targets: vec![],
        deadline_seconds: 1,
        refuse_image_volumes: true,
    };
    Ok(Some(pod::pod(
        names::SENTINEL,
        SENTINEL_EPOCH,
        &envelope,
        probe,
        &orders,
        None,
        &[],
    )))
}

fn trial(kind: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Installation(format!("no {kind} to try the admission policies with: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_to_try_is_one_that_only_its_image_speaks_against() {
        let policy = |repositories: &[&str]| -> PreviewPolicySpec {
            serde_json::from_value(json!({
                "ttl": {"min": "10m", "max": "30m", "default": "20m"},
                "size": {"max": {"cpu": "10m", "memory": "16Mi", "ephemeralStorage": "1Mi"}},
                "images": {"repositories": repositories}, "runtimes": {"default": "gvisor"},
                // Nobody who is not signed in gets a preview: legal, and no reason to be unready.
                "trustLevels": {"anonymous": {"maxTtl": "5m"}},
                "isolation": {"internet": ["203.0.113.10:80"]},
            }))
            .unwrap()
        };
        let probe = pod::ProbeImage {
            image: "mirror.example/vitrine@sha256:0".to_owned(),
            pull_policy: String::new(),
        };
        assert!(pod_from_elsewhere(&policy(&[]), &probe).unwrap().is_none());
        let pod = pod_from_elsewhere(&policy(&["mirror.example"]), &probe)
            .unwrap()
            .unwrap();
        let spec = pod.spec.unwrap();
        assert!(spec.containers[0].image.as_ref().unwrap().starts_with(NOWHERE));
        assert_eq!(spec.runtime_class_name, None);
        assert!(trusted_preview().is_ok() && reaching_preview().is_ok());
    }
}
