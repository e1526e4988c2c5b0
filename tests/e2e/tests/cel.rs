//! What the real API server accepts and refuses of the custom resources: every CEL rule, the schemas, the columns.
//!
//! A rule is named by its message. Nearly all is tried with `dryRun=All`, which validates like the real thing and leaves
//! nothing; only what a change is tried on, and what kubectl prints, exists for a moment. No operator runs meanwhile.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::{
    collections::BTreeSet,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Method, Request};
use kube::{Client, core::Status};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use vitrine_devcluster::{Cluster, Level};
use vitrine_e2e::{clusters, crds};
use vitrine_kit::{objects, program};

/// Where the namespaced objects of this file live.
const NAMESPACE: &str = "e2e-cel";
/// The digest of an image that nobody pulls.
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// There is one policy a cluster: while it exists for kubectl, a dry run would find it and, a moment later, not.
static POLICY: Mutex<()> = Mutex::const_new(());

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sandbox,
    Listing,
    Policy,
    Pool,
}
use Kind::{Listing, Policy, Pool, Sandbox};

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Sandbox => "PreviewSandbox",
            Listing => "SkuListing",
            Policy => "PreviewPolicy",
            Pool => "PreviewPool",
        }
    }

    fn path(self) -> String {
        let group = "/apis/vitrine.dev/v1alpha1";
        match self {
            Sandbox => format!("{group}/namespaces/{NAMESPACE}/previewsandboxes"),
            Listing => format!("{group}/namespaces/{NAMESPACE}/skulistings"),
            Policy => format!("{group}/previewpolicies"),
            Pool => format!("{group}/namespaces/{NAMESPACE}/previewpools"),
        }
    }

    /// A small object without fault, under a name that no other test uses.
    fn sound(self) -> Value {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("p{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let size = json!({"cpu": "100m", "memory": "64Mi", "ephemeralStorage": "16Mi"});
        match self {
            Sandbox => serde_json::to_value(objects::preview(&name, "pocketbase", "ada", None)).unwrap(),
            Listing => json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "SkuListing", "metadata": {"name": name},
                "spec": {
                    "sku": "pocketbase", "seller": "acme", "version": "1.0.0",
                    "preview": {"image": format!("example.com/product@{DIGEST}"), "port": 8090, "size": size}
                }
            }),
            Policy => json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPolicy", "metadata": {"name": "default"},
                "spec": {
                    "ttl": {"min": "10m", "max": "30m", "default": "20m"},
                    "size": {"max": size},
                    "isolation": {"internet": ["203.0.113.10:80"]}
                }
            }),
            Pool => json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": name},
                "spec": {"listingRef": {"name": "pocketbase"}, "replicas": 3}
            }),
        }
    }
}

/// Something to ask of the API server, as merge patches.
struct Attempt {
    /// For a change: how the object that exists differs from the sound one. Without it, an object is made.
    before: Option<Value>,
    change: Value,
}

/// Make the sound object with this difference.
fn make(change: Value) -> Attempt {
    Attempt { before: None, change }
}

/// Make the sound object with the first difference, then make the second one to what exists.
fn edit(before: Value, change: Value) -> Attempt {
    Attempt {
        before: Some(before),
        change,
    }
}

/// A CEL rule, by its message, with what it must let pass and what it must stop.
struct Case {
    kind: Kind,
    rule: &'static str,
    accepted: Vec<Attempt>,
    rejected: Vec<Attempt>,
}

fn frozen_preview() -> Vec<Case> {
    let spec = |spec: Value| json!({"spec": spec});
    let case = |rule, before: Value, changes: &[Value]| Case {
        kind: Sandbox,
        rule,
        // Each field says that it may stay while something else changes.
        accepted: vec![edit(
            merged(spec(json!({"ttl": "10m"})), &spec(before.clone())),
            json!({"metadata": {"labels": {"touched": "yes"}}, "spec": {"ttl": "20m"}}),
        )],
        rejected: changes
            .iter()
            .map(|change| edit(spec(before.clone()), spec(change.clone())))
            .collect(),
    };
    let size = json!({"cpu": "50m", "memory": "32Mi", "ephemeralStorage": "8Mi"});
    vec![
        case(
            "listingRef is immutable: make a new preview",
            json!({"listingRef": {"name": "pocketbase", "uid": "1"}}),
            &[
                json!({"listingRef": {"name": "other"}}),
                json!({"listingRef": {"uid": "2"}}),
                json!({"listingRef": {"uid": null}}),
                json!({"listingRef": {"generation": 1}}),
            ],
        ),
        case(
            "subject is immutable: make a new preview",
            json!({"subject": "ada"}),
            &[json!({"subject": "bob"})],
        ),
        case(
            "trustLevel is immutable: make a new preview",
            json!({"trustLevel": "SignedIn"}),
            // Absent is not "as before": it is the default.
            &[
                json!({"trustLevel": "PaymentVerified"}),
                json!({"trustLevel": null}),
            ],
        ),
        case(
            "network is immutable: make a new preview",
            json!({"network": "198.51.100.0/24"}),
            &[json!({"network": "203.0.113.0/24"}), json!({"network": null})],
        )
        .also_rejecting(edit(json!({}), spec(json!({"network": "203.0.113.0/24"})))),
        case(
            "size is immutable: make a new preview",
            json!({"size": size}),
            &[json!({"size": {"cpu": "60m"}}), json!({"size": null})],
        )
        .also_rejecting(edit(json!({}), spec(json!({"size": size})))),
        case(
            "egress is immutable: make a new preview",
            json!({"egress": ["a.example"]}),
            &[
                json!({"egress": ["a.example", "b.example"]}),
                json!({"egress": []}),
                json!({"egress": null}),
            ],
        )
        .also_rejecting(edit(json!({}), spec(json!({"egress": ["a.example"]})))),
    ]
}

