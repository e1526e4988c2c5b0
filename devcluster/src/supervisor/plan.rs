//! The command lines of the cluster's parts. Pure.

use std::path::Path;

use super::namespaces::{self, NODE};
use super::process::Spec;
use crate::config::{API_PORT, FAKE_POD_CIDR, NODE_ADDRESS, NODE_NAME, POD_CIDR, SERVICE_CIDR};
use crate::error::Result;
use crate::paths::INSIDE;
use crate::tools::Tools;

/// etcd.
pub(crate) const ETCD: &str = "etcd";
/// The API server.
pub(crate) const API_SERVER: &str = "apiserver";
/// The controller-manager.
pub(crate) const CONTROLLER_MANAGER: &str = "controller-manager";
/// The scheduler.
pub(crate) const SCHEDULER: &str = "scheduler";
/// The container runtime.
pub(crate) const CONTAINERD: &str = "containerd";
/// The node agent.
pub(crate) const KUBELET: &str = "kubelet";
/// The service proxy.
pub(crate) const PROXY: &str = "proxy";
/// The NetworkPolicy controller.
pub(crate) const NETPOL: &str = "netpol";
/// The fake nodes.
pub(crate) const KWOK: &str = "kwok";

/// The label of nodes that KWOK plays.
pub(crate) const FAKE_NODE_LABEL: &str = "vitrine.dev/fake-node";

/// Where etcd listens, in the node's namespace.
pub(crate) const ETCD_ADDRESS: &str = "127.0.0.1:2379";

/// Makes specs from the tools' places and the environment that all parts get.
pub(crate) struct Plan {
    pub(crate) tools: Tools,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) unthrottled: bool,
}

/// Requests a second of Kubernetes' own clients, and how many at once: above what is measured beside them.
const CLIENT_RATE: [&str; 2] = ["--kube-api-qps=400", "--kube-api-burst=800"];
const CLIENT_RATE_UNTHROTTLED: [&str; 2] = ["--kube-api-qps=5000", "--kube-api-burst=10000"];

impl Plan {
    fn spec(&self, name: &'static str, group: &str, binary: &str, arguments: Vec<String>) -> Result<Spec> {
        let mut argv = namespaces::enter(NODE);
        argv.push(self.tools.binary(group, binary)?.to_string_lossy().into_owned());
        argv.extend(arguments);
        Ok(Spec {
            name,
            argv,
            env: self.env.clone(),
        })
    }

