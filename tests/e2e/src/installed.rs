//! Vitrine on the full cluster, installed once a test binary as a platform engineer would, and the shop that each test opens
//! in it. Talks to the cluster that it is given; what a test stops, it starts again, also when the test panics.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Pod, Secret, Service},
        events::v1::Event,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::timeout,
};
use vitrine_crds::{
    Phase, PreviewSandbox, PreviewSandboxStatus, SkuListing, StatusReason,
    conditions::{self, types},
};
use vitrine_devcluster::{Action, Cluster, Hit, Level, Place, image::Image, progress};
use vitrine_kit::{
    images::{self, Build},
    install::{self, NAMESPACE, Options, Target},
    objects, program,
};
use vitrine_parts::Port;
use vitrine_policies::{cell::record::Record, names};

use crate::{
    clusters,
    eventually::eventually,
    manifest::Manifest,
    operator::{KEY, SLOTS},
    turn::Turn,
};

/// Far longer than a preview takes to be ready on two busy cores.
pub const READY: Duration = Duration::from_secs(60);
/// The group that the admission policies let do anything but look into a running preview.
pub const BREAK_GLASS: &str = "vitrine:break-glass";
/// Far longer than an end takes.
pub const END: Duration = Duration::from_secs(60);

/// The Secret with the key that signs receipts.
const RECEIPT_KEY: &str = "vitrine-receipt-key";

/// An administrator, after the glass is broken.
pub const SRE: (&str, &[&str]) = (
    "vitrine-e2e:sre",
    &["system:masters", "system:authenticated", BREAK_GLASS],
);
/// The operator, as whoever stole its token.
pub const OPERATOR: (&str, &[&str]) = ("system:serviceaccount:vitrine-system:vitrine-operator", &[]);

/// Where images may come from. With the registry that is not there, for the test of an image that is not to be had.
const MIRROR: [&str; 2] = ["vitrine.local", "127.0.0.1:1/nowhere"];

static INSTALLED: OnceCell<Installed> = OnceCell::const_new();
// Tests of one binary run side by side, but for those that break something which all share.
static GATE: RwLock<()> = RwLock::const_new(());

/// To be held by a test that others may run beside.
pub async fn together() -> Turn<RwLockReadGuard<'static, ()>> {
    Turn::begin(GATE.read().await)
}

/// To be held by a test that breaks what all share.
pub async fn alone() -> Turn<RwLockWriteGuard<'static, ()>> {
    Turn::begin(GATE.write().await)
}

/// Vitrine on the full cluster.
#[derive(Debug)]
pub struct Installed {
    /// The cluster.
    pub cluster: Cluster,
    /// How it is reached.
    pub target: Target,
    /// The product of most tests.
    pub busybox: Image,
    /// Vitrine's own image.
    pub operator: Image,
    /// The port of 127.0.0.1 that leads to the gateway.
    pub port: u16,
}

/// The installation of this test binary.
pub async fn installed() -> &'static Installed {
    INSTALLED.get_or_init(bring).await
}

async fn bring() -> Installed {
    let cluster = clusters::shared(Level::Full);
    let target = clusters::target(&cluster);
    let operator = images::operator(Build::Quick).unwrap_or_else(|error| panic!("Vitrine's image: {error}"));
    let busybox = images::busybox().unwrap_or_else(|error| panic!("busybox's image: {error}"));
    for image in [&operator, &busybox] {
        cluster
            .import_image(image)
            .unwrap_or_else(|error| panic!("import {}: {error}", image.name));
    }
    let client = client(&target).await;
    // The port of an earlier binary stays: then nothing of the installation changes, and nothing is restarted.
    let port = match gateway(&client).await {
        Some(gateway) => lead(&cluster, gateway),
        None => Port::for_good().port(),
    };
    let installed = Installed {
        cluster,
        target,
        busybox,
        operator,
        port,
    };
    receipt_key(&client).await;
    installed.install();
    let gateway = gateway(&client)
        .await
        .unwrap_or_else(|| panic!("the gateway has no address"));
    if lead_of(&installed.cluster, gateway) != Some(port) {
        installed
            .cluster
            .forward(port, gateway)
            .unwrap_or_else(|error| panic!("lead port {port} to the gateway: {error}"));
    }
    installed
}

