//! What both benches begin with: a house, an operator as it ships, a gateway beside it, and previews that are ready. Writes the cluster.

use std::{
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use kube::{
    ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;
use vitrine_crds::{Phase, PreviewSandbox};
use vitrine_e2e::{
    house::{House, LISTING},
    operator::{self, Operator, Options},
};
use vitrine_kit::{http, install::NAMESPACE, objects};
use vitrine_parts::Port;

use super::pods::Nonces;

/// Creates at once: what a storefront at its busiest does.
const AT_ONCE: usize = 16;
/// A preview takes 15 writes: so many a second are far below what any machine does.
const PREVIEWS_A_SECOND: u64 = 3;

/// A house with room for so many previews, and no limit on their traffic.
pub async fn house(name: &str, previews: usize) -> House {
    let mut house = House::take(name, 1, "24h").await;
    let most = previews + 100;
    house
        .policy(json!({
            "limits": {"perSubject": 1, "perListing": most, "perSeller": most, "cluster": most},
            "traffic": {"requestsPerSecond": 100_000, "visitorBytes": "1Ti"}
        }))
        .await;
    house.post.url = Some(format!(
        "http://{{label}}.previews.localhost:{}",
        Port::for_good().port()
    ));
    house
}

/// The operator alone.
pub async fn operator(house: &House) -> Operator {
    Operator::ready(&house.post, &Options::alone(&house.shop), None).await
}

/// A running gateway; killed when it is dropped.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
}

impl Gateway {
    /// Starts one at the port of the house's links, and waits until it knows what there is.
    pub async fn start(house: &House) -> Self {
        let port = house.post.url.as_ref().unwrap().rsplit_once(':').unwrap().1;
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let admin: SocketAddr = Port::for_good();
        let child = Command::new(operator::program())
            .args(["gateway", "--namespace", NAMESPACE])
            .arg(format!("--listen={address}"))
            .arg(format!("--admin-listen={admin}"))
            .args(["--audit-log", "/dev/null"])
            .env("KUBECONFIG", &house.post.kubeconfig)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let gateway = Self { child, address };
        let begun = Instant::now();
        loop {
            match http::get(admin, "gateway", "/readyz").await {
                Ok(answer) if answer.status == 200 => return gateway,
                other => assert!(
                    begun.elapsed().as_secs() < 60,
                    "the gateway is not ready: {other:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A preview that can be opened.
#[derive(Clone)]
pub struct Ready {
    pub name: String,
    pub host: String,
    /// The link's path with its token.
    pub open: String,
    pub ip: IpAddr,
    /// What its sidecar has to say.
    pub nonce: String,
    pub started: i64,
}

/// Makes previews of different subjects, and waits until all are ready.
pub async fn previews(house: &House, count: usize, ttl: &str, nonces: &Nonces) -> Vec<Ready> {
    let api = house.previews();
    stream::iter(0..count)
        .for_each_concurrent(AT_ONCE, |number| {
            let api = api.clone();
            async move {
                let preview =
                    objects::preview(&format!("p{number}"), LISTING, &format!("s{number}"), Some(ttl));
                api.create(&PostParams::default(), &preview).await.unwrap();
            }
        })
        .await;
    let patience = Duration::from_secs(60 + count as u64 / PREVIEWS_A_SECOND);
    let begun = Instant::now();
    loop {
        let all = api.list(&ListParams::default()).await.unwrap().items;
        let ready: Vec<_> = all.iter().filter_map(as_ready).collect();
        if ready.len() == count {
            for ready in &ready {
                nonces.at(ready.ip, &ready.nonce);
            }
            return ready;
        }
        assert!(
            begun.elapsed() < patience,
            "{} of {count} previews are ready after {} s; one that is not: {:?}",
            ready.len(),
            begun.elapsed().as_secs(),
            all.iter()
                .find(|p| as_ready(p).is_none())
                .and_then(|p| p.status.clone())
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn as_ready(preview: &PreviewSandbox) -> Option<Ready> {
    let status = preview
        .status
        .as_ref()
        .filter(|status| status.phase == Phase::Ready)?;
    let pod = status.pod.as_ref()?;
    let (origin, open) = status.url.as_ref()?.strip_prefix("http://")?.split_once('/')?;
    Some(Ready {
        name: preview.name_any(),
        host: origin.to_owned(),
        open: format!("/{open}"),
        ip: pod.ip.as_ref()?.parse().ok()?,
        nonce: pod.nonce.clone()?,
        started: status.started_at.as_ref()?.0.as_second(),
    })
}
