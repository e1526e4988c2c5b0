//! Vitrine on a cluster whose nodes run nothing: everything that Helm would install but the pods, and a stub of the prober.
//!
//! The operators run beside the cluster as processes of the test (`operator`), with the rights that the chart gives them. One
//! test at a time has the house: an operator serves the whole cluster. Writes the cluster; listens on one port.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, Service},
    events::v1::Event,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Mutex, MutexGuard},
};
use vitrine_crds::{PreviewPolicy, PreviewPool, PreviewSandbox, SkuListing};
use vitrine_devcluster::{Cluster, Level, progress, tools};
use vitrine_kit::{audit, images, install::NAMESPACE, objects, program};
use vitrine_policies::{cell::record::Record, names, slots};

use crate::{
    clusters, crds,
    eventually::eventually,
    operator::{self, Identity, OPERATORS, Post, RECEIPTS, SLOTS},
    request,
    turn::Turn,
};

/// Vitrine's image, which nobody pulls here.
const IMAGE: &str =
    "vitrine.local/operator@sha256:1111111111111111111111111111111111111111111111111111111111111111";
/// The listing that every test finds in its shop.
pub const LISTING: &str = "stub";
/// What a preview takes here from its creation to being ready is below two seconds; this is for a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

static ALONE: Mutex<()> = Mutex::const_new(());

/// The house, as long as a test has it.
pub struct House {
    /// The cluster.
    pub cluster: Cluster,
    /// Its administrator.
    pub client: Client,
    /// The namespace that the test's previews are in.
    pub shop: String,
    /// How operators are started for it.
    pub post: Post,
    _alone: Turn<MutexGuard<'static, ()>>,
}

impl House {
    /// Takes the house, once the test before has left it, clears away what that one left, and opens a shop.
    ///
    /// # Panics
    /// If something cannot be set up: then no test can go on.
    pub async fn take(shop: &str, per_subject: i32, retention: &str) -> Self {
        let alone = Turn::begin(ALONE.lock().await);
        // Another test may have installed the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let cluster = clusters::shared(Level::Scale);
        let client = crds::installed(&cluster).await;
        let post = Post {
            folder: operator::folder(shop),
            kubeconfig: cluster.kubeconfig().to_owned(),
            image: IMAGE.to_owned(),
            prober: prober().await,
            url: None,
            identity: Identity::Own,
        };
        let house = Self {
            shop: shop.to_owned(),
            cluster,
            client,
            post,
            _alone: alone,
        };
        operator::program();
        for namespace in [NAMESPACE, SLOTS, RECEIPTS, shop] {
            let made = objects::shop(&house.client, namespace).await;
            made.expect("a namespace");
        }
        house.clear().await;
        house.services().await;
        house.rights();
        house.set_policy(per_subject, retention).await;
        house.list(LISTING, "").await;
        house
    }

    /// The previews of the shop.
    pub fn previews(&self) -> Api<PreviewSandbox> {
        Api::namespaced(self.client.clone(), &self.shop)
    }