/// The Secret with the key of receipts, as a platform engineer makes it.
async fn receipt_key(client: &Client) {
    let made = objects::shop(client, NAMESPACE).await;
    made.unwrap_or_else(|error| panic!("{NAMESPACE}: {error}"));
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(RECEIPT_KEY.to_owned()),
            ..ObjectMeta::default()
        },
        string_data: Some([("key.pem".to_owned(), KEY.to_owned())].into()),
        ..Secret::default()
    };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("the receipt key: {error}"),
    }
}

async fn client(target: &Target) -> Client {
    target
        .client()
        .await
        .unwrap_or_else(|error| panic!("a client: {error}"))
}

async fn gateway(client: &Client) -> Option<SocketAddr> {
    install::service_address(client, NAMESPACE, "vitrine-gateway")
        .await
        .ok()
}

fn lead_of(cluster: &Cluster, gateway: SocketAddr) -> Option<u16> {
    let forwards = cluster.status().ok()?.forwards;
    forwards
        .iter()
        .find(|(_, to)| **to == gateway)
        .map(|(port, _)| *port)
}

fn lead(cluster: &Cluster, gateway: SocketAddr) -> u16 {
    lead_of(cluster, gateway).unwrap_or_else(|| {
        cluster
            .forward(0, gateway)
            .unwrap_or_else(|error| panic!("lead a port to the gateway: {error}"))
    })
}

impl Installed {
    /// Where previews are, with `{label}`.
    pub fn url(&self) -> String {
        format!("http://{{label}}.previews.localhost:{}", self.port)
    }

    /// Installs or upgrades; changes nothing where all is as it should be.
    pub fn install(&self) {
        let mut options = Options::for_devcluster(&self.operator, &self.url());
        // As in production: with a key that lasts.
        options.set.push("profile=Production".to_owned());
        options.set.push(format!("receipts.keySecret={RECEIPT_KEY}"));
        let mirror = MIRROR.join(",");
        options
            .set
            .push(format!("previewPolicy.images.repositories={{{mirror}}}"));
        // The one node is shared by tests that break its isolation on purpose; `breach` tries this itself.
        options
            .set
            .push("previewPolicy.isolation.nodeQuarantine=null".to_owned());
        let done = install::install(&self.target, &options, &*progress::for_stderr(true));
        done.unwrap_or_else(|error| panic!("install: {error}"));
    }

    /// Leads the port to the gateway again, which has another address after it was installed anew.
    pub async fn lead_again(&self) {
        let client = client(&self.target).await;
        let gateway = gateway(&client)
            .await
            .unwrap_or_else(|| panic!("the gateway has no address"));
        if lead_of(&self.cluster, gateway) != Some(self.port) {
            let _ = self.cluster.unforward(self.port);
            let led = self.cluster.forward(self.port, gateway);
            led.unwrap_or_else(|error| panic!("lead port {} to the gateway: {error}", self.port));
        }
    }

