//! The end of a preview: at its time, by two clocks, and proven, whatever is restarted, stopped or deleted by force meanwhile.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a04_forced_deletion;
mod a06_operator_down;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout},
};
use vitrine_crds::{Phase, StatusReason, preview_sandbox::EndResult};
use vitrine_devcluster::{Action, Cluster, Place};
use vitrine_e2e::{
    eventually::eventually,
    installed::{END, Live, Shop, alone, assert_verified, now_ms, together},
};
use vitrine_kit::{install::NAMESPACE, objects};

/// Speaks five times a second for as long as it is listened to.
const TALKER: &str = r"mkdir -p /data/www/cgi-bin; echo hello > /data/www/index.html
cat > /data/www/cgi-bin/talk <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
while :; do echo tick; sleep 0.2; done
END
chmod +x /data/www/cgi-bin/talk; exec httpd -f -p 8090 -h /data/www";

/// Where the cluster's containerd reads its settings.
const CONTAINERD_CONFIG: &str = "/run/vitrine/containerd.toml";

/// Opens the endless page and waits for its first words.
async fn listen(shop: &Shop, live: &Live) -> TcpStream {
    let cookie = live.cookie(shop.vitrine).await;
    let mut stream = shop
        .vitrine
        .send(&live.host, &format!("GET /cgi-bin/talk\n{cookie}"))
        .await;
    let mut seen = String::new();
    let begun = Instant::now();
    while !seen.contains("tick") {
        assert!(begun.elapsed() < Duration::from_secs(10), "it said {seen:?}");
        let mut bytes = [0; 1024];
        let read = timeout(Duration::from_secs(10), stream.read(&mut bytes)).await;
        let length = read.unwrap().unwrap();
        assert!(length > 0, "it hung up after {seen:?}");
        seen += &String::from_utf8_lossy(&bytes[..length]);
    }
    stream
}

/// When a stream is cut, milliseconds since 1970.
async fn cut(mut stream: TcpStream, patience: Duration) -> u64 {
    let over = timeout(patience, async {
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
    })
    .await;
    assert!(over.is_ok(), "the stream still goes on after {patience:?}");
    now_ms()
}