    pub(crate) fn etcd(&self) -> Result<Spec> {
        let arguments = [
            format!("--data-dir={INSIDE}/etcd"),
            format!("--listen-client-urls=http://{ETCD_ADDRESS}"),
            format!("--advertise-client-urls=http://{ETCD_ADDRESS}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
            "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            // The data dies with the cluster; waiting for the disk buys nothing.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.spec(ETCD, "etcd", "etcd", arguments.into())
    }

    pub(crate) fn api_server(&self) -> Result<Spec> {
        let pki = format!("{INSIDE}/pki");
        let mut arguments = vec![
            format!("--etcd-servers=http://{ETCD_ADDRESS}"),
            format!("--advertise-address={NODE_ADDRESS}"),
            format!("--secure-port={API_PORT}"),
            format!("--tls-cert-file={pki}/apiserver.crt"),
            format!("--tls-private-key-file={pki}/apiserver.key"),
            format!("--client-ca-file={pki}/ca.crt"),
            format!("--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt"),
            format!("--kubelet-client-key={pki}/apiserver-kubelet-client.key"),
            format!("--kubelet-certificate-authority={pki}/ca.crt"),
            // The node's name is in no DNS that the API server asks.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={pki}/service-accounts.crt"),
            format!("--service-account-signing-key-file={pki}/service-accounts.key"),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
            "--requestheader-allowed-names=front-proxy".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={pki}/front-proxy.crt"),
            format!("--proxy-client-key-file={pki}/front-proxy.key"),
            format!("--audit-policy-file={INSIDE}/audit-policy.json"),
            format!("--audit-log-path={INSIDE}/logs/audit.log"),
            // MiB; 0 would mean 100. Tests count lines and must not meet a rotation.
            "--audit-log-maxsize=4096".to_owned(),
        ];
        if self.unthrottled {
            let bounds = [
                "--enable-priority-and-fairness=false",
                "--max-requests-inflight=2000",
                "--max-mutating-requests-inflight=1000",
            ];
            arguments.extend(bounds.map(str::to_owned));
        }
        self.spec(API_SERVER, "kubernetes", "kube-apiserver", arguments)
    }

    pub(crate) fn controller_manager(&self) -> Result<Spec> {
        let (pki, kubeconfig) = (
            format!("{INSIDE}/pki"),
            format!("{INSIDE}/kubeconfigs/controller-manager"),
        );
        let arguments = [
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--service-account-private-key-file={pki}/service-accounts.key"),
            format!("--root-ca-file={pki}/ca.crt"),
            format!("--cluster-signing-cert-file={pki}/ca.crt"),
            format!("--cluster-signing-key-file={pki}/ca.key"),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            format!("--cluster-cidr={POD_CIDR}"),
            "--allocate-node-cidrs=false".to_owned(),
        ];
        self.spec(
            CONTROLLER_MANAGER,
            "kubernetes",
            "kube-controller-manager",
            self.at_its_rate(arguments),
        )
    }

    pub(crate) fn scheduler(&self) -> Result<Spec> {
        let kubeconfig = format!("{INSIDE}/kubeconfigs/scheduler");
        let arguments = [
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
        ];
        self.spec(
            SCHEDULER,
            "kubernetes",
            "kube-scheduler",
            self.at_its_rate(arguments),
        )
    }

    fn at_its_rate(&self, arguments: impl IntoIterator<Item = String>) -> Vec<String> {
        let rate = if self.unthrottled {
            CLIENT_RATE_UNTHROTTLED
        } else {
            CLIENT_RATE
        };
        arguments.into_iter().chain(rate.map(str::to_owned)).collect()
    }

    pub(crate) fn kwok(&self) -> Result<Spec> {
        let arguments = [
            format!("--kubeconfig={INSIDE}/kubeconfigs/kwok"),
            format!("--config={INSIDE}/kwok.yaml"),
            format!("--manage-nodes-with-label-selector={FAKE_NODE_LABEL}=true"),
            format!("--node-ip={NODE_ADDRESS}"),
            format!("--cidr={FAKE_POD_CIDR}"),
            // A line a pod and stage is too much at scale.
            "--v=WARN".to_owned(),
        ];
        self.spec(KWOK, "kwok", "kwok", arguments.into())
    }

    pub(crate) fn containerd(&self) -> Result<Spec> {
        let arguments = [format!("--config={INSIDE}/containerd.toml")];
        self.spec(CONTAINERD, "containerd", "containerd", arguments.into())
    }

    pub(crate) fn kubelet(&self) -> Result<Spec> {
        let arguments = [
            format!("--config={INSIDE}/kubelet.json"),
            format!("--kubeconfig={INSIDE}/kubeconfigs/kubelet"),
            format!("--hostname-override={NODE_NAME}"),
            format!("--node-ip={NODE_ADDRESS}"),
            "--v=1".to_owned(),
        ];
        self.spec(KUBELET, "kubernetes", "kubelet", arguments.into())
    }

    pub(crate) fn proxy(&self) -> Result<Spec> {
        let arguments = [format!("--config={INSIDE}/proxy.json")];
        self.spec(PROXY, "kubernetes", "kube-proxy", arguments.into())
    }

    pub(crate) fn netpol(&self) -> Result<Spec> {
        let arguments = [
            format!("-kubeconfig={INSIDE}/kubeconfigs/netpol"),
            format!("-node={NODE_NAME}"),
            format!("-service-cidr={SERVICE_CIDR}"),
            "-v=1".to_owned(),
        ];
        self.spec(NETPOL, "netpol", "netpol", arguments.into())
    }
}

/// The search path of all parts and of commands run inside: the tools first, then what root's PATH may lack.
pub(crate) fn search_path(tools: &Tools) -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let folders = tools
        .folders()
        .map(|(_, folder)| Path::to_string_lossy(folder).into_owned());
    let system = [
        "/usr/local/sbin",
        "/usr/sbin",
        "/sbin",
        "/usr/local/bin",
        "/usr/bin",
        "/bin",
    ]
    .map(str::to_owned);
    folders
        .chain([own])
        .chain(system)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(":")
}