    /// kubectl, as a person would call it.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let kubectl = self
            .cluster
            .binary("kubernetes", "kubectl")
            .map_err(|error| error.to_string())?;
        let kubeconfig = self.target.kubeconfig.display().to_string();
        let all = [&["--kubeconfig", &kubeconfig], arguments].concat();
        program::run(&kubectl, &all).map_err(|error| error.to_string())
    }

    /// kubectl, which must succeed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// kubectl as somebody else; the groups that the API server adds for a user of that name are added.
    ///
    /// # Errors
    /// With what it said, if it failed.
    pub fn kubectl_as(&self, user: &str, groups: &[&str], arguments: &[&str]) -> Result<String, String> {
        let user = format!("--as={user}");
        let groups: Vec<_> = groups.iter().map(|group| format!("--as-group={group}")).collect();
        let who = std::iter::once(user.as_str()).chain(groups.iter().map(String::as_str));
        let all: Vec<_> = who.chain(arguments.iter().copied()).collect();
        self.try_kubectl(&all)
    }

    /// Creates an object as somebody else.
    ///
    /// # Errors
    /// With what kubectl said, if it failed.
    pub fn create_as(
        &self,
        user: &str,
        groups: &[&str],
        object: &serde_json::Value,
    ) -> Result<String, String> {
        let manifest = Manifest::new(object);
        self.kubectl_as(user, groups, &["create", "-f", manifest.path()])
    }

    /// kubectl as an administrator who has broken the glass: what the admission policies refuse to all others. Must succeed.
    pub fn break_glass(&self, arguments: &[&str]) -> String {
        let (user, groups) = SRE;
        self.kubectl_as(user, groups, arguments)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Creates an object in the same way.
    pub fn break_glass_create(&self, object: &serde_json::Value) {
        let (user, groups) = SRE;
        let made = self.create_as(user, groups, object);
        made.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Takes every rule of the policy controller away.
    pub fn flush(&self) {
        let flush = ["iptables", "-w", "-F", "KUBE-ROUTER-FORWARD"];
        let done = self.cluster.exec(Place::Node, &flush);
        let done = done.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(done.code, 0, "{done:?}");
    }

    /// Takes a part of the cluster away until the answer is dropped.
    pub fn without(&self, part: &'static str, how: Action) -> Away<'_> {
        let back = match how {
            Action::Pause => Action::Resume,
            _ => Action::Start,
        };
        let done = self.cluster.component(part, how);
        done.unwrap_or_else(|error| panic!("{how:?} {part}: {error}"));
        Away {
            installed: self,
            undo: Some(Undo::Component(part, back)),
        }
    }

    /// Takes the operator away until the answer is dropped.
    pub fn without_operator(&self) -> Away<'_> {
        self.without_deployment("operator", 1)
    }

    /// Takes both responders away until the answer is dropped.
    pub fn without_responders(&self) -> Away<'_> {
        self.without_deployment("responder", 2)
    }

    fn without_deployment(&self, component: &'static str, replicas: u8) -> Away<'_> {
        let away = Away {
            installed: self,
            undo: Some(Undo::Deployment(component, replicas)),
        };
        self.scale(component, 0)
            .unwrap_or_else(|error| panic!("stop {component}: {error}"));
        away
    }

    fn scale(&self, component: &str, replicas: u8) -> Result<(), String> {
        let deployment = format!("deployment/vitrine-{component}");
        let replicas_flag = format!("--replicas={replicas}");
        self.try_kubectl(&["-n", NAMESPACE, "scale", &deployment, &replicas_flag])?;
        if replicas == 0 {
            let selector = format!("app.kubernetes.io/component={component}");
            self.try_kubectl(&[
                "-n",
                NAMESPACE,
                "wait",
                "--for=delete",
                "pod",
                "-l",
                &selector,
                "--timeout=60s",
            ])?;
        }
        Ok(())
    }

    /// Changes the platform's policy until the answer is dropped.
    pub fn with_policy(&self, patch: &str, back: &str) -> Away<'_> {
        self.patch_policy(patch);
        Away {
            installed: self,
            undo: Some(Undo::Policy(back.to_owned())),
        }
    }

    /// Lets images come from elsewhere until the answer is dropped.
    pub fn with_mirror(&self, repositories: &[&str]) -> Away<'_> {
        let patch =
            |repositories: &[&str]| json!({"spec": {"images": {"repositories": repositories}}}).to_string();
        self.with_policy(&patch(repositories), &patch(&MIRROR))
    }

    /// Gives the probe five seconds to prove isolation, and not the chart's thirty, until the answer is dropped.
    pub fn with_hasty_proof(&self) -> Away<'_> {
        self.with_policy(
            r#"{"spec":{"proofDeadline":"5s"}}"#,
            r#"{"spec":{"proofDeadline":"30s"}}"#,
        )
    }

    /// Changes the platform's policy once more, while the answer of [`Self::with_policy`] is held, which brings it back.
    pub fn patch_policy(&self, patch: &str) {
        self.try_patch_policy(patch)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    fn try_patch_policy(&self, patch: &str) -> Result<(), String> {
        self.try_kubectl(&["patch", "previewpolicy", "default", "--type=merge", "-p", patch])
            .map(drop)
    }

    /// Takes kubectl off the owners of the policy's fields: beside Helm, it would have the next upgrade that changes one refused.
    fn disown_policy(&self) -> Result<(), String> {
        let policy = ["previewpolicy", "default"];
        let read = [&["get", "--show-managed-fields", "-o", "json"][..], &policy].concat();
        let read: serde_json::Value =
            serde_json::from_str(&self.try_kubectl(&read)?).map_err(|error| error.to_string())?;
        let owners = read["metadata"]["managedFields"].as_array();
        let kubectl = owners
            .into_iter()
            .flatten()
            .position(|owner| owner["manager"] == "kubectl-patch");
        let Some(index) = kubectl else {
            return Ok(());
        };
        let path = format!("/metadata/managedFields/{index}");
        let patch = json!([
            {"op": "test", "path": format!("{path}/manager"), "value": "kubectl-patch"},
            {"op": "remove", "path": path},
        ]);
        self.try_kubectl(&[&["patch", "--type=json", "-p", &patch.to_string()][..], &policy].concat())
            .map(drop)
    }

    /// The connections that came from these addresses after a hit number.
    pub fn hits_from(&self, addresses: &[String], after: u64) -> Vec<Hit> {
        let hits = self.cluster.hits().unwrap_or_else(|error| panic!("{error}"));
        assert!(
            hits.dropped <= after,
            "the record of hits has lost some that this test needs"
        );
        let from = |hit: &Hit| addresses.contains(&hit.source.ip().to_string());
        hits.recent
            .into_iter()
            .filter(|hit| hit.id > after && from(hit))
            .collect()
    }

    /// The number of the newest hit.
    pub fn newest_hit(&self) -> u64 {
        self.cluster
            .hits()
            .unwrap_or_else(|error| panic!("{error}"))
            .total
    }

    /// Sends a request to the gateway and returns the connection, to be read.
    pub async fn send(&self, host: &str, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .unwrap_or_else(|error| panic!("the gateway at port {}: {error}", self.port));
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
        let text = format!("{line} HTTP/1.1\r\nHost: {host}:{}\r\n{headers}\r\n", self.port);
        let sent = stream.write_all(text.as_bytes()).await;
        sent.unwrap_or_else(|error| panic!("the gateway hung up on {line}: {error}"));
        stream
    }

    /// Asks the gateway: a request line without its version, then header lines.
    pub async fn ask(&self, host: &str, request: &str) -> Answer {
        let mut stream = self.send(host, &format!("{request}\nConnection: close")).await;
        let mut bytes = vec![];
        let read = timeout(Duration::from_secs(15), stream.read_to_end(&mut bytes)).await;
        assert!(
            matches!(read, Ok(Ok(_))),
            "the gateway did not finish its answer to {request}: {read:?}"
        );
        Answer::read(&String::from_utf8_lossy(&bytes))
    }
}

