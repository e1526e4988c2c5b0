//! Many previews, each with a live WebSocket through the gateway, whose time is over in the same second: from then to the connection's
//! end, and to the slot's.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{StreamExt, TryStreamExt, future::join_all, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::io::AsyncReadExt;
use vitrine_crds::Phase;
use vitrine_e2e::eventually::eventually;

use super::{
    load, pods,
    setup::{self, Gateway},
    stats::{self, Sorted, ms},
};

/// How long the first lives before all are given the same end, in seconds: longer than it takes to make them, two a second.
fn first(count: usize) -> u64 {
    60 + count as u64 / 2
}

/// From the last one's being ready to the common end: time to extend all and to connect to all.
const AHEAD: u64 = 60;
/// What an end may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures, and prints Markdown.
pub async fn measure(count: usize) {
    let nonces = pods::serve().await;
    let house = setup::house("bench-end", count).await;
    let _operator = setup::operator(&house).await;
    let gateway = Gateway::start(&house).await;
    let begun = now();
    let first = first(count);
    let ready = setup::previews(&house, count, &format!("{first}s"), &nonces).await;
    let made = now() - begun;
    let last = ready.iter().map(|ready| ready.started).max().unwrap();
    // A ttl only grows.
    let end = u64::try_from(last).unwrap() + first + 1 + AHEAD;
    let api = house.previews();
    stream::iter(&ready)
        .for_each_concurrent(8, |ready| {
            let api = api.clone();
            async move {
                let ttl = end - u64::try_from(ready.started).unwrap();
                let patch = Patch::Merge(json!({"spec": {"ttl": format!("{ttl}s")}}));
                api.patch(&ready.name, &PatchParams::default(), &patch)
                    .await
                    .unwrap();
            }
        })
        .await;
    let expires = i64::try_from(end).unwrap();
    eventually(
        "all end in the same second",
        Duration::from_secs(AHEAD),
        async || {
            let all = api.list(&kube::api::ListParams::default()).await.unwrap().items;
            let other = all.iter().filter(|preview| {
                let status = preview.status.as_ref().unwrap();
                status.expires_at.as_ref().map(|at| at.0.as_second()) != Some(expires)
            });
            match other.count() {
                0 => Ok(()),
                some => Err(format!("{some} do not")),
            }
        },
    )
    .await;

    let mut sockets = vec![];
    for ready in &ready {
        sockets.push(load::websocket(gateway.address, ready).await);
    }
    let end = UNIX_EPOCH + Duration::from_secs(end);
    let closed = sockets.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            let mut rest = vec![];
            // However it ends.
            let _ = socket.read_to_end(&mut rest).await;
            SystemTime::now()
        })
    });
    let closed: Vec<_> = closed.collect();
    let freed = freed(house.leases());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    tokio::time::sleep(end.duration_since(SystemTime::now()).expect("time is left")).await;
    let noise = tokio::spawn(stats::noise(stopped));
    let closed: Vec<_> = join_all(closed).await.into_iter().map(Result::unwrap).collect();
    let early = closed.iter().filter(|at| **at < end).count();
    eventually("every slot is free", PATIENCE, async || {
        let held = house
            .leases()
            .list(&kube::api::ListParams::default())
            .await
            .unwrap()
            .items;
        if held.is_empty() {
            Ok(())
        } else {
            Err(format!("{} are held", held.len()))
        }
    })
    .await;
    stop.send_replace(true);
    let noise = noise.await.unwrap();
    let receipts = api.list(&kube::api::ListParams::default()).await.unwrap().items;
    let receipts = receipts.iter().filter(|preview| {
        let status = preview.status.as_ref().unwrap();
        status.receipt.is_some() || status.phase == Phase::Ended
    });
    let receipts = receipts.count();
    let since = |times: &[SystemTime]| {
        Sorted::of(
            times
                .iter()
                .map(|at| at.duration_since(end).unwrap_or_default())
                .collect(),
        )
    };
    let freed = freed.lock().unwrap().clone();
    println!("| from the second in which {count} previews expire to | count | p50 ms | p99 ms | last ms |");
    println!("|---|--:|--:|--:|--:|");
    for (what, times) in [
        ("the WebSocket's end", since(&closed)),
        ("the slot's deletion (4 a preview)", since(&freed)),
    ] {
        println!(
            "| {what} | {} | {} | {} | {} |",
            times.len(),
            ms(times.percentile(50)),
            ms(times.percentile(99)),
            ms(times.percentile(100))
        );
    }
    println!(
        "\n{count} previews were made in {:.0} s. {early} WebSockets ended before their time. {receipts} have a receipt. A sleep of 1 ms was late by \
         p50 {} ms, p99 {} ms meanwhile.",
        made.as_secs_f64(),
        ms(noise.percentile(50)),
        ms(noise.percentile(99))
    );
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// When each slot was deleted, as a watch tells.
fn freed(leases: Api<Lease>) -> Arc<Mutex<Vec<SystemTime>>> {
    let times = Arc::new(Mutex::new(vec![]));
    let told = times.clone();
    tokio::spawn(async move {
        let mut events = watcher(leases, watcher::Config::default())
            .default_backoff()
            .boxed();
        while let Ok(Some(event)) = events.try_next().await {
            if let watcher::Event::Delete(lease) = event {
                assert!(!lease.name_any().is_empty());
                told.lock().unwrap().push(SystemTime::now());
            }
        }
    });
    times
}