fn time_of_a_preview() -> Vec<Case> {
    let ttl = |ttl: &str| json!({"spec": {"ttl": ttl}});
    vec![
        Case {
            kind: Sandbox,
            rule: "ttl may only grow: end a preview early by deleting it",
            accepted: vec![
                edit(ttl("10m"), ttl("10m1s")),
                edit(ttl("90m"), ttl("1h30m")),
                edit(ttl("9m"), ttl("1h")),
                // One with the policy's default can be extended too.
                edit(json!({}), ttl("10m")),
            ],
            rejected: vec![
                edit(ttl("10m"), ttl("9m59s")),
                // As texts these would compare the other way round.
                edit(ttl("1h"), ttl("9m")),
                edit(ttl("10m"), json!({"spec": {"ttl": null}})),
            ],
        },
        Case {
            kind: Sandbox,
            rule: "ttl must be longer than 0s",
            accepted: vec![make(json!({})), make(ttl("1s"))],
            rejected: vec![make(ttl("0s")), make(ttl("0h0m0s"))],
        },
    ]
}

fn name_of_a_preview() -> Vec<Case> {
    let name = |length| make(json!({"metadata": {"name": "a".repeat(length)}}));
    vec![Case {
        kind: Sandbox,
        rule: "a preview's name has at most 63 characters",
        accepted: vec![name(1), name(63)],
        rejected: vec![name(64), name(253)],
    }]
}

fn policy() -> Vec<Case> {
    let ttl = |min: &str, default: &str, max: &str| {
        make(json!({"spec": {"ttl": {"min": min, "default": default, "max": max}}}))
    };
    let deadlines = |proof: &str, provisioning: &str| {
        make(json!({"spec": {"proofDeadline": proof, "provisioningDeadline": provisioning}}))
    };
    let queue = |deadline: &str| make(json!({"spec": {"queue": {"deadline": deadline}}}));
    let traffic = |field: &str, time: &str| make(json!({"spec": {"traffic": {field: time}}}));
    let abuse = |rules: Value| make(json!({"spec": {"abuse": rules}}));
    let miner = |period: &str| abuse(json!({"sustainedCpu": {"percent": 90, "period": period, "points": 1}}));
    let cells = |age: &str, kept: &str| make(json!({"spec": {"cells": {"maxAge": age, "keepFree": kept}}}));
    let quarantine = |time: &str| make(json!({"spec": {"isolation": {"nodeQuarantine": time}}}));
    let level = |name: &str, max: &str| make(json!({"spec": {"trustLevels": {name: {"maxTtl": max}}}}));
    let internet = |targets: &[&str]| make(json!({"spec": {"isolation": {"internet": targets}}}));
    let metadata = |targets: &[&str]| make(json!({"spec": {"isolation": {"metadata": targets}}}));
    vec![
        Case {
            kind: Policy,
            rule: "cells.maxAge must be longer than 0s and at most 720h, cells.keepFree at most 24h",
            accepted: vec![cells("1s", "0s"), cells("720h", "24h")],
            rejected: vec![cells("0s", "10m"), cells("721h", "10m"), cells("24h", "25h")],
        },
        Case {
            kind: Policy,
            rule: "there is one PreviewPolicy a cluster and its name is \"default\"",
            accepted: vec![make(json!({}))],
            rejected: vec![make(json!({"metadata": {"name": "other"}}))],
        },
        Case {
            kind: Policy,
            rule: "ttl must satisfy min <= default <= max",
            accepted: vec![ttl("10m", "20m", "30m"), ttl("10m", "600s", "10m")],
            rejected: vec![
                ttl("10m", "9m59s", "30m"),
                ttl("10m", "30m1s", "30m"),
                ttl("30m", "20m", "10m"),
            ],
        },
        Case {
            kind: Policy,
            rule: "ttl.max is at most 24h",
            accepted: vec![ttl("10m", "20m", "24h"), ttl("10m", "20m", "1440m")],
            rejected: vec![ttl("10m", "20m", "24h1s"), ttl("10m", "20m", "9999h")],
        },
        Case {
            kind: Policy,
            rule: "ttl.min must be longer than 0s",
            accepted: vec![ttl("1s", "20m", "30m")],
            rejected: vec![ttl("0s", "20m", "30m"), ttl("0m0s", "20m", "30m")],
        },
        Case {
            kind: Policy,
            rule: "proofDeadline must be longer than 0s and no longer than provisioningDeadline",
            accepted: vec![deadlines("2m", "2m"), deadlines("1s", "1m")],
            rejected: vec![deadlines("0s", "2m"), deadlines("2m1s", "2m")],
        },
        Case {
            kind: Policy,
            rule: "provisioningDeadline is at most 1h",
            accepted: vec![deadlines("30s", "1h")],
            rejected: vec![deadlines("30s", "1h1s"), deadlines("30s", "9999h")],
        },
        Case {
            kind: Policy,
            rule: "queue.deadline must be longer than 0s and at most 24h",
            accepted: vec![queue("1s"), queue("24h")],
            rejected: vec![queue("0s"), queue("24h1s")],
        },
        Case {
            kind: Policy,
            rule: "abuse.blockFor must be longer than 0s and at most 8760h",
            accepted: vec![abuse(json!({})), abuse(json!({"blockFor": "8760h"}))],
            rejected: vec![
                abuse(json!({"blockFor": "0s"})),
                abuse(json!({"blockFor": "8760h1s"})),
            ],
        },
        Case {
            kind: Policy,
            rule: "abuse.sustainedCpu.period must be 10s to 30m",
            accepted: ["10s", "30m"].map(miner).into(),
            rejected: ["9s", "30m1s"].map(miner).into(),
        },
        Case {
            kind: Policy,
            rule: "isolation.nodeQuarantine must be longer than 0s and at most 24h",
            accepted: ["1s", "24h"].map(quarantine).into(),
            rejected: ["0s", "24h1s"].map(quarantine).into(),
        },
        Case {
            kind: Policy,
            rule: "traffic.unopened and traffic.idle must be longer than 0s",
            accepted: ["unopened", "idle"].map(|field| traffic(field, "1s")).into(),
            rejected: ["unopened", "idle"].map(|field| traffic(field, "0s")).into(),
        },
        Case {
            kind: Policy,
            rule: "maxTtl of a trust level must be longer than 0s",
            accepted: ["anonymous", "signedIn", "paymentVerified"]
                .map(|name| level(name, "1s"))
                .into(),
            rejected: ["anonymous", "signedIn", "paymentVerified"]
                .map(|name| level(name, "0s"))
                .into(),
        },
        Case {
            kind: Policy,
            rule: "targets are written as IPv4 address and port, like 1.1.1.1:443",
            accepted: vec![
                internet(&["203.0.113.10:80", "1.1.1.1:443"]),
                metadata(&["169.254.169.254:80"]),
                metadata(&[]),
            ],
            rejected: vec![
                internet(&["example.com:443"]),
                internet(&["203.0.113.10:80", "203.0.113.10"]),
                internet(&["203.0.113.10:"]),
                internet(&["203.0.113.10:0"]),
                internet(&["203.0.113.10:65536"]),
                internet(&["999.999.999.999:80"]),
                internet(&["203.0.113.0/24:80"]),
                metadata(&["[fd00::1]:80"]),
                metadata(&[" 169.254.169.254:80"]),
            ],
        },
    ]
}