/// What the gateway answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header lines.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no HTTP answer: {text:?}")),
            headers: lines.map(str::to_owned).collect(),
            body: body.to_owned(),
        }
        .whole()
    }

    fn whole(mut self) -> Self {
        if self
            .header("transfer-encoding")
            .is_some_and(|value| value == "chunked")
        {
            self.body = unchunked(&self.body);
        }
        self
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A body in chunks (RFC 9112, section 7.1), put together.
fn unchunked(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let chunk = usize::from_str_radix(size, 16)
            .ok()
            .and_then(|size| after.get(..size));
        match chunk {
            None | Some("") => break,
            Some(chunk) => {
                whole += chunk;
                rest = after[chunk.len()..].trim_start_matches("\r\n");
            }
        }
    }
    whole
}

enum Undo {
    Component(&'static str, Action),
    Deployment(&'static str, u8),
    Policy(String),
}

/// Something that is away; dropping brings it back.
pub struct Away<'a> {
    installed: &'a Installed,
    undo: Option<Undo>,
}

impl Away<'_> {
    /// Brings it back, which must succeed.
    pub fn back(mut self) {
        if let Err(error) = self.restore() {
            panic!("bring back: {error}");
        }
    }

    fn restore(&mut self) -> Result<(), String> {
        let cluster = &self.installed.cluster;
        match self.undo.take() {
            None => Ok(()),
            Some(Undo::Component(part, action)) => {
                cluster.component(part, action).map_err(|error| error.to_string())
            }
            Some(Undo::Deployment(component, replicas)) => self.installed.scale(component, replicas),
            Some(Undo::Policy(patch)) => {
                self.installed.try_patch_policy(&patch)?;
                self.installed.disown_policy()
            }
        }
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!("what the test took away could not be brought back: {error}");
        }
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since 1970 of a time in a status.
pub fn millis(time: &Timestamp) -> u64 {
    u64::try_from(time.as_millisecond()).unwrap_or(0)
}

/// A test's own namespace with listings and previews. Deleted at the end, which ends what is left of them.
pub struct Shop {
    /// The installation.
    pub vitrine: &'static Installed,
    /// A client of this test's own: clients belong to the runtime that made them.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Shop {
    /// Opens a shop.
    pub async fn open(name: &str) -> Self {
        let vitrine = installed().await;
        let client = client(&vitrine.target).await;
        // A cluster that is used by hand sees a test more than once.
        let namespace = format!("{name}-{}", now_ms() % 10_000_000);
        objects::shop(&client, &namespace)
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            vitrine,
            client,
            namespace,
        }
    }