    /// The slots.
    pub fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), SLOTS)
    }

    /// Receipts without a preview.
    pub fn receipts(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), RECEIPTS)
    }

    /// Sets the platform's policy.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn set_policy(&self, per_subject: i32, retention: &str) {
        self.limit(json!({"perSubject": per_subject}), retention).await;
    }

    /// Sets the platform's policy, with all its limits.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn limit(&self, limits: Value, retention: &str) {
        self.policy(json!({"limits": limits, "retention": retention}))
            .await;
    }

    /// Sets the platform's policy: what every test has, and these fields.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn policy(&self, fields: Value) {
        let mut policy = json!({
            "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPolicy", "metadata": {"name": "default"},
            "spec": {
                "ttl": {"min": "1s", "max": "30m", "default": "20m"},
                "provisioningDeadline": "2m",
                "size": {"max": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi"}},
                "isolation": {"internet": ["203.0.113.10:80"]}
            }
        });
        if let (Some(spec), Value::Object(fields)) = (policy["spec"].as_object_mut(), fields) {
            spec.extend(fields);
        }
        put(
            &Api::<PreviewPolicy>::all(self.client.clone()),
            "default",
            &policy,
        )
        .await;
    }

    /// Puts a listing into the shop whose pods fare as told.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn list(&self, name: &str, outcome: &str) {
        self.put_listing(objects::stub(name, outcome)).await;
    }

    /// Puts a listing of another seller into the shop.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn list_of(&self, name: &str, seller: &str) {
        let mut listing = objects::stub(name, "");
        listing.spec.seller = seller.to_owned();
        self.put_listing(listing).await;
    }

    async fn put_listing(&self, listing: SkuListing) {
        let api: Api<SkuListing> = Api::namespaced(self.client.clone(), &self.shop);
        put(
            &api,
            &listing.name_any(),
            &serde_json::to_value(&listing).expect("a listing is JSON"),
        )
        .await;
    }

    /// Makes a preview of the shop's listing.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn preview(&self, name: &str, subject: &str, ttl: Option<&str>) -> PreviewSandbox {
        self.create(&objects::preview(name, LISTING, subject, ttl)).await
    }

    /// Every cell, by its name.
    ///
    /// # Panics
    /// If the API server does not answer.
    pub async fn cells(&self) -> Vec<(String, Record)> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        let all = all
            .list_metadata(&ListParams::default())
            .await
            .expect("namespaces are listed");
        let cells = all
            .items
            .iter()
            .filter_map(|cell| Some((cell.name_any(), Record::of(&cell.metadata)?)));
        cells.collect()
    }

    /// Makes this very preview.
    ///
    /// # Panics
    /// If the API server refuses it.
    pub async fn create(&self, preview: &PreviewSandbox) -> PreviewSandbox {
        let made = self.previews().create(&PostParams::default(), preview).await;
        made.unwrap_or_else(|error| panic!("preview {}: {error}", preview.name_any()))
    }

    /// Waits until a preview is as wanted.
    ///
    /// # Panics
    /// If it is not in time.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&PreviewSandbox) -> bool,
    ) -> PreviewSandbox {
        let waited = objects::until(&self.previews(), name, what, patience, wanted).await;
        waited.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until a preview is gone.
    ///
    /// # Panics
    /// If it is not in time.
    pub async fn until_gone(&self, name: &str, patience: Duration) {
        let what = format!("preview {name} is gone");
        eventually(&what, patience, async || {
            match self.previews().get_opt(name).await {
                Ok(None) => Ok(()),
                Ok(Some(preview)) => Err(serde_json::to_string(&preview.status).unwrap_or_default()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    /// Asks for the end of a preview; it may be gone already.
    ///
    /// # Panics
    /// If the API server refuses.
    pub async fn delete(&self, name: &str) {
        match self.previews().delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => panic!("preview {name}: {error}"),
        }
    }

    /// How far the API server has told what was written.
    ///
    /// # Panics
    /// If the cluster has no audit log.
    pub fn mark(&self) -> audit::Mark {
        audit::mark(&self.cluster.audit_log()).expect("the cluster has an audit log")
    }

    /// What was written since then, as the API server tells it.
    ///
    /// # Panics
    /// If the cluster has no audit log.
    pub fn writes(&self, since: audit::Mark) -> Vec<audit::Write> {
        audit::read(&self.cluster.audit_log(), since).expect("the cluster has an audit log")
    }

    /// Cells that somebody has or that are being removed, slots, pods of cells and previews of the shop that there are: one line each.
    ///
    /// # Panics
    /// If the API server does not answer.
    pub async fn left(&self) -> Vec<String> {
        let cells = ListParams::default().labels(names::CELL_SELECTOR);
        let namespaces = all::<Namespace>(&Api::all(self.client.clone()), &ListParams::default()).await;
        let left = |namespace: &Namespace| {
            let record = Record::of(&namespace.metadata);
            // One without a record is nobody's, and nothing that may stay.
            namespace.name_any().starts_with(names::CELL_PREFIX)
                && record.is_none_or(|record| record.tenant.is_some() || record.going)
        };
        let mut left: Vec<String> = namespaces
            .iter()
            .filter(|n| left(n))
            .map(|n| format!("namespace {}", n.name_any()))
            .collect();
        let pods = all::<Pod>(&Api::all(self.client.clone()), &cells).await;
        left.extend(
            pods.iter()
                .map(|p| format!("pod of {}", p.namespace().unwrap_or_default())),
        );
        let leases = all(&self.leases(), &ListParams::default()).await;
        left.extend(leases.iter().map(|l| format!("slot {}", l.name_any())));
        let previews = all(&self.previews(), &ListParams::default()).await;
        left.extend(previews.iter().map(|p| format!("preview {}", p.name_any())));
        left
    }

    /// The events about a preview of the shop.
    ///
    /// # Panics
    /// If the API server does not answer.
    pub async fn events(&self, preview: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.shop);
        let mut events = all(&api, &ListParams::default()).await;
        let about = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.clone());
        events.retain(|event| about(event).as_deref() == Some(preview));
        events
    }

    /// The events about a preview of the shop, once this one is among them: they are written beside what they tell of, and may come
    /// after it.
    ///
    /// # Panics
    /// If it is not in time.
    pub async fn told(&self, preview: &str, reason: &str) -> Vec<Event> {
        eventually(
            &format!("the event {reason} of {preview}"),
            PATIENCE,
            async || {
                let events = self.events(preview).await;
                let told = events.iter().any(|event| event.reason.as_deref() == Some(reason));
                told.then_some(events.clone())
                    .ok_or_else(|| format!("{events:?}"))
            },
        )
        .await
    }

    /// Who leads the operators.
    ///
    /// # Panics
    /// If the API server does not answer.
    pub async fn leader(&self) -> Option<String> {
        let lease = self
            .leadership()
            .get_opt("vitrine-operator")
            .await
            .expect("leases can be read");
        lease?.spec?.holder_identity
    }

    /// The Lease of leadership.
    pub fn leadership(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Waits until nothing is left.
    ///
    /// # Panics
    /// If something stays.
    pub async fn until_empty(&self, patience: Duration) {
        eventually("nothing is left", patience, async || {
            let left = self.left().await;
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join(", "))
            }
        })
        .await;
    }

    /// Removes by force what a test before has left when it failed.
    async fn clear(&self) {
        let everything = ListParams::default();
        let previews: Api<PreviewSandbox> = Api::all(self.client.clone());
        // Also objects that cannot be read as previews: one test makes some.
        let previews = previews.list_metadata(&everything).await.expect("previews");
        for preview in previews {
            let api: Api<PreviewSandbox> =
                Api::namespaced(self.client.clone(), &preview.namespace().unwrap_or_default());
            strip(&api, &preview.name_any()).await;
        }
        // Before their cells, which would be made again.
        for pool in all::<PreviewPool>(&Api::all(self.client.clone()), &everything).await {
            let api: Api<PreviewPool> =
                Api::namespaced(self.client.clone(), &pool.namespace().unwrap_or_default());
            let _ = api.delete(&pool.name_any(), &DeleteParams::default()).await;
        }
        for namespace in all::<Namespace>(&Api::all(self.client.clone()), &everything).await {
            if namespace.name_any().starts_with(names::CELL_PREFIX) {
                strip(
                    &Api::<Pod>::namespaced(self.client.clone(), &namespace.name_any()),
                    names::POD,
                )
                .await;
                let api: Api<Namespace> = Api::all(self.client.clone());
                let _ = api.delete(&namespace.name_any(), &DeleteParams::default()).await;
            }
        }
        // A leader that was killed holds its lease for a while.
        strip(&self.leadership(), "vitrine-operator").await;
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.shop);
        let cleared = events
            .delete_collection(&DeleteParams::default(), &everything)
            .await;
        cleared.expect("the events are cleared");
        let slots = ListParams::default().labels(slots::DIMENSION_LABEL);
        let cleared = self
            .leases()
            .delete_collection(&DeleteParams::default(), &slots)
            .await;
        cleared.expect("the slots are cleared");
        let receipts = ListParams::default().labels(vitrine_receipts::names::STATE_LABEL);
        let cleared = self
            .receipts()
            .delete_collection(&DeleteParams::default(), &receipts)
            .await;
        cleared.expect("the receipts are cleared");
        self.until_empty(PATIENCE).await;
    }

    /// The Services whose addresses the operator needs. No pods are behind them: nothing here asks them anything.
    async fn services(&self) {
        for name in ["vitrine-responder", "vitrine-decoy", "vitrine-egress"] {
            self.service(name).await;
        }
    }

    /// Makes one of Vitrine's Services.
    ///
    /// # Panics
    /// If the API server refuses.
    pub async fn service(&self, name: &str) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"ports": [{"name": "http", "port": 8082, "protocol": "TCP"}]}
        });
        put(
            &Api::<Service>::namespaced(self.client.clone(), NAMESPACE),
            name,
            &service,
        )
        .await;
    }

    /// Gives the operators of the tests the chart's own rights, neither more nor less: a crash takes paths that nothing else
    /// takes, and each needs its right. And previews their priority.
    fn rights(&self) {
        let mut items = vec![];
        for mut object in self.rendered() {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            let is_role = kind.starts_with("Role") || kind.starts_with("ClusterRole");
            if kind == "PriorityClass" {
                items.push(object);
            } else if is_role && object["metadata"]["name"] == "vitrine-operator" {
                if let Some(subjects) = object.get_mut("subjects").and_then(Value::as_array_mut) {
                    subjects.push(
                        json!({"kind": "Group", "name": OPERATORS, "apiGroup": "rbac.authorization.k8s.io"}),
                    );
                }
                items.push(object);
            }
        }
        assert!(
            items.len() >= 5,
            "the chart has the operator's roles and the previews' priority: {items:?}"
        );
        self.apply("rights", &items);
    }

    /// Puts the chart's admission policies in force; from here on only the installed operator may do its work, as whom operators are
    /// started then.
    ///
    /// # Panics
    /// If the API server refuses them.
    pub fn admission(&mut self) {
        let name = "vitrine-operator";
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}});
        self.apply("account", &[account]);
        let token = self.kubectl(&["create", "token", name, "-n", NAMESPACE, "--duration=48h"]);
        self.post.identity = Identity::Token(token.trim().to_owned());
        let is_one = |object: &Value| {
            let group = object["apiVersion"].as_str();
            group.is_some_and(|group| group.starts_with("admissionregistration.k8s.io/"))
        };
        let items: Vec<_> = self.rendered().into_iter().filter(is_one).collect();
        assert!(items.len() >= 20, "the chart has policies and their bindings");
        self.apply("admission", &items);
    }

    /// What the chart would install here.
    fn rendered(&self) -> Vec<Value> {
        let charts = images::workspace().join("charts/vitrine");
        let helm = tools::ensure(&["helm"], progress::for_stderr(true).as_ref())
            .and_then(|tools| tools.binary("helm", "helm"))
            .expect("helm is built");
        let version: Value = serde_json::from_str(&self.kubectl(&["version", "--output=json"]))
            .expect("kubectl answers in JSON");
        let version = version["serverVersion"]["gitVersion"]
            .as_str()
            .unwrap_or_default();
        let (repository, digest) = self.post.image.split_once('@').expect("an image by digest");
        let mut arguments: Vec<String> = ["template", "vitrine", "-n", NAMESPACE, "--kube-version", version]
            .map(str::to_owned)
            .to_vec();
        arguments.push(format!(
            "--values={}",
            charts.join("ci/test-values.yaml").display()
        ));
        arguments.push(format!(
            "--set=image.repository={repository},image.digest={digest}"
        ));
        arguments.push(charts.display().to_string());
        let text = program::run(&helm, &arguments).expect("the chart is rendered");
        serde_yaml::Deserializer::from_str(&text)
            .filter_map(|document| Value::deserialize(document).ok())
            .collect()
    }

    fn apply(&self, name: &str, items: &[Value]) {
        let file = self.post.folder.join(format!("{name}.json"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(&file, list.to_string()).expect("a file is written");
        self.kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            &file.display().to_string(),
        ]);
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Panics
    /// If it says no.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let kubectl = self
            .cluster
            .binary("kubernetes", "kubectl")
            .expect("kubectl is built");
        let kubeconfig = self.cluster.kubeconfig().display().to_string();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(arguments);
        program::run(&kubectl, &all).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Creates an object or makes it be as given.
async fn put<K>(api: &Api<K>, name: &str, object: &Value)
where
    K: Clone + DeserializeOwned + std::fmt::Debug + Resource<DynamicType = ()>,
{
    let mut object = object.clone();
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    let params = PatchParams::apply("vitrine-e2e").force();
    let put = api.patch(name, &params, &Patch::Apply(object)).await;
    put.unwrap_or_else(|error| panic!("{} {name}: {error}", K::kind(&())));
}

async fn all<K>(api: &Api<K>, params: &ListParams) -> Vec<K>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let list = api.list(params).await;
    list.expect("the API server lists").items
}

/// Takes all finalizers off an object and deletes it, if it is there.
pub async fn strip<K>(api: &Api<K>, name: &str)
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    // Whether it was there is for the caller to see.
    let _ = api.patch_metadata(name, &PatchParams::default(), &bare).await;
    let now = DeleteParams::default().grace_period(0);
    let _ = api.delete(name, &now).await;
}

/// A prober to whom everything is up. Serves until the runtime ends.
async fn prober() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    format!("http://{address}")
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let Some(head) = request::head(&mut stream).await? else {
        return Ok(());
    };
    let targets = head.split_once("targets=").map_or("", |(_, rest)| rest);
    let targets = targets.split([' ', '&']).next().unwrap_or_default();
    let up: BTreeMap<_, _> = targets.split(',').map(|target| (target, "up")).collect();
    let body = json!(up).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await
}
