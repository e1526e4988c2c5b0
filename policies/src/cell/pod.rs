//! The pod of a preview: the probe first, its sidecar for life, and the seller's container, hardened. Pure.
//!
//! Order of starting is the kubelet's own (Kubernetes "Sidecar containers"): `prove` must exit 0, then `watch` must have
//! started and its post-start hook must have ended (under a RuntimeClass: its startup probe have passed), only then the product
//! is started.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
        ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, NodeAffinity, NodeSelector,
        NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector, Pod, PodDNSConfig,
        PodSecurityContext, PodSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext, Sysctl,
        TCPSocketAction, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use vitrine_crds::{Amount, TimeSpan};

use super::metadata;
use crate::{Envelope, names, probe};

/// The uid and gid of every seller's container: ours, whatever the image says.
pub const PRODUCT_UID: i64 = 64_535;
/// The uid of probe and sidecar. Another one than the seller's, so that the seller cannot share its bound ports.
pub const PROBE_UID: i64 = 64_534;

/// Seconds between SIGTERM and SIGKILL. Never 0: a pod deleted with grace 0 is gone from the API while its containers
/// still run (attacks, 4).
pub const GRACE_SECONDS: i64 = 1;

/// A range of groups with none in it (icmp(7), `ping_group_range`).
const NO_GROUP: &str = "1 0";

/// The volume in which the sidecar leaves that it has begun, so that one started anew knows.
const WATCH_LIFE_VOLUME: &str = "watch-life";
/// It holds one empty file: a page.
const WATCH_LIFE_SIZE: &str = "4Ki";

/// How the probe gets into the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeImage {
    /// Vitrine's own image, by digest.
    pub image: String,
    /// Its pull policy.
    pub pull_policy: String,
}

/// What Vitrine itself needs in every cell, on top of the listing's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overhead {
    /// Cores that are set aside.
    pub cpu_request: Amount,
    /// Cores at most: a probe that is throttled would take a neighbour's slowness for silence.
    pub cpu_limit: Amount,
    /// Bytes of memory.
    pub memory: Amount,
    /// Bytes of scratch space.
    pub ephemeral_storage: Amount,
}

/// The fixed overhead: one probe container at a time (`prove` ends before `watch` starts).
pub const fn overhead() -> Overhead {
    Overhead {
        cpu_request: Amount::milli(20),
        cpu_limit: Amount::milli(250),
        memory: Amount::whole(48 << 20),
        ephemeral_storage: Amount::whole(8 << 20),
    }
}

/// The pod, for a cell of one epoch. The proxy is `ip:port` of the way out, for a preview that has one; it goes to none of the
/// nodes to avoid.
pub fn pod(
    cell: &str,
    epoch: &str,
    envelope: &Envelope,
    image: &ProbeImage,
    orders: &probe::Orders,
    proxy: Option<&str>,
    avoid: &[String],
) -> Pod {
    let mut metadata = metadata(cell, names::POD);
    metadata.finalizers = Some(vec![names::POD_FINALIZER.to_owned()]);
    metadata.annotations.get_or_insert_default().extend([
        (names::TEMPLATE_ANNOTATION.to_owned(), template(envelope, image)),
        (names::NONCE_ANNOTATION.to_owned(), orders.nonce.clone()),
        (names::EPOCH_ANNOTATION.to_owned(), epoch.to_owned()),
    ]);
    Pod {
        metadata,
        spec: Some(spec(envelope, image, orders, proxy, avoid)),
        status: None,
    }
}

/// What a pod is made from, as far as one preview differs from another: two pods of one template serve the same.
///
/// How long they may live is left out, and what is looked up when a pod is made: addresses of the cluster, and nodes to avoid.
pub fn template(envelope: &Envelope, image: &ProbeImage) -> String {
    let zero = TimeSpan::from_secs(0);
    let anyones = Envelope {
        ttl: zero,
        ttl_cap: zero,
        provisioning_deadline: zero,
        ..envelope.clone()
    };
    let orders = probe::Orders {
        nonce: String::new(),
        canary: String::new(),
        targets: vec![],
        deadline_seconds: envelope.proof_deadline.as_secs(),
        refuse_image_volumes: true,
    };
    let proxy = (!envelope.egress.is_empty()).then_some("");
    let made = serde_json::json!([
        spec(&anyones, image, &orders, proxy, &[]),
        envelope.isolation,
        envelope.egress,
    ]);
    names::digest(&["template", &envelope.listing, &made.to_string()])[..32].to_owned()
}

