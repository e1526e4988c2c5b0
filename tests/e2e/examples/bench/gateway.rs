//! The gateway beside a bare proxy and a direct connection, in the same run and in turn, with many live previews in its table.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures::{StreamExt, stream};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use vitrine_crds::PreviewSandbox;
use vitrine_e2e::house::{House, LISTING};
use vitrine_kit::objects;
use vitrine_parts::Port;

use super::{
    load::{self, Target},
    pods,
    setup::{self, Gateway, Ready},
    stats::{self, Sorted, ms},
};

/// Previews that are really visited; the others are there.
const VISITED: usize = 16;
/// Visitors at a time.
const CONNECTIONS: usize = 32;
/// Of what the bare proxy can do at most, in hundredths: at that rate latencies are looked at.
const RATE_PERCENT: f64 = 0.25;
/// Each is measured so often, in turn; what is told is the median.
const ROUNDS: usize = 3;

/// Measures, and prints Markdown.
pub async fn measure(in_table: usize, seconds: usize) {
    let time = Duration::from_secs(seconds as u64);
    let nonces = pods::serve().await;
    let house = setup::house("bench-gateway", VISITED).await;
    let operator = setup::operator(&house).await;
    let ready = setup::previews(&house, VISITED, "30m", &nonces).await;
    // Its links stay good, and it would end the previews that nobody admitted.
    drop(operator);
    fill(&house, in_table.saturating_sub(VISITED)).await;
    let gateway = Gateway::start(&house).await;
    let resident = stats::resident_mib(gateway.pid());

    let pod = (ready[0].ip, pods::PORT).into();
    let proxy = Port::for_good();
    let _bare = Bare::start(proxy, pod).await;
    let plain = |address| {
        vec![Target {
            address,
            host: "product".to_owned(),
            cookie: None,
        }]
    };
    let ways = [
        ("direct", plain(pod)),
        ("bare hyper proxy", plain(proxy)),
        ("gateway", visitors(&gateway, &ready).await),
    ];
    for (_, targets) in &ways {
        load::throughput(targets, CONNECTIONS, Duration::from_secs(1)).await;
    }
    let mut rates: Vec<Vec<f64>> = vec![vec![]; ways.len()];
    for _ in 0..ROUNDS {
        for (rates, (_, targets)) in rates.iter_mut().zip(&ways) {
            rates.push(load::throughput(targets, CONNECTIONS, time).await);
        }
    }
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
    };
    let (bare, ..) = median(&rates[1]);
    let rate = bare * RATE_PERCENT;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let noise = tokio::spawn(stats::noise(stopped));
    let mut latencies: Vec<Vec<Duration>> = vec![vec![]; ways.len()];
    for _ in 0..ROUNDS {
        for (seen, (_, targets)) in latencies.iter_mut().zip(&ways) {
            seen.extend(load::latencies(targets, CONNECTIONS * 2, rate, time).await);
        }
    }
    stop.send_replace(true);
    let noise = noise.await.unwrap();

    println!(
        "| way | requests/s (median of {ROUNDS}) | least to most | of the bare proxy | p50 ms | p99 ms |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for (((name, _), rates), seen) in ways.iter().zip(&rates).zip(latencies) {
        let (middle, least, most) = median(rates);
        let seen = Sorted::of(seen);
        println!(
            "| {name} | {middle:.0} | {least:.0} to {most:.0} | {:.2} | {} | {} |",
            middle / bare,
            ms(seen.percentile(50)),
            ms(seen.percentile(99))
        );
    }
    println!(
        "\n{in_table} live previews in the gateway's table, {VISITED} visited by {CONNECTIONS} connections; answers of 1 KiB; latencies at {rate:.0} \
         requests/s, arrivals that wait for no answer.\nThe gateway's resident memory: {resident:.1} MiB before the load, {:.1} MiB after. A sleep \
         of 1 ms was late by p50 {} ms, p99 {} ms.",
        stats::resident_mib(gateway.pid()),
        ms(noise.percentile(50)),
        ms(noise.percentile(99))
    );
}

async fn visitors(gateway: &Gateway, ready: &[Ready]) -> Vec<Target> {
    let mut visitors = vec![];
    for ready in ready {
        visitors.push(Target {
            address: gateway.address,
            host: ready.host.clone(),
            cookie: Some(load::cookie(gateway.address, ready).await),
        });
    }
    visitors
}

/// Previews that are as live as a gateway can tell.
async fn fill(house: &House, count: usize) {
    let shop = "bench-gateway-others";
    objects::shop(&house.client, shop).await.unwrap();
    let api: Api<PreviewSandbox> = Api::namespaced(house.client.clone(), shop);
    let cleared = api
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await;
    cleared.unwrap();
    let template = house.previews().get("p0").await.unwrap().status.unwrap();
    stream::iter(0..count)
        .for_each_concurrent(32, |number| {
            let (api, mut status) = (api.clone(), template.clone());
            async move {
                let name = format!("o{number}");
                let preview = objects::preview(&name, LISTING, &name, Some("30m"));
                let mut made = api.create(&PostParams::default(), &preview).await.unwrap();
                let pod = status.pod.as_mut().unwrap();
                pod.uid = made.uid().unwrap();
                pod.ip = Some(format!("127.200.{}.{}", number / 250, number % 250 + 1));
                made.status = Some(status);
                made.metadata.managed_fields = None;
                let body = serde_json::to_value(&made).unwrap();
                let params = PostParams::default();
                let made: PreviewSandbox = serde_json::from_value(body).unwrap();
                api.replace_status(&name, &params, &made).await.unwrap();
            }
        })
        .await;
}

struct Bare(Child);

impl Bare {
    async fn start(listen: std::net::SocketAddr, to: std::net::SocketAddr) -> Self {
        let program = std::env::current_exe().unwrap();
        let arguments = ["bare-proxy".to_owned(), listen.to_string(), to.to_string()];
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self(child);
        while tokio::net::TcpStream::connect(listen).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        started
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
