//! The two that are measured: how each is set up and started, what a claim of it is, and when that is ready. Writes the cluster, runs
//! controllers as processes.

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use vitrine_devcluster::{progress, tools};
use vitrine_e2e::{
    house::{House, LISTING},
    operator::{Operator, Options},
};
use vitrine_kit::http;
use vitrine_parts::Port;

/// More than a run ends previews: with a spool that is full their ends would be one write cheaper from then on.
const RECEIPTS_KEPT: &str = "1000000";
/// The name of pools and templates.
const POOL: &str = "pool";
/// Refill of Vitrine's pools: above every rate that is measured, for a pool that is filled slower than it is emptied runs dry.
const REFILL: i32 = 200;
const READY: Duration = Duration::from_secs(60);

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Vitrine,
    AgentSandbox,
}

impl System {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vitrine => "Vitrine",
            Self::AgentSandbox => "agent-sandbox",
        }
    }
}

/// How the peer is set, by its own documentation and the measurements of its own load tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// Refill as claims come.
    Steady,
    /// Refill after a burst.
    Burst,
    /// Refill as claims come, however many: where its highest rate is looked for, its own bound must not be what is found.
    Highest,
}

/// One of them, and where its claims are.
#[derive(Clone)]
pub struct Side {
    pub system: System,
    client: Client,
    namespace: String,
}

impl Side {
    /// Over a connection of its own.
    pub async fn new(system: System, house: &House) -> Self {
        let kubeconfig = Kubeconfig::read_from(house.cluster.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        Self {
            system,
            client: Client::try_from(config).unwrap(),
            namespace: house.shop.clone(),
        }
    }

    fn api(&self, group: &str, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    fn of_peer(&self, kind: &str, plural: &str) -> Api<DynamicObject> {
        self.api("extensions.agents.x-k8s.io", "v1beta1", kind, plural)
    }

    /// Its claims.
    pub fn claims(&self) -> Api<DynamicObject> {
        match self.system {
            System::Vitrine => self.api("vitrine.dev", "v1alpha1", "PreviewSandbox", "previewsandboxes"),
            System::AgentSandbox => self.of_peer("SandboxClaim", "sandboxclaims"),
        }
    }

    /// The resource of claims, as the audit log has it.
    pub const fn resource(&self) -> &'static str {
        match self.system {
            System::Vitrine => "previewsandboxes",
            System::AgentSandbox => "sandboxclaims",
        }
    }

    fn pools(&self) -> Api<DynamicObject> {
        match self.system {
            System::Vitrine => self.api("vitrine.dev", "v1alpha1", "PreviewPool", "previewpools"),
            System::AgentSandbox => self.of_peer("SandboxWarmPool", "sandboxwarmpools"),
        }
    }

    /// A claim of this name.
    pub fn claim(&self, name: &str) -> DynamicObject {
        let (api_version, kind, spec) = match self.system {
            System::Vitrine => (
                "vitrine.dev/v1alpha1",
                "PreviewSandbox",
                json!({"listingRef": {"name": LISTING}, "subject": name, "ttl": "30m"}),
            ),
            System::AgentSandbox => (
                "extensions.agents.x-k8s.io/v1beta1",
                "SandboxClaim",
                json!({"warmPoolRef": {"name": POOL}}),
            ),
        };
        let object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    /// Whether a claim is ready, and then whether it had to be made first.
    pub fn is_ready(&self, claim: &DynamicObject) -> Option<bool> {
        let status = claim.data.get("status")?;
        match self.system {
            System::Vitrine => {
                // One that was made cold holds a slot in every dimension, for it has none in common with others.
                let slots = status["slots"].as_array().map_or(0, Vec::len);
                (status["phase"] == "Ready").then_some(slots > 1)
            }
            System::AgentSandbox => {
                let conditions = status["conditions"].as_array()?;
                let ready = conditions
                    .iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True");
                // One that was made cold has the claim's own name.
                let own = status["sandbox"]["name"].as_str() == claim.metadata.name.as_deref();
                ready.then_some(own)
            }
        }
    }

    /// Has a pool of this size, and waits until it is full; how long that took.
    pub async fn fill(&self, replicas: usize, patience: Duration) -> Duration {
        self.fill_at(replicas, REFILL, patience).await
    }

    /// The same, with a pool of Vitrine's filled by so many a second.
    pub async fn fill_at(&self, replicas: usize, refill: i32, patience: Duration) -> Duration {
        let begun = Instant::now();
        let pool = match self.system {
            System::Vitrine => json!({
                "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": POOL},
                "spec": {"listingRef": {"name": LISTING}, "replicas": replicas, "refill": {"perSecond": refill, "burst": refill}}
            }),
            System::AgentSandbox => {
                let template = json!({
                    "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxTemplate", "metadata": {"name": POOL},
                    "spec": {"podTemplate": {"spec": {"containers": [{
                        "name": "product", "image": format!("vitrine.local/stub@sha256:{}", "0".repeat(64)),
                        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}
                    }]}}}
                });
                let templates = self.of_peer("SandboxTemplate", "sandboxtemplates");
                put(&templates, &template).await;
                json!({
                    "apiVersion": "extensions.agents.x-k8s.io/v1beta1", "kind": "SandboxWarmPool", "metadata": {"name": POOL},
                    "spec": {"sandboxTemplateRef": {"name": POOL}, "replicas": replicas}
                })
            }
        };
        put(&self.pools(), &pool).await;
        self.full(replicas, patience).await;
        begun.elapsed()
    }