fn spec(
    envelope: &Envelope,
    image: &ProbeImage,
    orders: &probe::Orders,
    proxy: Option<&str>,
    avoid: &[String],
) -> PodSpec {
    // A bound that the kubelet keeps with the operator down; the exact end is the operator's and the gateway's.
    let deadline = envelope.provisioning_deadline.as_secs() + envelope.ttl_cap.as_secs();
    PodSpec {
        affinity: elsewhere(avoid),
        active_deadline_seconds: Some(i64::try_from(deadline).unwrap_or(i64::MAX)),
        automount_service_account_token: Some(false),
        containers: vec![product(envelope, proxy)],
        // No resolver: previews have no DNS, and the node's resolv.conf is nobody's business.
        dns_policy: Some("None".to_owned()),
        dns_config: Some(PodDNSConfig {
            nameservers: Some(vec!["127.0.0.1".to_owned()]),
            ..PodDNSConfig::default()
        }),
        enable_service_links: Some(false),
        init_containers: Some(vec![
            prove(image, orders),
            watch(image, orders, envelope.runtime_class.as_deref()),
        ]),
        // A preview gives way to everything, and nothing to it.
        priority_class_name: Some(names::PRIORITY_CLASS.to_owned()),
        restart_policy: Some("Never".to_owned()),
        runtime_class_name: envelope.runtime_class.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(PRODUCT_UID),
            run_as_group: Some(PRODUCT_UID),
            fs_group: Some(PRODUCT_UID),
            seccomp_profile: Some(runtime_default()),
            // NetworkPolicies say nothing of ICMP, and some that enforce them let echo requests pass always. Without a raw
            // socket a container sends one only by a socket of its group, which containerd gives to every group.
            sysctls: Some(vec![Sysctl {
                name: "net.ipv4.ping_group_range".to_owned(),
                value: NO_GROUP.to_owned(),
            }]),
            ..PodSecurityContext::default()
        }),
        service_account_name: Some(names::SERVICE_ACCOUNT.to_owned()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        volumes: Some(
            envelope
                .writable
                .iter()
                .enumerate()
                .map(|(index, folder)| in_memory(&writable(index), &folder.size))
                .chain([in_memory(WATCH_LIFE_VOLUME, WATCH_LIFE_SIZE)])
                .collect(),
        ),
        ..PodSpec::default()
    }
}

/// On any node but these.
fn elsewhere(avoid: &[String]) -> Option<Affinity> {
    let not = |node: &String| NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![node.clone()]),
    };
    let term = NodeSelectorTerm {
        match_fields: Some(avoid.iter().map(not).collect()),
        ..NodeSelectorTerm::default()
    };
    (!avoid.is_empty()).then(|| Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    })
}

/// Name of the volume of a folder that the product may write to.
fn writable(index: usize) -> String {
    format!("writable-{index}")
}

fn in_memory(name: &str, size: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(size.to_owned())),
        }),
        ..Volume::default()
    }
}

fn product(envelope: &Envelope, proxy: Option<&str>) -> Container {
    let port = IntOrString::Int(i32::from(envelope.port));
    let (http_get, tcp_socket) = match &envelope.health_path {
        Some(path) => (
            Some(HTTPGetAction {
                path: Some(path.clone()),
                port,
                ..HTTPGetAction::default()
            }),
            None,
        ),
        None => (None, Some(TCPSocketAction { port, host: None })),
    };
    Container {
        name: names::PRODUCT.to_owned(),
        image: Some(envelope.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        command: some(envelope.command.clone()),
        args: some(envelope.args.clone()),
        env: some(environment(envelope, proxy)),
        ports: Some(vec![ContainerPort {
            container_port: i32::from(envelope.port),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(
            envelope.cpu,
            envelope.cpu,
            envelope.memory,
            envelope.ephemeral_storage,
        )),
        readiness_probe: Some(Probe {
            http_get,
            tcp_socket,
            period_seconds: Some(1),
            timeout_seconds: Some(3),
            failure_threshold: Some(5),
            ..Probe::default()
        }),
        // The seller's liveness is the sidecar's port: a breach, or a dead sidecar, and the kubelet kills the seller even
        // with the operator down (attacks, 12). A refused connection fails at once.
        liveness_probe: Some(Probe {
            failure_threshold: Some(1),
            ..sealed()
        }),
        security_context: Some(hardened(PRODUCT_UID)),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: some(
            envelope
                .writable
                .iter()
                .enumerate()
                .map(|(index, folder)| VolumeMount {
                    name: writable(index),
                    mount_path: folder.path.clone(),
                    ..VolumeMount::default()
                })
                .collect(),
        ),
        ..Container::default()
    }
}

/// The seller's variables, and where the way out is in the words that most programs know. `HTTP_PROXY` is not among them: the
/// proxy takes CONNECT only.
fn environment(envelope: &Envelope, proxy: Option<&str>) -> Vec<EnvVar> {
    let variable = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    // "$(" would let the seller's text be expanded by the kubelet; "$$(" is the literal.
    let own = envelope
        .env
        .iter()
        .map(|own| variable(&own.name, own.value.replace("$(", "$$(")));
    let ways = proxy.into_iter().flat_map(|proxy| {
        [
            ("HTTPS_PROXY", format!("http://{proxy}")),
            ("NO_PROXY", "localhost,127.0.0.1".to_owned()),
        ]
        .into_iter()
        // Programs differ in which case they read.
        .flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_lowercase(), value)])
    });
    // What the seller sets is the seller's business.
    ways.filter(|(name, _)| envelope.env.iter().all(|own| own.name != *name))
        .map(|(name, value)| variable(&name, value))
        .chain(own)
        .collect()
}

