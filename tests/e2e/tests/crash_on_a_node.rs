//! The operator is killed around the pod's creation and its deletion, with real containers on a real node: the preview comes to
//! the same end, and nothing of it runs on. The other writes of a life are killed at in `crash`, where nodes run nothing.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt, api::ListParams};
use vitrine_crds::StatusReason;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Shop, alone, assert_verified},
    operator::{self, Identity, Operator, Options, Post},
    proxy::{Blow, Moment, Proxy, Trap},
};
use vitrine_kit::{install, objects};
use vitrine_policies::{cell::record::Record, names};

/// The shortest that the chart's PreviewPolicy allows here.
const TTL: &str = "5s";
/// Longer than any life here.
const LIFE: Duration = Duration::from_secs(60);
/// Before these the pod cannot run; after these it may, and nobody has written down that it does, or that it no longer should.
const WRITES: [&str; 2] = ["POST pods", "DELETE pods"];

#[tokio::test(flavor = "multi_thread")]
async fn no_container_outlives_a_preview_whose_operator_was_killed_at_the_pods_creation_or_deletion() {
    let _alone = alone().await;
    let begun = Instant::now();
    let shop = Shop::open("crash-node").await;
    let cluster = &shop.vitrine.cluster;
    let installed = shop.vitrine.without_operator();
    let responder =
        install::service_address(&shop.client, vitrine_kit::install::NAMESPACE, "vitrine-responder")
            .await
            .unwrap();
    let prober = cluster.forward(0, responder).unwrap();
    let post = Post {
        folder: operator::folder("crash-node"),
        kubeconfig: cluster.kubeconfig().to_owned(),
        image: shop.vitrine.operator.by_digest(),
        prober: format!("http://127.0.0.1:{prober}"),
        url: Some(shop.vitrine.url()),
        identity: Identity::Installed,
    };
    let proxy = Proxy::start(shop.client.clone()).await;
    shop.offer_script("page", objects::SERVE).await;

    let mut cases = vec![];
    for label in WRITES {
        for moment in [Moment::Before, Moment::After] {
            let name = format!("case-{}", cases.len());
            shop.ask(&name, "page", TTL).await;
            let operator = Operator::start(&post, &Options::alone(&name), Some(&proxy));
            let mut fires = proxy.arm(Trap {
                label: label.to_owned(),
                nth: 0,
                moment,
                keys: vec![names::CELL_PREFIX.to_owned()],
                blow: Blow::Kill(operator.victim()),
            });
            eventually(
                &format!("{name} is killed, {moment:?} {label}"),
                LIFE,
                async || {
                    let Err(_) = fires.try_recv() else {
                        return Ok(());
                    };
                    let preview = shop.previews().get(&name).await;
                    let status = preview.map(|preview| preview.status);
                    Err(format!("{status:?}\n{}", operator.last_words()))
                },
            )
            .await;
            cases.push(name);
        }
    }
    // Whoever comes next finds four lives broken off.
    installed.back();
    for name in &cases {
        let over = shop.over(name).await;
        assert_verified(&over, StatusReason::TimeOver);
        let pod = over.pod.unwrap().uid;
        assert_eq!(shop.processes(&pod), "", "{name}: processes of its pod");
    }
    let cells: Api<Namespace> = Api::all(shop.client.clone());
    let cells = cells.list(&ListParams::default()).await.unwrap().items;
    let had = |cell: &&Namespace| {
        Record::of(&cell.metadata).is_some_and(|record| record.tenant.is_some() || record.going)
    };
    let had: Vec<_> = cells.iter().filter(had).map(ResourceExt::name_any).collect();
    assert!(had.is_empty(), "{had:?}");
    let slots = shop.slots().list(&ListParams::default()).await.unwrap().items;
    assert!(slots.is_empty(), "{slots:?}");
    println!(
        "crash on a node: {} cases, {} s",
        cases.len(),
        begun.elapsed().as_secs()
    );
    cluster.unforward(prober).unwrap();
    shop.close().await;
}