fn listing() -> Vec<Case> {
    let preview = |preview: Value| json!({"spec": {"preview": preview}});
    let port = |port: u32| make(preview(json!({"port": port})));
    let folders = |paths: &[&str]| {
        let folders: Vec<_> = paths
            .iter()
            .map(|path| json!({"path": path, "size": "1Mi"}))
            .collect();
        make(preview(json!({"writable": folders})))
    };
    let folder = |path: &str| make(preview(json!({"writable": [{"path": path, "size": "1Mi"}]})));
    vec![
        Case {
            kind: Listing,
            rule: "sku is immutable: make a new listing",
            accepted: vec![edit(json!({}), json!({"spec": {"version": "1.0.1"}}))],
            rejected: vec![edit(json!({}), json!({"spec": {"sku": "other"}}))],
        },
        Case {
            kind: Listing,
            rule: "seller is immutable: make a new listing",
            accepted: vec![edit(json!({}), preview(json!({"port": 8091})))],
            rejected: vec![edit(json!({}), json!({"spec": {"seller": "other"}}))],
        },
        Case {
            kind: Listing,
            rule: "ports 20000 to 20200 belong to the isolation probe",
            accepted: vec![port(1024), port(19_999), port(20_201), port(65_535)],
            rejected: vec![
                port(20_000),
                port(20_100),
                port(20_200),
                edit(json!({}), preview(json!({"port": 20_000}))),
            ],
        },
        Case {
            kind: Listing,
            rule: "path must be an ordinary folder, outside /proc, /sys, /dev, /etc, /run and /var/run",
            accepted: ["/data", "/var/lib/app_1.d", "/var/cache", "/process", "/devices"]
                .map(folder)
                .into(),
            rejected: [
                "/proc",
                "/proc/sys",
                "/sys/fs",
                "/dev",
                "/dev/shm",
                "/etc",
                "/run",
                "/run/secrets",
                "/var/run/secrets",
                "/var/run/secrets/kubernetes.io",
            ]
            .map(folder)
            .into(),
        },
        Case {
            kind: Listing,
            rule: "every writable folder has a path of its own",
            accepted: vec![folders(&["/data", "/cache"])],
            rejected: vec![
                folders(&["/data", "/data"]),
                folders(&["/data", "/cache", "/data"]),
            ],
        },
        Case {
            kind: Listing,
            rule: "maxTtl must be longer than 0s",
            accepted: vec![make(preview(json!({"maxTtl": "1s"})))],
            rejected: vec![make(preview(json!({"maxTtl": "0s"})))],
        },
    ]
}

fn pool() -> Vec<Case> {
    let spec = |spec: Value| json!({"spec": spec});
    let age = |age: &str| make(json!({"spec": {"maxAge": age}}));
    vec![
        Case {
            kind: Pool,
            rule: "listingRef is immutable: make a new pool",
            accepted: vec![edit(json!({}), spec(json!({"replicas": 5})))],
            rejected: vec![edit(json!({}), spec(json!({"listingRef": {"name": "other"}})))],
        },
        Case {
            kind: Pool,
            rule: "trustLevel is immutable: make a new pool",
            accepted: vec![edit(
                spec(json!({"trustLevel": "SignedIn"})),
                spec(json!({"paused": true})),
            )],
            rejected: vec![
                edit(json!({}), spec(json!({"trustLevel": "SignedIn"}))),
                edit(
                    spec(json!({"trustLevel": "SignedIn"})),
                    spec(json!({"trustLevel": null})),
                ),
            ],
        },
        Case {
            kind: Pool,
            rule: "maxAge must be 10s to 24h",
            accepted: vec![age("10s"), age("24h")],
            rejected: vec![age("9s"), age("0s"), age("24h1s")],
        },
        Case {
            kind: Pool,
            rule: "a pool's name has at most 63 characters",
            accepted: vec![make(json!({"metadata": {"name": "p".repeat(63)}}))],
            rejected: vec![make(json!({"metadata": {"name": "p".repeat(64)}}))],
        },
    ]
}

