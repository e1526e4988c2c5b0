//! The files that the cluster's parts read: certificates, kubeconfigs, configurations. Writes into the state folder.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use std::io::Write;

use serde_json::{Value, json};

use crate::config::{
    API_PORT, API_SERVICE_ADDRESS, DNS_SERVICE_ADDRESS, Level, NODE_ADDRESS, NODE_NAME, NODE_POD_CIDR,
    POD_CIDR,
};
use crate::error::{Error, Result};
use crate::paths::{INSIDE, StateDir};
use crate::pki::{self, Authority, Pair, Subject};
use crate::{cgroup, host};

/// The user that may do everything.
const MASTERS: &str = "system:masters";
/// The image that holds a pod's namespaces open.
pub(crate) const PAUSE_IMAGE: &str = "vitrine.local/pause:1";
/// Where containerd listens.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// Who KWOK is.
pub(super) const KWOK_USER: &str = "vitrine-devcluster:kwok";
/// What fake nodes do.
const KWOK_STAGES: &str = include_str!("../../kwok/stages.yaml");

/// What is written depends on.
pub(crate) struct Inputs<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) level: Level,
    /// The API server's port on 127.0.0.1 of this machine.
    pub(crate) api_port: u16,
    /// The folder of the CNI plugins.
    pub(crate) cni_plugins: Option<&'a Path>,
    /// Whether pods may run under gVisor.
    pub(crate) gvisor: bool,
    /// Whether benches measure others here.
    pub(crate) unthrottled: bool,
}

/// Writes everything; nothing of it changes while the cluster lives.
pub(crate) fn write_all(inputs: &Inputs<'_>) -> Result<()> {
    write_pki(inputs)?;
    write("audit-policy.json", &audit_policy(inputs.unthrottled).to_string())?;
    if inputs.level == Level::Scale {
        write("kwok.yaml", KWOK_STAGES)?;
    }
    if inputs.level == Level::Full {
        let runc = host::find_program("runc").unwrap_or_else(|| "runc".into());
        let plugins = inputs.cni_plugins.unwrap_or(Path::new("/opt/cni/bin"));
        write("kubelet.json", &kubelet(inputs.cluster).to_string())?;
        write("proxy.json", &proxy().to_string())?;
        write(
            "containerd.toml",
            &containerd(
                &runc,
                plugins,
                snapshotter(),
                !host::may_lower_oom_score(),
                inputs.gvisor,
            ),
        )?;
        if inputs.gvisor {
            write("runsc.toml", RUNSC)?;
        }
        write("cni/10-pods.conflist", &pod_network().to_string())?;
    }
    Ok(())
}

/// Writes a file that only root reads: many of them are keys.
fn write(name: &str, text: &str) -> Result<()> {
    let path = StateDir::inside().join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::file("write", path))
}

fn write_pair(name: &str, pair: &Pair) -> Result<()> {
    write(&format!("pki/{name}.crt"), &pair.cert)?;
    write(&format!("pki/{name}.key"), &pair.key)
}

