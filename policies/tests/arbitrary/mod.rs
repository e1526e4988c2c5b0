//! Policies, listings and previews of every shape: such as the API server would store, and such as it would not.

use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::{Value, json};
use vitrine_crds::{PreviewPolicySpec, PreviewSandbox, SkuListing};

/// What an envelope is made of.
#[derive(Clone, Debug)]
pub struct Asked {
    pub policy: PreviewPolicySpec,
    pub listing: SkuListing,
    pub preview: PreviewSandbox,
}

const HOSTS: [&str; 5] = [
    "a.example",
    "b.example",
    "c.example",
    "a.b.example",
    "x--y.example",
];
const ORIGINS: [&str; 3] = [
    "https://shop.example",
    "https://other.example:8443",
    "http://localhost:3000",
];

/// Mostly a quantity, sometimes anything.
fn quantity() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (1_u32..4000, select(vec!["m", "", "Ki", "Mi", "Gi", "k", "M"])).prop_map(|(n, unit)| format!("{n}{unit}")),
        4 => (1_u32..64).prop_map(|n| format!("{n}Mi")),
        1 => (0_u32..99, 0_u32..9999).prop_map(|(whole, part)| format!("{whole}.{part}")),
        1 => any::<String>(),
    ]
}

fn size() -> impl Strategy<Value = Value> {
    (quantity(), quantity(), quantity())
        .prop_map(|(cpu, memory, storage)| json!({"cpu": cpu, "memory": memory, "ephemeralStorage": storage}))
}

fn span() -> impl Strategy<Value = String> {
    prop_oneof![
        (1_u32..7200).prop_map(|seconds| format!("{seconds}s")),
        (0_u32..120).prop_map(|minutes| format!("{minutes}m")),
        (0_u32..9999).prop_map(|hours| format!("{hours}h")),
    ]
}

fn hosts() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(HOSTS.to_vec()), 0..4)
}

fn origins() -> impl Strategy<Value = Vec<&'static str>> {
    vec(select(ORIGINS.to_vec()), 0..3)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, field)| !field.is_null())
            .map(|(name, field)| (name, without_nulls(field)))
            .collect(),
        other => other,
    }
}

pub fn policy() -> BoxedStrategy<PreviewPolicySpec> {
    let level = || option::of(span()).prop_map(|max| json!({"maxTtl": max}));
    (
        (span(), span(), span()),
        (span(), span()),
        size(),
        (hosts(), origins()),
        (level(), level(), level()),
    )
        .prop_map(
            |((min, max, default), (provisioning, proof), size, (hosts, origins), levels)| {
                let policy = json!({
                    "ttl": {"min": min, "max": max, "default": default},
                    "provisioningDeadline": provisioning, "proofDeadline": proof,
                    "size": {"max": size},
                    "egress": {"allowedNames": hosts},
                    "embedding": {"allowedOrigins": origins},
                    "trustLevels": {"anonymous": levels.0, "signedIn": levels.1, "paymentVerified": levels.2},
                    "isolation": {"internet": ["203.0.113.10:80"]}
                });
                serde_json::from_value(without_nulls(policy)).unwrap()
            },
        )
        .boxed()
}

pub fn listing() -> BoxedStrategy<SkuListing> {
    let path = "(/[A-Za-z0-9_][A-Za-z0-9._-]{0,6}){1,3}";
    let folder = (path, quantity()).prop_map(|(path, size)| json!({"path": path, "size": size}));
    let variable = ("[A-Za-z_][A-Za-z0-9_]{0,8}", any::<String>())
        .prop_map(|(name, value)| json!({"name": name, "value": value}));
    (
        (any::<i32>(), 1024_i32..=65535, any::<bool>()),
        (vec(any::<String>(), 0..3), vec(any::<String>(), 0..3)),
        (vec(variable, 0..4), vec(folder, 0..4)),
        (size(), hosts(), option::of(origins())),
        (option::of(span()), option::of("/[a-z]{0,8}"), option::of("/[a-z]{0,8}")),
    )
        .prop_map(|((any, port, usual), (command, args), (env, writable), (size, egress, embed), rest)| {
            let (max_ttl, health, landing) = rest;
            let preview = json!({
                "image": format!("mirror.example/product@sha256:{}", "a".repeat(64)),
                "port": if usual { port } else { any },
                "command": command, "args": args, "env": env, "writable": writable, "size": size, "egress": egress,
                "embedOrigins": embed, "maxTtl": max_ttl, "healthPath": health, "landingPath": landing
            });
            let spec = json!({"sku": "product", "seller": "acme", "version": "1.0.0", "preview": without_nulls(preview)});
            let mut listing = SkuListing::new("product", serde_json::from_value(spec).unwrap());
            listing.metadata.uid = Some("7d6f1c6e-0000-4000-8000-000000000001".into());
            listing.metadata.generation = Some(1);
            listing
        }).boxed()
}

pub fn preview() -> BoxedStrategy<PreviewSandbox> {
    (
        any::<String>(),
        select(vec!["Anonymous", "SignedIn", "PaymentVerified"]),
        option::of(span()),
        option::of(size()),
        option::of(hosts()),
    )
        .prop_map(|(subject, level, ttl, size, egress)| {
            let spec = json!({
                "listingRef": {"name": "product"}, "subject": subject, "trustLevel": level, "ttl": ttl, "size": size, "egress": egress
            });
            let mut preview = PreviewSandbox::new("try", serde_json::from_value(without_nulls(spec)).unwrap());
            preview.metadata.namespace = Some("shop".into());
            preview.metadata.uid = Some("7d6f1c6e-0000-4000-8000-000000000002".into());
            preview
        }).boxed()
}

pub fn asked() -> BoxedStrategy<Asked> {
    (policy(), listing(), preview())
        .prop_map(|(policy, listing, preview)| Asked {
            policy,
            listing,
            preview,
        })
        .boxed()
}

/// Such as an envelope comes of more often than not.
pub fn modest() -> BoxedStrategy<Asked> {
    let size = (1_u32..4000, 64_u32..2048, 1_u32..512);
    let rest = (1024_i32..=65535, option::of(1_u32..7200), vec(1_u32..16, 3));
    (asked(), size, rest).prop_map(|(mut asked, (cpu, memory, storage), (port, ttl, folders))| {
        let most = json!({"cpu": "4000", "memory": "64Gi", "ephemeralStorage": "64Gi"});
        let size = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi"), "ephemeralStorage": format!("{storage}Mi")});
        asked.policy.size.max = serde_json::from_value(most).unwrap();
        asked.policy.egress.allowed_names = HOSTS.map(str::to_owned).to_vec();
        asked.policy.ttl = serde_json::from_value(json!({"min": "1s", "max": "24h", "default": "20m"})).unwrap();
        asked.policy.trust_levels = Default::default();
        let template = &mut asked.listing.spec.preview;
        template.max_ttl = None;
        template.port = port;
        template.size = serde_json::from_value(size).unwrap();
        for (folder, mebibytes) in template.writable.iter_mut().zip(folders) {
            folder.size = format!("{mebibytes}Mi");
        }
        asked.preview.spec.ttl = ttl.map(|seconds| serde_json::from_value(json!(format!("{seconds}s"))).unwrap());
        asked.preview.spec.size = None;
        asked.preview.spec.egress = None;
        asked
    }).boxed()
}