fn prove(image: &ProbeImage, orders: &probe::Orders) -> Container {
    probe_container(names::PROVE, "prove", image, orders)
}

/// Asks the sidecar, each second. The time-out is long because a busy node is no breach.
fn sealed() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(names::SEALED_PATH.to_owned()),
            port: IntOrString::Int(i32::from(names::WATCH_PORT)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

/// The kubelet starts nothing after the sidecar before it holds its ports.
fn watch(image: &ProbeImage, orders: &probe::Orders, runtime_class: Option<&str>) -> Container {
    let sidecar = Container {
        restart_policy: Some("Always".to_owned()),
        volume_mounts: Some(vec![VolumeMount {
            name: WATCH_LIFE_VOLUME.to_owned(),
            mount_path: probe::WATCH_LIFE.to_owned(),
            ..VolumeMount::default()
        }]),
        ..probe_container(names::WATCH, "watch", image, orders)
    };
    if runtime_class.is_some() {
        // A second later than the hook, its shortest period. An exec is the weakest part of a sandboxed runtime: gVisor's was
        // seen to fail for once without a word, which ended the preview.
        return Container {
            startup_probe: Some(Probe {
                failure_threshold: Some(i32::from(probe::LISTEN_PATIENCE_SECONDS)),
                ..sealed()
            }),
            ..sidecar
        };
    }
    Container {
        lifecycle: Some(Lifecycle {
            post_start: Some(LifecycleHandler {
                exec: Some(ExecAction {
                    command: Some(
                        ["/vitrine-operator", "probe", "watching"]
                            .map(str::to_owned)
                            .to_vec(),
                    ),
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        ..sidecar
    }
}

fn probe_container(name: &str, command: &str, image: &ProbeImage, orders: &probe::Orders) -> Container {
    let overhead = overhead();
    Container {
        name: name.to_owned(),
        image: Some(image.image.clone()),
        image_pull_policy: Some(image.pull_policy.clone()),
        args: Some(vec!["probe".to_owned(), command.to_owned()]),
        env: Some(vec![
            EnvVar {
                name: probe::ORDERS_ENV.to_owned(),
                value: Some(orders_json(orders)),
                value_from: None,
            },
            EnvVar {
                name: probe::NODE_IP_ENV.to_owned(),
                value: None,
                value_from: Some(EnvVarSource {
                    field_ref: Some(ObjectFieldSelector {
                        field_path: "status.hostIP".to_owned(),
                        ..ObjectFieldSelector::default()
                    }),
                    ..EnvVarSource::default()
                }),
            },
        ]),
        resources: Some(resources(
            overhead.cpu_request,
            overhead.cpu_limit,
            overhead.memory,
            overhead.ephemeral_storage,
        )),
        security_context: Some(hardened(PROBE_UID)),
        termination_message_policy: Some("File".to_owned()),
        ..Container::default()
    }
}

fn orders_json(orders: &probe::Orders) -> String {
    // A struct of strings and numbers: serde_json has nothing to fail on, and an empty order fails the probe closed.
    serde_json::to_string(orders).unwrap_or_default()
}

fn resources(
    cpu_request: Amount,
    cpu_limit: Amount,
    memory: Amount,
    ephemeral_storage: Amount,
) -> ResourceRequirements {
    let amounts = |cpu: Amount| {
        Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity(cpu.to_string())),
            ("memory".to_owned(), Quantity(memory.to_string())),
            (
                "ephemeral-storage".to_owned(),
                Quantity(ephemeral_storage.to_string()),
            ),
        ]))
    };
    ResourceRequirements {
        limits: amounts(cpu_limit),
        requests: amounts(cpu_request),
        ..ResourceRequirements::default()
    }
}

fn hardened(uid: i64) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(uid),
        run_as_group: Some(uid),
        seccomp_profile: Some(runtime_default()),
        ..SecurityContext::default()
    }
}

fn runtime_default() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}