impl Case {
    fn also_rejecting(mut self, attempt: Attempt) -> Self {
        self.rejected.push(attempt);
        self
    }
}

#[test]
fn every_cel_rule_has_a_case_here_and_every_case_a_rule() {
    let mut rules = BTreeSet::new();
    for (_, crd) in vitrine_crds::generate::all() {
        let mut found = Vec::new();
        collect_rules(&serde_json::to_value(&crd).unwrap(), &mut found);
        for rule in found {
            let message = rule["message"]
                .as_str()
                .unwrap_or_else(|| panic!("a rule without message: {rule}"));
            let new = rules.insert((crd.spec.names.kind.clone(), message.to_owned()));
            assert!(new, "two rules of one kind have the message {message:?}");
        }
    }
    let mut cases = BTreeSet::new();
    for case in [
        frozen_preview(),
        time_of_a_preview(),
        name_of_a_preview(),
        policy(),
        listing(),
        pool(),
    ]
    .iter()
    .flatten()
    {
        assert!(
            !case.accepted.is_empty() && !case.rejected.is_empty(),
            "{}",
            case.rule
        );
        assert!(
            cases.insert((case.kind.name().to_owned(), case.rule.to_owned())),
            "{}",
            case.rule
        );
    }
    let untested: Vec<_> = rules.difference(&cases).collect();
    let stale: Vec<_> = cases.difference(&rules).collect();
    assert!(
        untested.is_empty() && stale.is_empty(),
        "rules of crds/src without a case in tests/e2e/tests/cel.rs: {untested:#?}\ncases without a rule: {stale:#?}"
    );
}

#[tokio::test]
async fn a_preview_cannot_become_another_one() {
    check(frozen_preview()).await;
}

#[tokio::test]
async fn the_time_of_a_preview_is_never_zero_and_only_grows() {
    check(time_of_a_preview()).await;
}

#[tokio::test]
async fn the_name_of_a_preview_fits_a_label() {
    check(name_of_a_preview()).await;
}

#[tokio::test]
async fn there_is_one_policy_with_times_in_order_and_targets_that_can_be_reached() {
    let _alone = POLICY.lock().await;
    check(policy()).await;
}

#[tokio::test]
async fn a_listing_keeps_its_name_and_off_what_belongs_to_others() {
    check(listing()).await;
}

#[tokio::test]
async fn a_pool_stays_one_of_its_listing_and_no_cell_of_it_waits_for_ever() {
    check(pool()).await;
}

