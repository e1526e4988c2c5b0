//! `helm uninstall` with live previews ends them first, proven, and leaves no cell; after it Vitrine can be installed anew.
//! In a binary of its own: nothing else can run without Vitrine.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Namespace};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use vitrine_devcluster::progress;
use vitrine_e2e::installed::{Shop, alone, now_ms};
use vitrine_kit::{install, objects};
use vitrine_policies::names;

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_ends_live_previews_and_leaves_no_cell_and_installing_again_works() {
    let _alone = alone().await;
    let shop = Shop::open("uninstall").await;
    shop.offer_script("page", objects::SERVE).await;
    for name in ["one", "two"] {
        shop.ask(name, "page", "10m").await;
    }
    let (one, two) = (shop.ready("one").await, shop.ready("two").await);
    let begun = now_ms();
    let done = install::uninstall(&shop.vitrine.target, &*progress::for_stderr(true));
    done.unwrap_or_else(|error| panic!("{error}"));
    println!("uninstalled after {} ms", now_ms() - begun);

    assert!(
        shop.previews()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    for live in [&one, &two] {
        let receipt = shop.told(&live.name, "Receipt").await;
        assert!(receipt.contains(r#""result":"verified""#), "{receipt}");
        assert!(receipt.contains(r#""cause":"Deleted""#), "{receipt}");
    }
    let namespaces: Api<Namespace> = Api::all(shop.client.clone());
    let cells = namespaces
        .list(&ListParams::default().labels(names::CELL_SELECTOR))
        .await
        .unwrap();
    // The sentinel is the chart's own, and may still be going.
    let mut cells = cells.items;
    cells.retain(|cell| cell.name_any() != names::SENTINEL);
    assert!(cells.is_empty(), "{cells:?}");
    let leases: Api<Lease> = shop.within("vitrine-slots");
    let slots = leases.list(&ListParams::default()).await.unwrap().items;
    assert!(slots.is_empty(), "{slots:?}");

    // The namespaces of the slots and the sentinel go with the chart, and must be gone before others are made.
    for name in ["vitrine-slots", names::SENTINEL] {
        let what = format!("namespace {name} is gone");
        vitrine_e2e::eventually::eventually(&what, std::time::Duration::from_secs(60), async || {
            match namespaces.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    shop.vitrine.install();
    shop.vitrine.lead_again().await;
    shop.ask("again", "page", "1m").await;
    let again = shop.ready("again").await;
    assert_eq!(again.page(shop.vitrine, "/").await.body, "hello\n");
    let deleted = shop.previews().delete("again", &DeleteParams::default()).await;
    deleted.unwrap();
    shop.close().await;
}
