//! What holds for every policy, listing and preview, also for those that the API server would never store.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test panics when what it needs is missing"
)]

mod arbitrary;

use std::collections::BTreeMap;

use arbitrary::{Asked, asked, modest};
use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use proptest::prelude::*;
use vitrine_crds::{Amount, SkuListing, sku_listing::Size};
use vitrine_policies::{
    Envelope,
    cell::{boundary, pod, pod::ProbeImage},
    envelope, names, probe,
};

fn resolve(asked: &Asked) -> Option<Envelope> {
    envelope::resolve(&asked.policy, &asked.listing, &asked.preview).ok()
}

fn build(envelope: &Envelope) -> Pod {
    let image = ProbeImage {
        image: format!("mirror.example/vitrine@sha256:{}", "b".repeat(64)),
        pull_policy: "IfNotPresent".into(),
    };
    let orders = probe::Orders {
        nonce: "n".into(),
        canary: "10.96.7.7:20001".into(),
        targets: vec![],
        deadline_seconds: 30,
        refuse_image_volumes: true,
    };
    let proxy = (!envelope.egress.is_empty()).then_some("10.96.8.8:3128");
    pod::pod("vitrine-cell-0123", "0123", envelope, &image, &orders, proxy, &[])
}

/// Each amount of a size, or nothing if one is none.
fn amounts(size: &Size) -> Option<[Amount; 3]> {
    let parsed = [&size.cpu, &size.memory, &size.ephemeral_storage].map(|text| text.parse().ok());
    Some([parsed[0]?, parsed[1]?, parsed[2]?])
}

fn no_wider(envelope: &Envelope, size: &Size) -> bool {
    let most = amounts(size).unwrap();
    envelope.cpu <= most[0] && envelope.memory <= most[1] && envelope.ephemeral_storage <= most[2]
}

/// What Pod Security "restricted" asks for (Kubernetes "Pod Security Standards"), and what Vitrine's admission policy for the operator asks for
/// beyond it (charts/vitrine/templates/admission/operator.yaml).
fn is_hardened(pod: &Pod) -> Result<(), String> {
    let spec = pod.spec.as_ref().unwrap();
    let must = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    must(
        spec.host_network.is_none() && spec.host_pid.is_none() && spec.host_ipc.is_none(),
        "no host namespaces",
    )?;
    must(spec.automount_service_account_token == Some(false), "no token")?;
    must(
        spec.service_account_name.as_deref() == Some(names::SERVICE_ACCOUNT),
        "its own account",
    )?;
    must(spec.enable_service_links == Some(false), "no service links")?;
    must(
        spec.restart_policy.as_deref() == Some("Never"),
        "it ends for good",
    )?;
    must(
        spec.termination_grace_period_seconds == Some(1),
        "a grace of a second",
    )?;
    must(
        spec.active_deadline_seconds.is_some_and(|seconds| seconds > 0),
        "a deadline",
    )?;
    must(
        spec.priority_class_name.as_deref() == Some(names::PRIORITY_CLASS),
        "the lowest priority",
    )?;
    must(
        spec.node_name.is_none() && spec.tolerations.is_none(),
        "it chooses no node",
    )?;
    for volume in spec.volumes.iter().flatten() {
        let folder = volume.empty_dir.as_ref().ok_or("memory only")?;
        must(
            folder.medium.as_deref() == Some("Memory") && folder.size_limit.is_some(),
            "sized memory",
        )?;
    }
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let order: Vec<_> = init.iter().map(|container| container.name.as_str()).collect();
    must(
        order == [names::PROVE, names::WATCH] && spec.containers.len() == 1,
        "the probe first",
    )?;
    for container in init.iter().chain(&spec.containers) {
        let context = container.security_context.as_ref().ok_or("a security context")?;
        must(
            context.privileged != Some(true) && context.allow_privilege_escalation == Some(false),
            "no privileges",
        )?;
        must(
            context.run_as_non_root == Some(true) && context.run_as_user.is_some_and(|uid| uid > 0),
            "no root",
        )?;
        must(context.read_only_root_filesystem == Some(true), "read-only")?;
        let dropped = context
            .capabilities
            .as_ref()
            .is_some_and(|c| c.drop.as_deref() == Some(&["ALL".to_owned()]) && c.add.is_none());
        must(dropped, "no capabilities")?;
        must(
            context
                .seccomp_profile
                .as_ref()
                .is_some_and(|p| p.type_ == "RuntimeDefault"),
            "seccomp",
        )?;
        must(
            container
                .ports
                .iter()
                .flatten()
                .all(|port| port.host_port.is_none()),
            "no host ports",
        )?;
        must(
            container
                .image
                .as_ref()
                .is_some_and(|image| image.contains("@sha256:")),
            "by digest",
        )?;
        for name in ["cpu", "memory", "ephemeral-storage"] {
            must(
                quantity(container, |r| r.limits.as_ref(), name) > Amount::whole(0) || is_product(container),
                name,
            )?;
        }
    }
    Ok(())
}

