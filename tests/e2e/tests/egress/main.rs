//! The way out of a preview: to the exact names that platform and listing allow, to public addresses only, and for as long as both
//! hold. What is refused is shown against an outside world that answers and counts.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

mod a26_tricked_proxy;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{ListParams, LogParams},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vitrine_crds::sku_listing::EnvVar;
use vitrine_devcluster::Place;
use vitrine_e2e::{
    eventually::eventually,
    installed::{Live, Shop, alone, together},
};
use vitrine_kit::{install::NAMESPACE, objects};

/// A name of the outside world; and one of those that lead elsewhere, as the development cluster's DNS reads them.
const FAR: &str = "203-0-113-10.at.example";
const INSIDE: [&str; 6] = [
    "10-96-0-1.at.example",
    "10-10-0-2.at.example",
    "127-0-0-1.at.example",
    "169-254-169-254.at.example",
    // One good address does not make the other one good.
    "203-0-113-10.169-254-169-254.at.example",
    "10-96-0-10.203-0-113-10.at.example",
];
/// Allowed by the platform, not by the listing.
const NOT_LISTED: &str = "203-0-113-10.203-0-113-10.at.example";

/// Lets the test say what the product sends to the proxy: `/cgi-bin/connect?METHOD&TARGET&WORDS`, where the words are a variable
/// of the product in octal, as `printf` reads them.
const PRODUCT: &str = r#"mkdir -p /data/www/cgi-bin; echo hello > /data/www/index.html
cat > /data/www/cgi-bin/connect <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
IFS='&' read -r method target words <<X
$QUERY_STRING
X
proxy=${HTTPS_PROXY#http://}
[ -n "$proxy" ] || { echo "no way out: ${https_proxy-none}"; exit; }
eval "words=\${$words-}"
(printf '%s %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$method" "$target" "$target"; sleep 1; printf "$words"; sleep 1) | nc -w 5 ${proxy%:*} ${proxy#*:}
EOF
cat > /data/www/cgi-bin/stream <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
proxy=${HTTPS_PROXY#http://}
(printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$QUERY_STRING" "$QUERY_STRING"; while sleep 0.1; do echo tick || exit; done) | nc ${proxy%:*} ${proxy#*:}
echo over
EOF
cat > /data/www/cgi-bin/knock <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
nc -w 2 ${QUERY_STRING%:*} ${QUERY_STRING#*:} < /dev/null && echo reached || echo shut
EOF
chmod +x /data/www/cgi-bin/*; exec httpd -f -p 8090 -h /data/www"#;

/// What a TLS client says first, in octal.
fn hello(name: &str) -> String {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = vec![];
    client.write_tls(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

/// A policy that allows names, and how it was before.
fn allowing(names: &[&str], more: &str) -> String {
    format!(
        r#"{{"spec":{{"egress":{{"allowedNames":{}}}{more}}}}}"#,
        serde_json::json!(names)
    )
}
const BEFORE: &str = r#"{"spec":{"egress":{"allowedNames":[]},"traffic":{"egressBytes":"256Mi"}}}"#;

fn everything() -> Vec<&'static str> {
    [FAR, NOT_LISTED].into_iter().chain(INSIDE).collect()
}

/// A preview of the product, with these names on its listing.
async fn product(shop: &Shop, name: &str, names: &[&str], ttl: &str) -> Live {
    let mut listing = objects::script(name, &shop.vitrine.busybox, PRODUCT);
    listing.spec.preview.egress = names.iter().map(|name| (*name).to_owned()).collect();
    let variable = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value,
    };
    listing.spec.preview.env = vec![
        variable("GOOD", hello(FAR)),
        variable("OTHER", hello("evil.example")),
        variable("PLAIN", "GET / HTTP/1.1\\r\\nHost: far\\r\\n\\r\\n".to_owned()),
    ];
    shop.offer(&listing).await;
    shop.ask(name, name, ttl).await;
    shop.ready(name).await
}

/// The addresses of the proxy's pods.
async fn proxies(shop: &Shop) -> Vec<String> {
    let pods = shop.within::<Pod>(NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=egress");
    let pods = pods.list(&params).await.unwrap();
    let address = |pod: Pod| pod.status.and_then(|status| status.pod_ip);
    pods.into_iter().filter_map(address).collect()
}

async fn connect(shop: &Shop, live: &Live, method: &str, target: &str, words: &str) -> String {
    let path = format!("/cgi-bin/connect?{method}&{target}&{words}");
    let answer = live.page(shop.vitrine, &path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Opens a tunnel through which the product sends for as long as it can, and waits until it arrives.
async fn stream(shop: &Shop, live: &Live, proxies: &[String]) -> (TcpStream, u64) {
    let before = shop.vitrine.newest_hit();
    let cookie = live.cookie(shop.vitrine).await;
    let request = format!("GET /cgi-bin/stream?{FAR}:80\n{cookie}");
    let stream = shop.vitrine.send(&live.host, &request).await;
    let id = eventually(
        "the product's words arrive",
        Duration::from_secs(20),
        async || {
            let hits = shop.vitrine.hits_from(proxies, before);
            let arriving = hits.iter().find(|hit| hit.bytes > 20);
            arriving.map(|hit| hit.id).ok_or_else(|| format!("{hits:?}"))
        },
    )
    .await;
    (stream, id)
}

/// When the last byte of a tunnel arrived outside, once it is closed.
async fn closed(shop: &Shop, proxies: &[String], id: u64) -> u64 {
    eventually("the tunnel is closed", Duration::from_secs(30), async || {
        let hits = shop.vitrine.hits_from(proxies, id - 1);
        let hit = hits.into_iter().find(|hit| hit.id == id).ok_or("no such hit")?;
        if hit.open {
            return Err(format!("{hit:?}"));
        }
        hit.last_byte_ms.ok_or_else(|| "no byte".to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_preview_may_exchange_in_all_is_bounded_and_noted() {
    let _alone = alone().await;
    let shop = Shop::open("egress-budget").await;
    let policy = shop
        .vitrine
        .with_policy(&allowing(&[FAR], r#","traffic":{"egressBytes":"300"}"#), BEFORE);
    let proxies = proxies(&shop).await;
    let live = product(&shop, "budget", &[FAR], "2m").await;
    let (mut stream, id) = stream(&shop, &live, &proxies).await;
    closed(&shop, &proxies, id).await;
    let mut page = vec![];
    timeout(Duration::from_secs(20), stream.read_to_end(&mut page))
        .await
        .ok();
    stream.shutdown().await.ok();
    let hits = shop.vitrine.hits_from(&proxies, id - 1);
    let bytes = hits.iter().find(|hit| hit.id == id).unwrap().bytes;
    assert!((20..=400).contains(&bytes), "{bytes} bytes came out of 300");
    let page = connect(&shop, &live, "CONNECT", &format!("{FAR}:80"), "PLAIN").await;
    assert!(page.starts_with("HTTP/1.1 403 "), "{page}");

    // Each of them is a line in the proxy's records.
    let pods = shop.within::<Pod>(NAMESPACE);
    let params = ListParams::default().labels("app.kubernetes.io/component=egress");
    let pod = pods.list(&params).await.unwrap().items.remove(0).name_any();
    let records = eventually("both are noted", Duration::from_secs(10), async || {
        let log = pods
            .logs(&pod, &LogParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let own: Vec<serde_json::Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|record: &serde_json::Value| record["previewUid"] == live.uid.as_str())
            .collect();
        if own.len() >= 2 { Ok(own) } else { Err(log) }
    })
    .await;
    assert_eq!(records[0]["outcome"], "spent", "{records:?}");
    assert_eq!(
        records[0]["preview"],
        format!("{}/budget", shop.namespace),
        "{records:?}"
    );
    assert_eq!(records[0]["address"], "203.0.113.10:80", "{records:?}");
    assert!(records[0]["sent"].as_u64().unwrap() >= bytes, "{records:?}");
    assert_eq!(records[1]["outcome"], "spent", "{records:?}");
    policy.back();
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_from_the_proxy() {
    let _together = together().await;
    let shop = Shop::open("stranger").await;
    // From the node itself, which reaches every pod (Kubernetes guarantees it): what it says is answered, and leads nowhere.
    let before = shop.vitrine.newest_hit();
    for proxy in proxies(&shop).await {
        let script = format!(
            "exec 3<>/dev/tcp/{proxy}/3128; printf 'CONNECT {FAR}:80 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; head -1 <&3"
        );
        let output = shop
            .vitrine
            .cluster
            .exec(Place::Node, &["timeout", "20", "bash", "-c", &script])
            .unwrap();
        assert!(output.stdout.starts_with("HTTP/1.1 403 "), "{output:?}");
    }
    let hits = shop.vitrine.hits_from(&proxies(&shop).await, before);
    assert!(hits.is_empty(), "{hits:?}");
    shop.close().await;
}
