//! The custom resources in a cluster of the tests. Runs helm once a test binary; talks to the cluster.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use vitrine_devcluster::{Cluster, progress};
use vitrine_kit::install;

use crate::clusters;

/// How long the API server may take from "established" to serving: seconds, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(100);

/// Installs the chart of the custom resources, once, and waits until the API server serves each of them.
///
/// # Panics
/// If Helm refuses or the API server does not serve them.
pub async fn installed(cluster: &Cluster) -> Client {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let target = clusters::target(cluster);
    INSTALLED.get_or_init(|| {
        install::install_crds(&target, progress::for_stderr(true).as_ref())
            .unwrap_or_else(|error| panic!("{error}"));
    });
    // Not shared between tests: each has a runtime of its own, and a client dies with the runtime that made it.
    let client = target.client().await.unwrap_or_else(|error| panic!("{error}"));
    let begun = Instant::now();
    for (_, crd) in vitrine_crds::generate::all() {
        let (names, version) = (&crd.spec.names, &crd.spec.versions[0].name);
        let gvk = GroupVersionKind::gvk(&crd.spec.group, version, &names.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, &names.plural);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        while let Err(error) = api.list(&ListParams::default().limit(1)).await {
            assert!(
                begun.elapsed() < PATIENCE,
                "{} is not served: {error}",
                names.plural
            );
            tokio::time::sleep(POLL).await;
        }
    }
    client
}