    /// Closes it.
    pub async fn close(self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let deleted = namespaces.delete(&self.namespace, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("close the shop: {error}"));
    }

    /// Its previews.
    pub fn previews(&self) -> Api<PreviewSandbox> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The objects of one kind in a namespace.
    pub fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Offers a product.
    pub async fn offer(&self, listing: &SkuListing) {
        let api: Api<SkuListing> = self.within(&self.namespace);
        let created = api.create(&PostParams::default(), listing).await;
        created.unwrap_or_else(|error| panic!("offer {}: {error}", listing.name_any()));
    }

    /// Offers a product that is a script.
    pub async fn offer_script(&self, name: &str, script: &str) {
        self.offer(&objects::script(name, &self.vitrine.busybox, script))
            .await;
    }

    /// Asks for a preview, for a subject of its own.
    pub async fn ask(&self, name: &str, listing: &str, ttl: &str) -> PreviewSandbox {
        let subject = format!("{}-{name}", self.namespace);
        self.ask_for(objects::preview(name, listing, &subject, Some(ttl)))
            .await
    }

    /// Asks for a preview.
    pub async fn ask_for(&self, preview: PreviewSandbox) -> PreviewSandbox {
        let created = self.previews().create(&PostParams::default(), &preview).await;
        created.unwrap_or_else(|error| panic!("ask for {}: {error}", preview.name_any()))
    }

