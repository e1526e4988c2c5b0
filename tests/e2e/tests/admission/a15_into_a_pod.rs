//! Attack 15: past every NetworkPolicy there are ways into a pod that lead through the API server.

use vitrine_e2e::installed::{SRE, together};
use vitrine_policies::names;

use super::{ADMIN, As, live};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_into_a_preview() {
    let _together = together().await;
    let (shop, live) = live("into").await;
    let cell = live.cell.as_str();
    for who in [ADMIN, SRE] {
        let somebody = As(shop.vitrine, who);
        somebody.refused(
            "vitrine-cells",
            &["-n", cell, "exec", names::POD, "-c", names::PRODUCT, "--", "true"],
        );
        somebody.refused(
            "vitrine-cells",
            &["-n", cell, "attach", names::POD, "-c", names::PRODUCT],
        );
        somebody.refused("vitrine-cells", &["-n", cell, "port-forward", names::POD, "8090"]);
        let proxy = format!("/api/v1/namespaces/{cell}/pods/{}:8090/proxy/", names::POD);
        somebody.refused("vitrine-cells", &["get", "--raw", &proxy]);
        let debug = [
            "-n",
            cell,
            "debug",
            names::POD,
            "--image=busybox",
            "--profile=restricted",
        ];
        somebody.refused("vitrine-cells", &debug);
    }
    assert_eq!(live.page(shop.vitrine, "/").await.body, "hello\n");
    shop.close().await;
}