fn write_pki(inputs: &Inputs<'_>) -> Result<()> {
    let ca = Authority::new("vitrine-devcluster")?;
    write("pki/ca.crt", ca.cert())?;
    write("pki/ca.key", &ca.key())?;
    let node_address = IpAddr::V4(NODE_ADDRESS);
    let api_server = Subject {
        name: "kube-apiserver",
        dns: &[
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ],
        addresses: &[
            IpAddr::from([127, 0, 0, 1]),
            node_address,
            IpAddr::V4(API_SERVICE_ADDRESS),
        ],
        ..Subject::default()
    };
    write_pair("apiserver", &ca.issue(&api_server)?)?;
    let to_kubelet = Subject {
        name: "kube-apiserver-kubelet-client",
        groups: &[MASTERS],
        ..Subject::default()
    };
    write_pair("apiserver-kubelet-client", &ca.issue(&to_kubelet)?)?;
    let kubelet = Subject {
        name: NODE_NAME,
        dns: &[NODE_NAME],
        addresses: &[node_address],
        ..Subject::default()
    };
    write_pair("kubelet-server", &ca.issue(&kubelet)?)?;
    // An authority of its own, as the API server's documentation asks: whoever is signed by it may claim any name.
    let front = Authority::new("vitrine-devcluster-front-proxy")?;
    write("pki/front-proxy-ca.crt", front.cert())?;
    write_pair(
        "front-proxy",
        &front.issue(&Subject {
            name: "front-proxy",
            ..Subject::default()
        })?,
    )?;
    write_pair("service-accounts", &pki::signing_pair()?)?;

    let inside = format!("https://{NODE_ADDRESS}:{API_PORT}");
    let node_user = format!("system:node:{NODE_NAME}");
    let users: [(&str, &str, &[&str]); 6] = [
        ("controller-manager", "system:kube-controller-manager", &[]),
        ("scheduler", "system:kube-scheduler", &[]),
        ("kubelet", &node_user, &["system:nodes"]),
        ("proxy", "system:kube-proxy", &[]),
        ("netpol", "vitrine-devcluster:netpol", &[MASTERS]),
        ("kwok", KWOK_USER, &["system:nodes"]),
    ];
    for (file, name, groups) in users {
        let pair = ca.issue(&Subject {
            name,
            groups,
            ..Subject::default()
        })?;
        write(
            &format!("kubeconfigs/{file}"),
            &pki::kubeconfig(inputs.cluster, &inside, ca.cert(), &pair),
        )?;
    }
    let admin = ca.issue(&Subject {
        name: "vitrine-devcluster:admin",
        groups: &[MASTERS],
        ..Subject::default()
    })?;
    write(
        "kubeconfigs/admin",
        &pki::kubeconfig(inputs.cluster, &inside, ca.cert(), &admin),
    )?;
    let outside = format!("https://127.0.0.1:{}", inputs.api_port);
    write(
        "kubeconfig",
        &pki::kubeconfig(inputs.cluster, &outside, ca.cert(), &admin),
    )
}

/// Every write with its user and object; reads would drown them. Who has which cell, and what previews say of themselves, is kept whole: by
/// that a test judges; a bench would measure it.
fn audit_policy(unthrottled: bool) -> Value {
    let whole = [
        json!({
            "level": "RequestResponse", "verbs": ["create", "patch", "delete"], "omitManagedFields": true,
            "resources": [{ "group": "", "resources": ["namespaces"] }],
        }),
        json!({
            "level": "RequestResponse", "verbs": ["update", "patch"], "omitManagedFields": true,
            "resources": [{ "group": "vitrine.dev", "resources": ["previewsandboxes/status"] }],
        }),
    ];
    let writes = [
        json!({ "level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"] }),
        json!({ "level": "None" }),
    ];
    let rules: Vec<_> = whole.into_iter().filter(|_| !unthrottled).chain(writes).collect();
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": rules,
    })
}

fn kubelet(cluster: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": format!("{INSIDE}/pki/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": format!("{INSIDE}/pki/kubelet-server.crt"),
        "tlsPrivateKeyFile": format!("{INSIDE}/pki/kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup::name(cluster)),
        // Kubernetes 1.36 refuses version 1 unless told; it works.
        "failCgroupV1": cgroup::version() == cgroup::Version::V2,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        // Nothing of this machine's resolver: there is no route to it.
        "resolvConf": "",
        // A developer's disk is often nearly full, and that is no reason to evict a preview.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        // Images come in by import and could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "podPidsLimit": 512,
        "registerNode": true,
        "nodeStatusUpdateFrequency": "4s",
        "serializeImagePulls": false,
        "containerLogMaxSize": "5Mi",
        "containerLogMaxFiles": 2,
        // Its own protection from the memory killer needs a capability that not every machine grants.
        "oomScoreAdj": if host::may_lower_oom_score() { -999 } else { 0 },
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
    })
}

