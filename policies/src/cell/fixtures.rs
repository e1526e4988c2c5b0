//! One policy, one listing and one preview for the tests of this crate.

use kube::api::ObjectMeta;
use vitrine_crds::{PreviewPolicySpec, PreviewSandbox, SkuListing};

use super::{Tenant, network::House, pod::ProbeImage};
use crate::{Envelope, envelope, probe};

pub(crate) fn policy() -> PreviewPolicySpec {
    serde_json::from_value(serde_json::json!({
        "ttl": {"min": "10m", "max": "30m", "default": "20m"},
        "size": {"max": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}},
        "isolation": {"internet": ["203.0.113.10:80"]}
    }))
    .unwrap()
}

pub(crate) fn listing() -> SkuListing {
    let mut listing = SkuListing::new(
        "notebook",
        serde_json::from_value(serde_json::json!({
            "sku": "notebook", "seller": "acme", "version": "1.2.3",
            "preview": {
                "image": format!("mirror.example/notebook@sha256:{}", "a".repeat(64)),
                "port": 8090,
                "args": ["serve", "--http=0.0.0.0:8090"],
                "env": [{"name": "MODE", "value": "demo $(HOME)"}],
                "writable": [{"path": "/data", "size": "32Mi"}],
                "size": {"cpu": "100m", "memory": "128Mi", "ephemeralStorage": "16Mi"},
                "healthPath": "/api/health"
            }
        }))
        .unwrap(),
    );
    listing.metadata.uid = Some("7d6f1c6e-0000-4000-8000-000000000001".into());
    listing.metadata.generation = Some(3);
    listing
}

pub(crate) fn preview() -> PreviewSandbox {
    let mut preview = PreviewSandbox::new(
        "try-1",
        serde_json::from_value(serde_json::json!({"listingRef": {"name": "notebook"}, "subject": "alice"}))
            .unwrap(),
    );
    preview.metadata = ObjectMeta {
        name: Some("try-1".into()),
        namespace: Some("shop".into()),
        uid: Some("7d6f1c6e-0000-4000-8000-000000000002".into()),
        ..ObjectMeta::default()
    };
    preview
}

pub(crate) fn tenant() -> Tenant {
    Tenant::of(&preview()).unwrap()
}

pub(crate) const CELL: &str = "vitrine-cell-0123456789abcdef";

pub(crate) const EPOCH: &str = "3f8a2c51d06e4b7f9a1c0d2e4f6b8a90";

pub(crate) fn envelope() -> Envelope {
    envelope::resolve(&policy(), &listing(), &preview()).unwrap()
}

pub(crate) fn house() -> House {
    House {
        namespace: "vitrine-system".into(),
    }
}

pub(crate) fn image() -> ProbeImage {
    ProbeImage {
        image: format!("mirror.example/vitrine@sha256:{}", "b".repeat(64)),
        pull_policy: "IfNotPresent".into(),
    }
}

pub(crate) fn orders() -> probe::Orders {
    probe::Orders {
        nonce: "00112233445566778899aabbccddeeff".into(),
        canary: "10.96.7.7:20001".into(),
        targets: vec![probe::Target {
            name: "kubelet".into(),
            address: format!("{}:10250", probe::NODE_PLACEHOLDER),
            required: true,
        }],
        deadline_seconds: 30,
        refuse_image_volumes: true,
    }
}