/// When a preview's slot is free, milliseconds since 1970.
async fn slot_free(shop: &Shop, live: &Live) -> u64 {
    let leases = shop.slots();
    eventually("the slot is free", END, async || {
        let lease = leases
            .get_opt(&live.slot)
            .await
            .map_err(|error| error.to_string())?;
        lease.map_or_else(|| Ok(now_ms()), |_| Err("it is held".to_owned()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_time_a_preview_is_cut_its_end_is_proven_and_its_slot_is_free() {
    let _together = together().await;
    let shop = Shop::open("end").await;
    shop.offer_script("talker", TALKER).await;
    let begun = now_ms();
    shop.ask("talker", "talker", "6s").await;
    let live = shop.ready("talker").await;
    let ready = now_ms() - begun;
    assert!(
        !shop.processes(&live.pod).is_empty(),
        "this test can see its processes"
    );
    let stream = listen(&shop, &live).await;
    let (cut, free) = tokio::join!(cut(stream, Duration::from_secs(15)), slot_free(&shop, &live));
    let gone = shop.vitrine.ask(&live.host, &format!("GET {}", live.open)).await;
    assert_eq!(gone.status, 410, "{gone:?}");
    let over = shop.over("talker").await;
    let nothing = now_ms();
    // Times in a status are whole seconds, cut off: what is measured may be a second more than what was.
    let after = |then: u64| i128::from(then) - i128::from(live.expires_ms);
    println!(
        "create to ready {ready} ms; expiry to cut {} ms, to slot free {} ms, to nothing left {} ms",
        after(cut),
        after(free),
        after(nothing)
    );
    assert!(
        (-100..=2000).contains(&after(cut)),
        "cut {} ms after expiry",
        after(cut)
    );
    assert_eq!(over.phase, Phase::Ended);
    assert_verified(&over, StatusReason::TimeOver);
    shop.nothing_left(&live).await;
    shop.close().await;
}

/// Ends a preview and requires the proof.
async fn ends_verified(shop: &Shop, live: &Live) {
    let before = shop
        .until(&live.name, "there", Duration::from_secs(30), |_| true)
        .await;
    println!("{}: {:?} {:?}", live.name, before.phase, before.reason);
    if before.phase == Phase::Ready {
        // Deleted, a preview takes its status along; the receipt is an event as well.
        let deleted = shop.previews().delete(&live.name, &DeleteParams::default()).await;
        deleted.unwrap();
        eventually("the preview is gone", END, async || {
            let found = shop.previews().get_opt(&live.name).await;
            match found.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(preview) => Err(format!("{:?}", preview.status)),
            }
        })
        .await;
        let receipt = shop.told(&live.name, "Receipt").await;
        assert!(receipt.contains(r#""result":"verified""#), "{receipt}");
    } else {
        let over = shop.over(&live.name).await;
        assert_eq!(over.receipt.unwrap().result, EndResult::Verified);
    }
    shop.nothing_left(live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_api_server_neither_ends_nor_leaks_a_preview() {
    let _alone = alone().await;
    let shop = Shop::open("api").await;
    let live = shop.live("talker", TALKER, "2m").await;
    shop.no_namespace_is_going().await;
    shop.vitrine
        .cluster
        .component("apiserver", Action::Restart)
        .unwrap();
    // The gateway goes on with what it knows.
    let stream = listen(&shop, &live).await;
    api_server_is_back(&shop).await;
    drop(stream);
    ends_verified(&shop, &live).await;
    takes_previews(&shop, "talker").await;
    shop.close().await;
}

async fn api_server_is_back(shop: &Shop) {
    eventually("the API server is back", Duration::from_secs(60), async || {
        shop.vitrine.try_kubectl(&["get", "--raw", "/readyz"]).map(drop)
    })
    .await;
}

/// Waits until the API server takes previews again. Ready, it still refuses everything that a policy with a parameter judges, for as
/// long as it has not found the parameter's kind: it looks for kinds every half minute.
async fn takes_previews(shop: &Shop, listing: &str) {
    let begun = Instant::now();
    eventually("previews are taken again", Duration::from_secs(60), async || {
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let preview = objects::preview("try", listing, "try", Some("1m"));
        let made = shop.previews().create(&dry, &preview).await;
        made.map(drop).map_err(|error| error.to_string())
    })
    .await;
    println!(
        "previews were refused for {} ms after the API server was ready",
        begun.elapsed().as_millis()
    );
}

/// A pod that hears nothing of the API server, until this is dropped.
struct Deaf<'a>(&'a Cluster, String);

impl<'a> Deaf<'a> {
    fn to_the_api_server(cluster: &'a Cluster, ip: String) -> Self {
        let deaf = Self(cluster, ip);
        deaf.rule("-I").unwrap();
        deaf
    }

    fn rule(&self, how: &str) -> Result<(), String> {
        let rule = [
            "iptables", "-w", how, "OUTPUT", "-d", &self.1, "-p", "tcp", "--sport", "6443", "-j", "DROP",
        ];
        self.0
            .exec(Place::Node, &rule)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        let _ = self.rule("-D");
    }
}

/// The end of a connection can be lost: whoever waits for news on one must notice by himself. `Restart` loses it now and then, when the
/// node's chains are being written; here it is lost each time.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_goes_without_a_word_is_noticed_when_it_is_back() {
    let _alone = alone().await;
    let shop = Shop::open("silent").await;
    shop.offer_script("talker", TALKER).await;
    let cluster = &shop.vitrine.cluster;
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pods: Api<Pod> = shop.within(NAMESPACE);
    let pod = pods.list(&operators).await.unwrap().items.remove(0);
    let started = |pod: &Pod| {
        let restarts = pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].restart_count;
        (pod.metadata.uid.clone(), restarts)
    };
    let (ip, before) = (pod.status.clone().unwrap().pod_ip.unwrap(), started(&pod));
    let deaf = Deaf::to_the_api_server(cluster, ip);
    cluster.component("apiserver", Action::Restart).unwrap();
    api_server_is_back(&shop).await;
    takes_previews(&shop, "talker").await;
    drop(deaf);
    // A minute is what a preview may take here; a watch that is not missed comes back after five.
    let live = shop.live("after", TALKER, "2m").await;
    ends_verified(&shop, &live).await;
    let pod = pods.list(&operators).await.unwrap().items.remove(0);
    assert_eq!(started(&pod), before, "it is the same operator");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_containerd_neither_leaks_a_preview_nor_hides_its_end() {
    let _alone = alone().await;
    let shop = Shop::open("containerd").await;
    let live = shop.live("talker", TALKER, "2m").await;
    restart_containerd(&shop).await;
    ends_verified(&shop, &live).await;
    shop.close().await;
}

async fn restart_containerd(shop: &Shop) {
    let cluster = &shop.vitrine.cluster;
    cluster.component("containerd", Action::Restart).unwrap();
    let node = r#"jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}"#;
    eventually("the node is ready", Duration::from_secs(60), async || {
        let ready = shop.vitrine.try_kubectl(&["get", "nodes", "-o", node])?;
        if ready == "True" { Ok(()) } else { Err(ready) }
    })
    .await;
}

/// Attack 21, on a node as most are: containerd as it comes does not ignore what images declare.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_gives_images_volumes_gets_no_preview() {
    let _alone = alone().await;
    let shop = Shop::open("volumes").await;
    shop.offer_script("page", objects::SERVE).await;
    let ignore = async |yes: bool| {
        let setting = |value| format!("ignore_image_defined_volumes = {value}");
        let change = format!("s/{}/{}/", setting(!yes), setting(yes));
        let edit = ["sed", "-i", &change, CONTAINERD_CONFIG];
        let output = shop.vitrine.cluster.exec(Place::HostMounts, &edit);
        assert_eq!(output.unwrap().code, 0);
        restart_containerd(&shop).await;
    };
    ignore(false).await;
    let tried = std::panic::AssertUnwindSafe(async {
        shop.ask("refused", "page", "1m").await;
        let refused = shop.over("refused").await;
        let policy = shop.vitrine.with_policy(
            r#"{"spec":{"isolation":{"imageVolumes":"Reported"}}}"#,
            r#"{"spec":{"isolation":{"imageVolumes":"Required"}}}"#,
        );
        shop.ask("let-pass", "page", "1m").await;
        let passed = shop.ready("let-pass").await;
        policy.back();
        (refused, passed)
    });
    let tried = futures::FutureExt::catch_unwind(tried).await;
    ignore(true).await;
    let (refused, passed) = tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(refused.reason, Some(StatusReason::ImageVolumes), "{refused:?}");
    assert!(refused.message.unwrap().contains("ignore_image_defined_volumes"));
    assert!(passed.status.isolation.unwrap().image_volumes);
    shop.ask("last", "page", "1m").await;
    let last = shop.ready("last").await;
    assert!(!last.status.isolation.unwrap().image_volumes);
    shop.close().await;
}