fn proxy() -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": POD_CIDR,
        "clientConnection": { "kubeconfig": format!("{INSIDE}/kubeconfigs/proxy") },
        "hostnameOverride": NODE_NAME,
        "bindAddress": "0.0.0.0",
        // Those sysctls belong to the whole machine.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "oomScoreAdj": if host::may_lower_oom_score() { -999 } else { 0 },
        // Quicker than the default second, so that tests do not wait for services.
        "iptables": { "minSyncPeriod": "100ms" },
    })
}

/// One bridge a node. The last plugin turns IPv6 off in the pod: fresh network namespaces have it on, and the policy
/// controller programs IPv4 only.
fn pod_network() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{ "subnet": NODE_POD_CIDR }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            {
                "type": "tuning",
                "sysctl": {
                    "net.ipv6.conf.all.disable_ipv6": "1",
                    "net.ipv6.conf.default.disable_ipv6": "1",
                },
            },
        ],
    })
}

/// gVisor, found on containerd's PATH. Its state stays at its default below /run, a tmpfs of the cluster's own; of the kernel's settings,
/// which are the whole machine's, it changes none.
const RUNSC: &str = r#"[runsc_config]
  platform = "systrap"
  network = "sandbox"
  host-settings = "check"
"#;

fn containerd(
    runc: &Path,
    plugins: &Path,
    snapshotter: &str,
    restrict_oom_score: bool,
    gvisor: bool,
) -> String {
    // Options of gVisor's shim are read from a file alone: its type has no place for others.
    let runsc = if gvisor {
        format!(
            r#"    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc]
      runtime_type = "io.containerd.runsc.v1"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runsc.options]
        TypeUrl = "io.containerd.runsc.v1.options"
        ConfigPath = "{INSIDE}/runsc.toml"
"#
        )
    } else {
        String::new()
    };
    let runc = quoted(&runc.to_string_lossy());
    let plugins = quoted(&plugins.to_string_lossy());
    format!(
        r#"version = 3
# Snapshotters that this cluster does not use, and that only cost time to probe.
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "{snapshotter}"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  # A VOLUME of an image would be a writable folder of this machine past a read-only root.
  ignore_image_defined_volumes = true
  restrict_oom_score_adj = {restrict_oom_score}
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = {runc}
        SystemdCgroup = false
{runsc}  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [{plugins}]
    conf_dir = "{INSIDE}/cni"
"#
    )
}

/// overlayfs does not stack on itself: where the state folder lies in a container's own overlay, files are copied.
fn snapshotter() -> &'static str {
    let kind = nix::sys::statfs::statfs(INSIDE).map(|stat| stat.filesystem_type());
    if kind == Ok(nix::sys::statfs::OVERLAYFS_SUPER_MAGIC) {
        "native"
    } else {
        "overlayfs"
    }
}

/// A TOML basic string; JSON's escapes are a subset of TOML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_no_ipv6_and_no_masquerade() {
        let network = pod_network();
        assert_eq!(network["plugins"][0]["ipMasq"], false);
        assert_eq!(
            network["plugins"][2]["sysctl"]["net.ipv6.conf.all.disable_ipv6"],
            "1"
        );
    }

    #[test]
    fn only_writes_are_audited_and_few_of_them_whole() {
        let levels = |unthrottled| {
            let policy = audit_policy(unthrottled);
            let levels = policy["rules"]
                .as_array()
                .unwrap()
                .iter()
                .map(|rule| rule["level"].clone());
            levels.collect::<Vec<_>>()
        };
        assert_eq!(levels(true), ["Metadata", "None"]);
        assert_eq!(
            levels(false),
            ["RequestResponse", "RequestResponse", "Metadata", "None"]
        );
    }

    #[test]
    fn image_volumes_are_ignored() {
        let with = |gvisor| {
            containerd(
                Path::new("/usr/sbin/runc"),
                Path::new("/x"),
                "overlayfs",
                true,
                gvisor,
            )
        };
        let text = with(false);
        assert!(text.contains("ignore_image_defined_volumes = true"));
        assert!(text.contains("BinaryName = \"/usr/sbin/runc\""));
        assert!(!text.contains("runsc"));
        assert!(with(true).contains("ConfigPath = \"/run/vitrine/runsc.toml\""));
    }
}