    /// Waits until a preview's status is as wanted.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&PreviewSandboxStatus) -> bool,
    ) -> PreviewSandboxStatus {
        let api = self.previews();
        let seen = objects::until(&api, name, what, patience, |p| {
            p.status.as_ref().is_some_and(&wanted)
        })
        .await;
        seen.unwrap_or_else(|error| panic!("{error}"))
            .status
            .unwrap_or_default()
    }

    /// Waits until a preview is ready; panics at once if it has come to an end instead.
    pub async fn ready(&self, name: &str) -> Live {
        let over = |s: &PreviewSandboxStatus| {
            matches!(
                s.phase,
                Phase::Ready | Phase::Ending | Phase::Ended | Phase::Failed | Phase::Refused
            )
        };
        let status = self.until(name, "ready", READY, over).await;
        assert_eq!(
            status.phase,
            Phase::Ready,
            "{name}: {:?} {:?}",
            status.reason,
            status.message
        );
        let preview = self.previews().get(name).await;
        Live::of(&preview.unwrap_or_else(|error| panic!("{name}: {error}")))
    }

    /// Offers a script, asks for a preview of it and waits until it is ready.
    pub async fn live(&self, name: &str, script: &str, ttl: &str) -> Live {
        self.offer_script(name, script).await;
        self.ask(name, name, ttl).await;
        self.ready(name).await
    }

    /// Waits until a preview that was asked for is told that the network does not confine it, and requires that it was never ready;
    /// what it was told.
    pub async fn not_enforced(&self, name: &str) -> String {
        let told = self
            .until(name, "told", READY, |s| {
                matches!(s.phase, Phase::Ready | Phase::Ending) || s.phase.is_terminal()
            })
            .await;
        assert_eq!(told.reason, Some(StatusReason::NetworkNotEnforcing), "{told:?}");
        let over = self.over(name).await;
        assert!(over.started_at.is_none(), "it was never ready: {over:?}");
        told.message.unwrap_or_default()
    }

    /// Waits until nothing of a preview is left and returns its last status.
    pub async fn over(&self, name: &str) -> PreviewSandboxStatus {
        self.until(name, "over", END, |s| s.phase.is_terminal()).await
    }

    /// The events about a preview, as `reason: note`.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<Event> = self.within(&self.namespace);
        let list = api.list(&ListParams::default()).await;
        let list = list.unwrap_or_else(|error| panic!("list events: {error}"));
        list.items
            .iter()
            .filter(|event| event.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name))
            .map(|event| {
                format!(
                    "{}: {}",
                    event.reason.as_deref().unwrap_or_default(),
                    event.note.as_deref().unwrap_or_default()
                )
            })
            .collect()
    }

    /// The event of this reason about a preview, as `reason: note`. Events are written beside what they tell of, and may come after it.
    pub async fn told(&self, name: &str, reason: &str) -> String {
        eventually(&format!("the event {reason} of {name}"), READY, async || {
            let events = self.events(name).await;
            let told = events
                .iter()
                .find(|event| event.starts_with(&format!("{reason}: ")));
            told.cloned().ok_or_else(|| events.join("\n"))
        })
        .await
    }

    /// Runs a script in a pod of a namespace, under nobody's policies but those of the namespace.
    pub async fn bare_pod(&self, namespace: &str, name: &str, script: &str) {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        self.bare_pod_of(namespace, name, &self.vitrine.busybox, &command)
            .await;
    }

    /// The same, of another image.
    pub async fn bare_pod_of(&self, namespace: &str, name: &str, image: &Image, command: &[String]) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false,
                "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}],
                "containers": [{"name": "main", "volumeMounts": [{"name": "data", "mountPath": "/data"}], "image": image.by_digest(),
                    "imagePullPolicy": "IfNotPresent", "command": command}]
            }
        }))
        .unwrap_or_else(|error| panic!("the pod {name} is wrong: {error}"));
        self.put_pod(namespace, &pod).await;
    }

    /// Creates a pod in a namespace as it is.
    pub async fn put_pod(&self, namespace: &str, pod: &Pod) {
        let api: Api<Pod> = self.within(namespace);
        // A new namespace has its ServiceAccount a moment later.
        eventually("a bare pod is taken", Duration::from_secs(20), async || {
            let created = api.create(&PostParams::default(), pod).await;
            created.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    /// A bare pod's address, once it has one.
    pub async fn address(&self, namespace: &str, name: &str) -> String {
        let api: Api<Pod> = self.within(namespace);
        eventually("the pod has an address", Duration::from_secs(30), async || {
            let pod = api.get(name).await.map_err(|error| error.to_string())?;
            let status = pod.status.unwrap_or_default();
            status.pod_ip.ok_or_else(|| "it has none".to_owned())
        })
        .await
    }

    /// What a bare pod has left in /dev/termination-log at its end.
    pub async fn last_words(&self, namespace: &str, name: &str) -> String {
        let api: Api<Pod> = self.within(namespace);
        eventually("the pod ends", Duration::from_secs(60), async || {
            let pod = api.get(name).await.map_err(|error| error.to_string())?;
            let status = pod.status.unwrap_or_default();
            let ended = status
                .container_statuses
                .iter()
                .flatten()
                .find_map(|c| c.state.as_ref()?.terminated.clone());
            ended
                .map(|ended| ended.message.unwrap_or_default())
                .ok_or_else(|| format!("{:?}", status.phase))
        })
        .await
    }

    /// The address of one of Vitrine's own Services.
    pub async fn house(&self, service: &str) -> String {
        let api: Api<Service> = self.within(NAMESPACE);
        let service = api.get(service).await;
        let spec = service.unwrap_or_else(|error| panic!("{error}")).spec;
        spec.and_then(|spec| spec.cluster_ip)
            .unwrap_or_else(|| panic!("a Service of Vitrine has no address"))
    }

    /// Waits until no namespace is being deleted. To be called before the API server is restarted: in its first second it
    /// serves no custom resources yet, and the namespace controller, which asks what there is, then removes a namespace and
    /// leaves the previews in it behind, where nobody can write them any more.
    pub async fn no_namespace_is_going(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        eventually("no namespace is being deleted", END, async || {
            let list = namespaces.list(&ListParams::default()).await;
            let mut list = list.map_err(|error| error.to_string())?.items;
            list.retain(|namespace| namespace.metadata.deletion_timestamp.is_some());
            let names: Vec<_> = list.iter().map(ResourceExt::name_any).collect();
            if names.is_empty() {
                Ok(())
            } else {
                Err(names.join(", "))
            }
        })
        .await;
    }

    /// The slots of all previews.
    pub fn slots(&self) -> Api<Lease> {
        self.within(SLOTS)
    }

    /// Requires that nothing of a preview is left but its receipt.
    pub async fn nothing_left(&self, live: &Live) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace = namespaces.get_opt(&live.cell).await;
        let slot = self.slots().get_opt(&live.slot).await;
        let had = |namespace: &Namespace| {
            let record = Record::of(&namespace.metadata);
            let nonce = live.status.pod.as_ref().and_then(|pod| pod.nonce.clone());
            record.is_none_or(|record| {
                record.tenant.as_ref() == Some(&live.uid)
                    || Some(names::nonce(&live.cell, &record.epoch)) == nonce
            })
        };
        let free = matches!(&namespace, Ok(there) if !there.as_ref().is_some_and(had));
        assert!(
            free && matches!(slot, Ok(None)),
            "{}: {namespace:?} {slot:?}",
            live.name
        );
        assert_eq!(self.processes(&live.pod), "", "processes of its pod");
    }

    /// What runs on the node of a pod with this uid.
    pub fn processes(&self, pod: &str) -> String {
        self.each_process(pod, "tr '\\0' ' ' < $p/cmdline && echo")
    }

    /// Runs a shell command for each process on the node of a pod with this uid, with `$p` its folder below /proc. What the
    /// commands printed.
    pub fn each_process(&self, pod: &str, command: &str) -> String {
        // The kubelet's cgroup of a pod carries the pod's uid.
        let look = format!(
            "for p in /proc/[0-9]*; do grep -qE '{pod}|{}' $p/cgroup 2>/dev/null && {command}; done; true",
            pod.replace('-', "_")
        );
        let output = self.vitrine.cluster.exec(Place::HostMounts, &["sh", "-c", &look]);
        output.unwrap_or_else(|error| panic!("{error}")).stdout
    }
}

/// A preview that is ready.
#[derive(Clone, Debug)]
pub struct Live {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its cell.
    pub cell: String,
    /// Its pod's address.
    pub ip: String,
    /// Its pod's uid.
    pub pod: String,
    /// Its slot.
    pub slot: String,
    /// Its host.
    pub host: String,
    /// Path and query of its link.
    pub open: String,
    /// When it ends, milliseconds since 1970.
    pub expires_ms: u64,
    /// Its status when it was ready.
    pub status: PreviewSandboxStatus,
}

impl Live {
    fn of(preview: &PreviewSandbox) -> Self {
        let status = preview.status.clone().unwrap_or_default();
        let url = status.url.clone().unwrap_or_default();
        let (origin, open) = url
            .trim_start_matches("http://")
            .split_once('/')
            .unwrap_or_else(|| panic!("the link {url:?} is none"));
        let pod = status
            .pod
            .clone()
            .unwrap_or_else(|| panic!("a ready preview without a pod"));
        let uid = preview.uid().unwrap_or_default();
        Self {
            name: preview.name_any(),
            cell: status.cell.clone().unwrap_or_default(),
            uid,
            ip: pod.ip.unwrap_or_default(),
            pod: pod.uid,
            slot: status.slots.first().cloned().unwrap_or_default(),
            host: origin.split(':').next().unwrap_or_default().to_owned(),
            open: format!("/{open}"),
            expires_ms: status.expires_at.as_ref().map_or(0, |t| millis(&t.0)),
            status,
        }
    }

    /// Exchanges the link for the cookie, as a header line.
    pub async fn cookie(&self, vitrine: &Installed) -> String {
        let answer = vitrine.ask(&self.host, &format!("GET {}", self.open)).await;
        assert_eq!(answer.status, 303, "{answer:?}");
        let cookie = answer.header("set-cookie").unwrap_or_default().to_owned();
        format!("Cookie: {}", cookie.split(';').next().unwrap_or_default())
    }

    /// A page of the product, through the gateway.
    pub async fn page(&self, vitrine: &Installed, path: &str) -> Answer {
        let cookie = self.cookie(vitrine).await;
        vitrine.ask(&self.host, &format!("GET {path}\n{cookie}")).await
    }
}

/// Whether a preview is ending and its node has not proven that yet.
pub fn is_unproven(status: &PreviewSandboxStatus) -> bool {
    conditions::find(&status.conditions, types::TORN_DOWN)
        .is_some_and(|c| c.message.contains("has not shown every container terminated"))
}

/// Whether a preview has ended for this reason, its end seen.
pub fn assert_verified(status: &PreviewSandboxStatus, cause: StatusReason) {
    let receipt = status.receipt.as_ref();
    let receipt = receipt.unwrap_or_else(|| panic!("no receipt: {status:?}"));
    assert_eq!(
        receipt.cause, cause,
        "{:?} {:?}",
        status.message, status.conditions
    );
    assert_eq!(
        receipt.result,
        vitrine_crds::preview_sandbox::EndResult::Verified,
        "{status:?}"
    );
}