    /// Waits until the pool is full.
    pub async fn full(&self, replicas: usize, patience: Duration) {
        let field = match self.system {
            System::Vitrine => "ready",
            System::AgentSandbox => "readyReplicas",
        };
        let begun = Instant::now();
        loop {
            let pool = self.pools().get(POOL).await.unwrap();
            let ready = pool.data["status"][field].as_u64().unwrap_or_default();
            if usize::try_from(ready) == Ok(replicas) {
                return;
            }
            assert!(
                begun.elapsed() < patience,
                "{}: {ready} of {replicas} are ready after {} s: {}",
                self.system.name(),
                patience.as_secs(),
                pool.data["status"]
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn put(api: &Api<DynamicObject>, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("vitrine-bench").force();
    let put = api.patch(name, &params, &Patch::Apply(object)).await;
    put.unwrap_or_else(|error| panic!("{} {name}: {error}", object["kind"]));
}

/// A controller that runs; killed when it is dropped.
pub struct Controller {
    pub pid: u32,
    /// Where it tells its counts.
    metrics: SocketAddr,
    /// The counter of its reconciliations.
    counter: &'static str,
    _process: Process,
}

enum Process {
    Vitrine(#[expect(dead_code, reason = "held to be dropped")] Operator),
    Peer(Child),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Controller {
    /// Starts one and waits until it is ready.
    pub async fn start(system: System, tuning: Tuning, house: &House) -> Self {
        match system {
            System::Vitrine => {
                let options = Options::alone("bench-previews").with(["--receipts-kept", RECEIPTS_KEPT]);
                let operator = Operator::ready(&house.post, &options, None).await;
                Self {
                    pid: operator.pid(),
                    metrics: operator.address,
                    counter: "vitrine_reconciles_total",
                    _process: Process::Vitrine(operator),
                }
            }
            System::AgentSandbox => peer(tuning, house).await,
        }
    }

    /// How often it has reconciled anything.
    pub async fn reconciles(&self) -> f64 {
        let text = http::get(self.metrics, "metrics", "/metrics").await.unwrap().body;
        let lines = text.lines().filter(|line| line.starts_with(self.counter));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }
}

async fn peer(tuning: Tuning, house: &House) -> Controller {
    let built = tools::ensure(&["agent-sandbox"], progress::for_stderr(true).as_ref()).unwrap();
    let program = built.binary("agent-sandbox", "agent-sandbox-controller").unwrap();
    let (metrics, health) = (Port::for_good(), Port::for_good());
    let log = house.post.folder.join("agent-sandbox.log");
    let burst = [
        "--sandbox-warm-pool-replenish-delay=20s",
        "--sandbox-warm-pool-max-refill-rate=100",
        "--sandbox-write-behind-window=250ms",
    ];
    let steady = [
        "--sandbox-warm-pool-replenish-delay=0",
        "--sandbox-warm-pool-max-refill-rate=30",
    ];
    let highest = [
        "--sandbox-warm-pool-replenish-delay=0",
        "--sandbox-warm-pool-max-refill-rate=200",
    ];
    let child = Command::new(program)
        .args([
            "--extensions",
            "--leader-elect=false",
            "--api-connections=4",
            "--separate-watch-connection=true",
        ])
        .args([
            "--cache-label-selectors=true",
            "--disable-claim-events=true",
            "--disable-claim-observability-annotations=true",
        ])
        .args([
            "--sandbox-concurrent-workers=16",
            "--sandbox-claim-concurrent-workers=32",
            "--sandbox-warm-pool-concurrent-workers=1",
        ])
        .args(match tuning {
            Tuning::Steady => &steady[..],
            Tuning::Burst => &burst[..],
            Tuning::Highest => &highest[..],
        })
        .arg(format!("--metrics-bind-address={metrics}"))
        .arg(format!("--health-probe-bind-address={health}"))
        .env("KUBECONFIG", house.cluster.kubeconfig())
        .env("GOGC", "400")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let pid = child.id();
    let process = Process::Peer(child);
    let begun = Instant::now();
    loop {
        match http::get(health, "agent-sandbox", "/readyz").await {
            Ok(answer) if answer.status == 200 => break,
            other => assert!(
                begun.elapsed() < READY,
                "agent-sandbox is not ready: {other:?}; {}",
                log.display()
            ),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Controller {
        pid,
        metrics,
        counter: "controller_runtime_reconcile_total",
        _process: process,
    }
}

/// Installs the peer's custom resources, from its own module.
pub fn install_peer(house: &House) {
    // Not `go list`: on a machine that has never built the peer its module is not there yet.
    let told = vitrine_kit::program::run_with(
        Command::new("go")
            .args(["mod", "download", "-json", "sigs.k8s.io/agent-sandbox"])
            .current_dir(vitrine_kit::images::workspace().join("devcluster/go/agent-sandbox")),
    );
    let module: Value = serde_json::from_str(&told.unwrap()).unwrap();
    let crds = format!("{}/k8s/crds", module["Dir"].as_str().unwrap());
    house.kubectl(&["apply", "--server-side", "-f", &crds]);
    house.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crds",
        "--all",
        "--timeout=60s",
    ]);
}