#[tokio::test]
async fn a_pool_that_the_schema_does_not_allow_is_refused() {
    let spec = |spec: Value| json!({"spec": spec});
    refuse(
        Pool,
        vec![
            (spec(json!({"replicas": null})), "spec.replicas", "Required"),
            (
                spec(json!({"replicas": -1})),
                "spec.replicas",
                "greater than or equal to 0",
            ),
            (
                spec(json!({"replicas": 20001})),
                "spec.replicas",
                "less than or equal to 20000",
            ),
            (
                spec(json!({"refill": {"perSecond": 0}})),
                "spec.refill.perSecond",
                "greater than or equal to 1",
            ),
            (
                spec(json!({"refill": {"burst": 1001}})),
                "spec.refill.burst",
                "less than or equal to 1000",
            ),
            (spec(json!({"maxAge": "1d"})), "spec.maxAge", "should match"),
            (spec(json!({"listingRef": null})), "spec.listingRef", "Required"),
            (
                spec(json!({"trustLevel": "Admin"})),
                "spec.trustLevel",
                "supported values",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_listing_that_the_schema_does_not_allow_is_refused() {
    let preview = |preview: Value| json!({"spec": {"preview": preview}});
    refuse(
        Listing,
        vec![
            (
                preview(json!({"image": "example.com/product:1.0"})),
                "spec.preview.image",
                "should match",
            ),
            (
                preview(json!({"image": format!("example.com/product:1.0@{}", &DIGEST[..70])})),
                "spec.preview.image",
                "should match",
            ),
            (
                preview(json!({"image": format!("example.com/Product@{DIGEST}")})),
                "spec.preview.image",
                "should match",
            ),
            (preview(json!({"image": null})), "spec.preview.image", "Required"),
            (
                preview(json!({"port": 80})),
                "spec.preview.port",
                "greater than or equal to 1024",
            ),
            (
                preview(json!({"port": 65_536})),
                "spec.preview.port",
                "less than or equal to 65535",
            ),
            (
                preview(json!({"port": "8090"})),
                "spec.preview.port",
                "must be of type integer",
            ),
            (
                preview(json!({"maxTtl": "5x"})),
                "spec.preview.maxTtl",
                "should match",
            ),
            (
                preview(json!({"size": {"cpu": "half"}})),
                "spec.preview.size.cpu",
                "should match",
            ),
            (
                preview(json!({"size": {"memory": "64 Mi"}})),
                "spec.preview.size.memory",
                "should match",
            ),
            (
                preview(json!({"size": {"memory": "-1"}})),
                "spec.preview.size.memory",
                "should match",
            ),
            (
                preview(json!({"size": {"ephemeralStorage": null}})),
                "spec.preview.size.ephemeralStorage",
                "Required",
            ),
            (
                preview(json!({"env": [{"name": "A-B", "value": ""}]})),
                "spec.preview.env[0].name",
                "should match",
            ),
            (
                preview(json!({"env": [{"name": "A"}]})),
                "spec.preview.env[0].value",
                "Required",
            ),
            (
                preview(json!({"writable": [{"path": "data", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/data/../etc", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/..", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "//proc", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/./proc", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/var//run", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": [{"path": "/data/", "size": "1Mi"}]})),
                "spec.preview.writable[0].path",
                "should match",
            ),
            (
                preview(json!({"writable": vec![json!({"path": "/data", "size": "1Mi"}); 9]})),
                "spec.preview.writable",
                "at most 8",
            ),
            (
                preview(json!({"healthPath": "healthz"})),
                "spec.preview.healthPath",
                "should match",
            ),
            // A link that begins with two slashes leads to another host.
            (
                preview(json!({"landingPath": "//example.com"})),
                "spec.preview.landingPath",
                "should match",
            ),
            (
                json!({"spec": {"version": "1.0"}}),
                "spec.version",
                "should match",
            ),
            (
                json!({"spec": {"sku": "Pocket Base"}}),
                "spec.sku",
                "should match",
            ),
            (json!({"spec": {"seller": ""}}), "spec.seller", "should match"),
            (json!({"spec": {"preview": null}}), "spec.preview", "Required"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_preview_that_the_schema_does_not_allow_is_refused() {
    let spec = |spec: Value| json!({"spec": spec});
    refuse(
        Sandbox,
        vec![
            (spec(json!({"ttl": "5x"})), "spec.ttl", "should match"),
            (spec(json!({"ttl": "1.5h"})), "spec.ttl", "should match"),
            (spec(json!({"ttl": "-5m"})), "spec.ttl", "should match"),
            (spec(json!({"ttl": "5m1h"})), "spec.ttl", "should match"),
            (spec(json!({"ttl": ""})), "spec.ttl", "at least 2 chars"),
            (spec(json!({"ttl": 600})), "spec.ttl", "must be of type string"),
            (
                spec(json!({"trustLevel": "Admin"})),
                "spec.trustLevel",
                "supported values: \"Anonymous\", \"SignedIn\", \"PaymentVerified\"",
            ),
            (spec(json!({"subject": ""})), "spec.subject", "at least 1 chars"),
            (
                spec(json!({"subject": "a".repeat(254)})),
                "spec.subject",
                "may not be more than 253",
            ),
            (spec(json!({"subject": null})), "spec.subject", "Required"),
            (
                spec(json!({"listingRef": {"name": ""}})),
                "spec.listingRef.name",
                "at least 1 chars",
            ),
            (
                spec(json!({"listingRef": {"generation": 0}})),
                "spec.listingRef.generation",
                "greater than or equal to 1",
            ),
            (spec(json!({"listingRef": null})), "spec.listingRef", "Required"),
            (
                spec(json!({"size": {"cpu": "1"}})),
                "spec.size.memory",
                "Required",
            ),
            (
                spec(json!({"size": {"cpu": "1e3", "memory": "1Mi", "ephemeralStorage": "1Mi"}})),
                "spec.size.cpu",
                "should match",
            ),
            (
                spec(json!({"egress": vec!["a.example"; 33]})),
                "spec.egress",
                "at most 32",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_policy_that_the_schema_does_not_allow_is_refused() {
    let _alone = POLICY.lock().await;
    let spec = |spec: Value| json!({"spec": spec});
    refuse(
        Policy,
        vec![
            (
                spec(json!({"ttl": {"max": "1d"}})),
                "spec.ttl.max",
                "should match",
            ),
            (
                spec(json!({"images": {"repositories": ["{seller}"]}})),
                "spec.images.repositories[0]",
                "should match",
            ),
            (
                spec(json!({"images": {"repositories": ["mirror.example/x{seller}"]}})),
                "spec.images.repositories[0]",
                "should match",
            ),
            (
                spec(json!({"images": {"repositories": ["mirror.example/{seller}-public"]}})),
                "spec.images.repositories[0]",
                "should match",
            ),
            (
                spec(json!({"images": {"repositories": ["mirror.example/{buyer}"]}})),
                "spec.images.repositories[0]",
                "should match",
            ),
            (
                spec(json!({"images": {"repositories": ["mirror.example//x"]}})),
                "spec.images.repositories[0]",
                "should match",
            ),
            (spec(json!({"ttl": {"min": null}})), "spec.ttl.min", "Required"),
            (
                spec(json!({"proofDeadline": "30"})),
                "spec.proofDeadline",
                "should match",
            ),
            (
                spec(json!({"provisioningDeadline": "2 m"})),
                "spec.provisioningDeadline",
                "should match",
            ),
            (
                spec(json!({"retention": "forever"})),
                "spec.retention",
                "should match",
            ),
            (
                spec(json!({"limits": {"perSubject": 0}})),
                "spec.limits.perSubject",
                "greater than or equal to 1",
            ),
            (
                spec(json!({"limits": {"perSubject": 101}})),
                "spec.limits.perSubject",
                "less than or equal to 100",
            ),
            (
                spec(json!({"limits": {"cluster": 20001}})),
                "spec.limits.cluster",
                "less than or equal to 20000",
            ),
            (
                spec(json!({"trustLevels": {"anonymous": {"perSubject": 0}}})),
                "spec.trustLevels.anonymous.perSubject",
                "greater than or equal to 1",
            ),
            (
                spec(json!({"embedding": {"allowedOrigins": ["shop.example"]}})),
                "spec.embedding.allowedOrigins[0]",
                "should match",
            ),
            (
                spec(json!({"embedding": {"allowedOrigins": ["https://shop.example; script-src *"]}})),
                "spec.embedding.allowedOrigins[0]",
                "should match",
            ),
            (
                spec(json!({"blockedSubjects": [{"sha256": "mallory"}]})),
                "spec.blockedSubjects[0].sha256",
                "should match",
            ),
            (
                spec(json!({"maintenance": {"admission": "Closed"}})),
                "spec.maintenance.admission",
                "supported values",
            ),
            (
                spec(json!({"cells": {"mode": "Shared"}})),
                "spec.cells.mode",
                "supported values",
            ),
            (
                spec(json!({"cells": {"maxUses": 0}})),
                "spec.cells.maxUses",
                "greater than or equal to 1",
            ),
            (
                spec(json!({"pools": {"maxReplicas": 20001}})),
                "spec.pools.maxReplicas",
                "less than or equal to 20000",
            ),
            (
                spec(json!({"size": {"max": {"memory": "1GB"}}})),
                "spec.size.max.memory",
                "should match",
            ),
            (
                spec(json!({"isolation": {"internet": []}})),
                "spec.isolation.internet",
                "at least 1 items",
            ),
            (
                spec(json!({"isolation": {"internet": vec!["1.1.1.1:443"; 5]}})),
                "spec.isolation.internet",
                "at most 4",
            ),
            (
                spec(json!({"isolation": {"nodeTargets": "Ignored"}})),
                "spec.isolation.nodeTargets",
                "supported values: \"Required\", \"Reported\"",
            ),
            (spec(json!({"isolation": null})), "spec.isolation", "Required"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_field_that_does_not_exist_is_refused_where_it_stands() {
    let _alone = POLICY.lock().await;
    let client = client().await;
    for (kind, change, field) in [
        (
            Listing,
            json!({"spec": {"preview": {"privileged": true}}}),
            "spec.preview.privileged",
        ),
        (Sandbox, json!({"spec": {"tttl": "10m"}}), "spec.tttl"),
        (
            Policy,
            json!({"spec": {"ttl": {"maximum": "10m"}}}),
            "spec.ttl.maximum",
        ),
    ] {
        let refusal = try_out(&client, kind, &make(change)).await.unwrap_err();
        assert_eq!(refusal.code, 400, "{}", refusal.message);
        assert!(
            refusal.message.contains(&format!("unknown field \"{field}\"")),
            "{}",
            refusal.message
        );
    }
}

#[tokio::test]
async fn what_is_left_out_gets_the_documented_default() {
    let _alone = POLICY.lock().await;
    let client = client().await;
    let preview = try_out(&client, Sandbox, &make(json!({}))).await.unwrap();
    assert_eq!(preview["spec"]["trustLevel"], "Anonymous");
    assert_eq!(
        preview["spec"]["ttl"],
        Value::Null,
        "the policy's default is not the schema's business"
    );
    let policy = try_out(&client, Policy, &make(json!({}))).await.unwrap();
    let spec = &policy["spec"];
    assert_eq!(spec["provisioningDeadline"], "2m");
    assert_eq!(spec["proofDeadline"], "30s");
    assert_eq!(spec["retention"], "24h");
    assert_eq!(
        spec["limits"],
        json!({"perSubject": 1, "perNetwork": 10, "perListing": 50, "perSeller": 100, "cluster": 200})
    );
    assert_eq!(spec["queue"], json!({"deadline": "10m"}));
    assert_eq!(
        spec["maintenance"],
        json!({"admission": "Open", "expiry": "Running"})
    );
    assert_eq!(
        spec["cells"],
        json!({"mode": "Reuse", "maxAge": "24h", "maxUses": 100, "keepFree": "10m"})
    );
    assert_eq!(spec["pools"], json!({"maxReplicas": 20}));
    assert_eq!(spec["trustLevels"]["anonymous"], json!({"priority": 0}));
    assert_eq!(spec["egress"], json!({"allowedNames": []}));
    assert_eq!(spec["isolation"]["metadata"], json!(["169.254.169.254:80"]));
    assert_eq!(spec["isolation"]["nodeTargets"], "Required");
    assert_eq!(spec["isolation"]["metadataTarget"], "Required");
    let pool = try_out(&client, Pool, &make(json!({}))).await.unwrap();
    let spec = &pool["spec"];
    assert_eq!(spec["refill"], json!({"perSecond": 10, "burst": 20}));
    assert_eq!(
        (&spec["maxAge"], &spec["paused"], &spec["trustLevel"]),
        (&json!("30m"), &json!(false), &json!("Anonymous"))
    );
}

#[tokio::test]
async fn a_pool_is_scaled_with_kubectl_and_read_by_autoscalers() {
    let cluster = clusters::shared(Level::ControlPlane);
    let client = client().await;
    let pool = create(&client, Pool, &Pool.sound()).await.unwrap();
    let name = format!("previewpool/{}", name_of(&pool));
    // With a precondition kubectl reads the scale and puts it back, without one it patches it.
    let put = kubectl(
        &cluster,
        &["scale", &name, "--current-replicas=3", "--replicas=6"],
    );
    let scaled = kubectl(&cluster, &["scale", &name, "--replicas=7"]);
    let wanted = kubectl(&cluster, &["get", &name, "-o", "jsonpath={.spec.replicas}"]);
    let status = json!({"status": {
        "replicas": 5, "ready": 4, "warming": 1, "claimed": 2, "selector": "vitrine.dev/pool=x", "reason": "Refilling",
        "message": "4 of 7 are ready"
    }});
    let path = format!("{}/status", path_of(Pool, &pool));
    let patched = request(&client, Method::PATCH, &path, &status).await;
    let scale = kubectl(
        &cluster,
        &["get", &name, "--subresource=scale", "-o", "jsonpath={.status}"],
    );
    let shown = kubectl(&cluster, &["get", "ppool", name_of(&pool)]);
    delete(&client, Pool, &pool).await;
    patched.unwrap();
    assert!(
        put.contains("scaled") && scaled.contains("scaled"),
        "{put} {scaled}"
    );
    assert_eq!(wanted, "7");
    let scale: Value = serde_json::from_str(&scale).unwrap();
    assert_eq!(scale, json!({"replicas": 5, "selector": "vitrine.dev/pool=x"}));
    assert_eq!(
        header(&shown),
        [
            "NAME", "LISTING", "WANTED", "READY", "WARMING", "CLAIMED", "SHORT", "AGE"
        ]
    );
    assert!(shown.contains("Refilling"), "{shown}");
}

#[tokio::test]
async fn kubectl_shows_the_columns_and_never_the_link() {
    let _alone = POLICY.lock().await;
    let cluster = clusters::shared(Level::ControlPlane);
    let client = client().await;
    let preview = create(&client, Sandbox, &Sandbox.sound()).await.unwrap();
    let listing = create(&client, Listing, &Listing.sound()).await.unwrap();
    let policy = create(&client, Policy, &Policy.sound()).await;
    let status = json!({"status": {
        "phase": "Ready", "reason": "Answering", "message": "It can be looked at.", "cell": "vitrine-cell-x",
        "expiresAt": "2030-01-01T00:00:00Z", "url": "http://secret.previews.localhost"
    }});
    let path = format!("{}/status", path_of(Sandbox, &preview));
    let patched = request(&client, Method::PATCH, &path, &status).await;

    let shown = |arguments: &[&str]| kubectl(&cluster, arguments);
    let previews = shown(&["get", "previewsandbox", name_of(&preview)]);
    let wide = shown(&["get", "previewsandbox", name_of(&preview), "-o", "wide"]);
    let listings = shown(&["get", "skulisting", name_of(&listing)]);
    let wide_listings = shown(&["get", "skulisting", name_of(&listing), "-o", "wide"]);
    let policies = shown(&["get", "previewpolicy"]);
    delete(&client, Sandbox, &preview).await;
    delete(&client, Listing, &listing).await;
    if let Ok(policy) = &policy {
        delete(&client, Policy, policy).await;
    }

    patched.unwrap();
    assert_eq!(
        header(&previews),
        ["NAME", "PHASE", "REASON", "LISTING", "CELL", "UNTIL", "AGE"]
    );
    for cell in [
        "Ready",
        "Answering",
        "pocketbase",
        "vitrine-cell-x",
        "2030-01-01T00:00:00Z",
    ] {
        assert!(previews.contains(cell), "{cell}:\n{previews}");
    }
    assert_eq!(
        header(&wide),
        [
            "NAME", "PHASE", "REASON", "LISTING", "CELL", "UNTIL", "QUEUE", "NODE", "MESSAGE", "AGE"
        ]
    );
    assert!(wide.contains("It can be looked at."), "{wide}");
    assert!(!wide.contains("secret"), "the link is a bearer secret:\n{wide}");
    assert_eq!(
        header(&listings),
        ["NAME", "SKU", "VERSION", "SELLER", "PUBLISHED", "WHY", "AGE"]
    );
    assert_eq!(
        header(&wide_listings),
        [
            "NAME",
            "SKU",
            "VERSION",
            "SELLER",
            "IMAGE",
            "PUBLISHED",
            "WHY",
            "MESSAGE",
            "AGE"
        ]
    );
    assert_eq!(
        header(&policies),
        [
            "NAME",
            "TTL",
            "MAX TTL",
            "PER SUBJECT",
            "CLUSTER",
            "ADMISSION",
            "AGE"
        ]
    );
}

#[tokio::test]
async fn kubectl_knows_the_short_names_the_category_and_the_subject() {
    let cluster = clusters::shared(Level::ControlPlane);
    let client = client().await;
    let preview = create(&client, Sandbox, &Sandbox.sound()).await.unwrap();
    let listing = create(&client, Listing, &Listing.sound()).await.unwrap();
    let shown = |what: &str| kubectl(&cluster, &["get", what, "-o", "name"]);
    let by_short_name = ["preview", "previews", "pvw"].map(shown);
    let listings = shown("sku");
    let category = shown("vitrine");
    let ada = kubectl(
        &cluster,
        &["get", "pvw", "-o", "name", "--field-selector", "spec.subject=ada"],
    );
    let bob = kubectl(
        &cluster,
        &["get", "pvw", "-o", "name", "--field-selector", "spec.subject=bob"],
    );
    delete(&client, Sandbox, &preview).await;
    delete(&client, Listing, &listing).await;

    let preview = format!("previewsandbox.vitrine.dev/{}", name_of(&preview));
    let listing = format!("skulisting.vitrine.dev/{}", name_of(&listing));
    for text in by_short_name.iter().chain([&category, &ada]) {
        assert!(text.contains(&preview), "{preview}:\n{text}");
    }
    for text in [&listings, &category] {
        assert!(text.contains(&listing), "{listing}:\n{text}");
    }
    assert!(!bob.contains(&preview), "{bob}");
}

/// Tries every attempt of every case; what goes wrong is reported together.
async fn check(cases: Vec<Case>) {
    let client = client().await;
    let mut wrong = Vec::new();
    for case in &cases {
        for attempt in &case.accepted {
            if let Err(refusal) = try_out(&client, case.kind, attempt).await {
                wrong.push(format!(
                    "{:?} refuses {}: {}",
                    case.rule,
                    shown(attempt),
                    refusal.message
                ));
            }
        }
        for attempt in &case.rejected {
            match try_out(&client, case.kind, attempt).await {
                Ok(_) => wrong.push(format!("{:?} lets {} pass", case.rule, shown(attempt))),
                // By this rule alone: another reason would hide that this one does not work.
                Err(refusal) => match causes(&refusal).as_slice() {
                    [(_, message)] if refusal.code == 422 && message.ends_with(case.rule) => {}
                    _ => wrong.push(format!(
                        "{} is refused, but not by {:?} alone: {}",
                        shown(attempt),
                        case.rule,
                        refusal.message
                    )),
                },
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Tries to make objects that the schema refuses, each for one field and one reason.
async fn refuse(kind: Kind, refusals: Vec<(Value, &str, &str)>) {
    let client = client().await;
    let sound = try_out(&client, kind, &make(json!({}))).await;
    sound.expect("the object that all others differ from must be accepted");
    let mut wrong = Vec::new();
    for (change, field, reason) in refusals {
        match try_out(&client, kind, &make(change.clone())).await {
            Ok(_) => wrong.push(format!("{change} passes")),
            Err(refusal) => {
                let named = causes(&refusal)
                    .iter()
                    .any(|(at, message)| at == field && message.contains(reason));
                if refusal.code != 422 || !named {
                    wrong.push(format!(
                        "{change}: expected {reason:?} at {field}: {}",
                        refusal.message
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn client() -> Client {
    let cluster = clusters::shared(Level::ControlPlane);
    let client = crds::installed(&cluster).await;
    objects::shop(&client, NAMESPACE).await.unwrap();
    client
}

async fn try_out(client: &Client, kind: Kind, attempt: &Attempt) -> Result<Value, Status> {
    let Some(before) = &attempt.before else {
        return make_dry(client, kind, &merged(kind.sound(), &attempt.change)).await;
    };
    let existing = create(client, kind, &merged(kind.sound(), before)).await.unwrap();
    let path = format!("{}?dryRun=All&fieldValidation=Strict", path_of(kind, &existing));
    let changed = merged(existing.clone(), &attempt.change);
    let outcome = request(client, Method::PUT, &path, &changed).await;
    delete(client, kind, &existing).await;
    outcome
}

async fn make_dry(client: &Client, kind: Kind, object: &Value) -> Result<Value, Status> {
    let query = "dryRun=All&fieldValidation=Strict";
    let outcome = request(client, Method::POST, &format!("{}?{query}", kind.path()), object).await;
    // The one policy may be there already, from an installation before these tests; then it is replaced, dry.
    match outcome {
        Err(refusal) if refusal.is_already_exists() => {
            let path = path_of(kind, object);
            let existing = request(client, Method::GET, &path, &Value::Null).await?;
            let version = json!({"metadata": {"resourceVersion": existing["metadata"]["resourceVersion"]}});
            let object = merged(object.clone(), &version);
            request(client, Method::PUT, &format!("{path}?{query}"), &object).await
        }
        other => other,
    }
}

async fn create(client: &Client, kind: Kind, object: &Value) -> Result<Value, Status> {
    request(
        client,
        Method::POST,
        &format!("{}?fieldValidation=Strict", kind.path()),
        object,
    )
    .await
}

async fn delete(client: &Client, kind: Kind, object: &Value) {
    let path = path_of(kind, object);
    request(client, Method::DELETE, &path, &json!({})).await.unwrap();
}

/// Not through `kube::Api`, which cannot ask for strict field validation when it creates or replaces.
async fn request(client: &Client, method: Method, path: &str, body: &Value) -> Result<Value, Status> {
    let content = if method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = if body.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(body).unwrap()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Content-Type", content);
    match client.request(request.body(body).unwrap()).await {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(*status),
        Err(error) => panic!("{path}: {error}"),
    }
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    // A cache of our own: the user's may be of another cluster that had the same address.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kubectl-{}", cluster.name()));
    let mut all = vec![
        "--kubeconfig".to_owned(),
        cluster.kubeconfig().display().to_string(),
    ];
    all.extend(["--cache-dir".to_owned(), cache.display().to_string()]);
    all.extend(["--namespace", NAMESPACE].map(str::to_owned));
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    program::run(&cluster.binary("kubernetes", "kubectl").unwrap(), &all).unwrap()
}

/// The titles of a table of kubectl: apart by at least two spaces, since a title may contain one.
fn header(table: &str) -> Vec<&str> {
    let line = table.lines().next().unwrap_or_default();
    line.split("  ")
        .map(str::trim)
        .filter(|title| !title.is_empty())
        .collect()
}

fn causes(refusal: &Status) -> Vec<(String, String)> {
    let details = refusal.details.as_ref();
    let causes = details
        .map(|details| details.causes.as_slice())
        .unwrap_or_default();
    causes
        .iter()
        .map(|cause| (cause.field.clone(), cause.message.clone()))
        .collect()
}

/// Every validation rule below a value. A field of a custom resource is never called like this.
fn collect_rules(value: &Value, into: &mut Vec<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("x-kubernetes-validations", Value::Array(rules)) => into.extend(rules.clone()),
                    _ => collect_rules(value, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_rules(item, into)),
        _ => {}
    }
}

/// A JSON merge patch (RFC 7386).
fn merged(mut target: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    if !target.is_object() {
        target = json!({});
    }
    for (name, change) in changes {
        if change.is_null() {
            target.as_object_mut().unwrap().remove(name);
        } else {
            let old = target[name].take();
            target[name] = merged(old, change);
        }
    }
    target
}

fn path_of(kind: Kind, object: &Value) -> String {
    format!("{}/{}", kind.path(), name_of(object))
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

fn shown(attempt: &Attempt) -> String {
    match &attempt.before {
        None => attempt.change.to_string(),
        Some(before) => format!("{before} → {}", attempt.change),
    }
}