fn is_product(container: &Container) -> bool {
    container.name == names::PRODUCT
}

type Side = fn(&k8s_openapi::api::core::v1::ResourceRequirements) -> Option<&BTreeMap<String, Quantity>>;

fn quantity(container: &Container, side: Side, name: &str) -> Amount {
    let found = container
        .resources
        .as_ref()
        .and_then(side)
        .and_then(|side| side.get(name));
    found.map_or(Amount::whole(0), |quantity| quantity.0.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn an_envelope_is_never_wider_than_any_of_what_it_comes_of(asked in prop_oneof![asked(), modest()]) {
        let Some(envelope) = resolve(&asked) else { return Ok(()) };
        let (policy, template, spec) = (&asked.policy, &asked.listing.spec.preview, &asked.preview.spec);
        let level = policy.trust_levels.of(spec.trust_level);
        prop_assert!(envelope.ttl >= policy.ttl.min && envelope.ttl <= envelope.ttl_cap);
        let caps = [Some(policy.ttl.max), level.max_ttl, template.max_ttl];
        prop_assert!(caps.into_iter().flatten().all(|cap| envelope.ttl_cap <= cap));
        prop_assert!(spec.ttl.is_none_or(|asked| envelope.ttl == asked));
        let sizes = [Some(&policy.size.max), Some(&template.size), spec.size.as_ref()];
        prop_assert!(sizes.into_iter().flatten().all(|size| no_wider(&envelope, size)));
        let names = [Some(&policy.egress.allowed_names), Some(&template.egress), spec.egress.as_ref()];
        prop_assert!(names.into_iter().flatten().all(|names| envelope.egress.iter().all(|name| names.contains(name))));
        let origins = [Some(&policy.embedding.allowed_origins), template.embed_origins.as_ref()];
        prop_assert!(origins.into_iter().flatten().all(|known| envelope.frame_ancestors.iter().all(|o| known.contains(o))));
        prop_assert!((1024..=65535).contains(&i32::from(envelope.port)) || i32::from(envelope.port) == template.port);
    }

    #[test]
    fn an_envelope_survives_being_frozen(asked in modest()) {
        let Some(envelope) = resolve(&asked) else { return Ok(()) };
        let thawed = Envelope::thaw(&envelope.resolved(), Some(&asked.listing), &asked.policy.isolation);
        prop_assert_eq!(thawed, Ok(envelope));
    }

    #[test]
    fn what_is_built_is_hardened_and_fits_its_own_quota(asked in modest()) {
        let Some(envelope) = resolve(&asked) else { return Ok(()) };
        let pod = build(&envelope);
        prop_assert_eq!(is_hardened(&pod), Ok(()));
        let quota = boundary::quota("vitrine-cell-0123", &envelope);
        let hard = quota.spec.unwrap().hard.unwrap();
        let spec = pod.spec.unwrap();
        for name in ["cpu", "memory", "ephemeral-storage"] {
            let sides: [(&str, Side); 2] = [("requests", |r| r.requests.as_ref()), ("limits", |r| r.limits.as_ref())];
            for (side, of) in sides {
                // One probe container at a time, and the product beside it (Kubernetes "Sidecar containers", resources).
                let product = quantity(&spec.containers[0], of, name);
                let probe = quantity(&spec.init_containers.as_ref().unwrap()[1], of, name);
                let most: Amount = hard[&format!("{side}.{name}")].0.parse().unwrap();
                prop_assert!(product.plus(probe) <= most, "{side}.{name}: {most}");
            }
        }
    }

    /// What somebody stored before the schema was what it is, or past it, must be refused with words, not with a panic.
    #[test]
    fn no_text_in_a_listing_makes_it_panic(asked in asked(), text in any::<String>(), number in any::<i64>()) {
        let mut value = serde_json::to_value(&asked.listing).unwrap();
        for pointer in ["/spec/preview/image", "/spec/preview/healthPath", "/spec/preview/landingPath", "/spec/seller"] {
            let mut changed = value.clone();
            if let Some(field) = changed.pointer_mut(pointer) {
                *field = text.clone().into();
            }
            if let Ok(listing) = serde_json::from_value::<SkuListing>(changed) {
                let asked = Asked { listing, ..asked.clone() };
                if let Some(envelope) = resolve(&asked) {
                    build(&envelope);
                }
            }
        }
        value["spec"]["preview"]["port"] = number.into();
        if let Ok(listing) = serde_json::from_value::<SkuListing>(value) {
            resolve(&Asked { listing, ..asked });
        }
    }
}

/// Properties that hold for nothing hold always.
#[test]
fn most_of_what_is_modest_comes_to_an_envelope() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let strategy = modest();
    let mut refused = vec![];
    for _ in 0..200 {
        let asked = strategy.new_tree(&mut runner).unwrap().current();
        refused.extend(envelope::resolve(&asked.policy, &asked.listing, &asked.preview).err());
    }
    assert!(
        refused.len() < 100,
        "{} of 200 refused: {refused:?}",
        refused.len()
    );
}
