//! More claims than a pool has cells, three operators without leader election, killed and held up at seeded writes: every cell has
//! one owner at every moment of the audit log, and every claim one answer.
#![allow(clippy::unwrap_used, reason = "a test panics when what it needs is missing")]

use std::time::{Duration, Instant};

use futures::{StreamExt, future::join_all, stream};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;
use vitrine_crds::{PreviewPool, PreviewSandbox, StatusReason, preview_sandbox::EndResult};
use vitrine_e2e::{
    eventually::eventually,
    history::History,
    house::{House, LISTING},
    ledger::Ledger,
    operator::{Operator, Options},
    seeds, soak,
    trouble::{self, trouble},
};
use vitrine_kit::objects;

/// Three operators at once.
const OPERATORS: [&str; 3] = ["one", "two", "three"];
/// The writes by which cells are claimed, freed and filled again.
const WRITES: [&str; 8] = [
    "PATCH namespaces",
    "POST leases",
    "DELETE leases",
    "PUT previewsandboxes/status",
    "POST pods",
    "DELETE pods",
    "PATCH pods",
    "PATCH previewsandboxes",
];
/// How long a preview lives.
const TTL: &str = "2s";
/// Creates and deletes at once.
const AT_ONCE: usize = 8;

/// How much is tried.
struct Counts {
    rounds: u64,
    claims: usize,
    cells: usize,
    /// One of so many writes of a kind is hit.
    apart: usize,
    /// What a round may take: previews live for seconds, and operators are started anew all the time.
    patience: Duration,
}

impl Counts {
    fn of_this_run() -> Self {
        if soak() {
            Self {
                rounds: 100,
                claims: 1000,
                cells: 500,
                // An operator that is killed every second serves nobody.
                apart: 100,
                patience: Duration::from_secs(900),
            }
        } else {
            Self {
                rounds: 2,
                claims: 40,
                cells: 20,
                apart: trouble::FEW,
                patience: Duration::from_secs(180),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_has_one_owner_at_every_moment_and_every_claim_one_answer() {
    let counts = Counts::of_this_run();
    let house = House::take("owners", 1, "24h").await;
    let most = counts.claims + 2 * counts.cells;
    house
        .policy(json!({
            "limits": {"perSubject": 1, "perListing": most, "perSeller": most, "cluster": most},
            "cells": {"mode": "Reuse", "maxUses": 10_000}, "pools": {"maxReplicas": counts.cells}, "retention": "24h",
            // A thousand at once are built for longer than two minutes where operators are killed all the time.
            "provisioningDeadline": "1h"
        }))
        .await;
    let pools: Api<PreviewPool> = Api::namespaced(house.client.clone(), &house.shop);
    let pool = json!({
        "apiVersion": "vitrine.dev/v1alpha1", "kind": "PreviewPool", "metadata": {"name": "pool"},
        "spec": {"listingRef": {"name": LISTING}, "replicas": counts.cells, "refill": {"perSecond": 100, "burst": 100}}
    });
    let pool = serde_json::from_value(pool).unwrap();
    pools.create(&PostParams::default(), &pool).await.unwrap();
    for seed in seeds(counts.rounds) {
        round(&house, &pools, &counts, seed).await;
    }
    pools.delete("pool", &DeleteParams::default()).await.unwrap();
    let _last = Operator::ready(&house.post, &Options::alone("last"), None).await;
    house.until_empty(counts.patience).await;
}

async fn round(house: &House, pools: &Api<PreviewPool>, counts: &Counts, seed: u64) {
    {
        let _calm = Operator::ready(&house.post, &Options::alone("calm"), None).await;
        let cells = i32::try_from(counts.cells).unwrap();
        eventually("the pool is full", counts.patience, async || {
            let pool = pools.get("pool").await.map_err(|error| error.to_string())?;
            let status = pool.status.unwrap_or_default();
            if status.ready == cells {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        })
        .await;
    }
    let begun = Instant::now();
    // Nobody writes cells now.
    let ledger = Ledger::begin(house).await;
    let history = History::begin(house).await;
    let (stop, stopped) = watch::channel(false);
    let troubles = OPERATORS
        .iter()
        .zip(1..)
        .map(|(name, n)| trouble(house, name, seed * 10 + n, &WRITES, counts.apart, stopped.clone()));
    let names: Vec<_> = (0..counts.claims).map(|n| format!("claim-{seed}-{n}")).collect();
    let (at_once, later) = (counts.cells + counts.cells / 50 + 2, counts.cells / 2);
    let visit = async {
        stream::iter(names.iter().zip(1_usize..))
            .for_each_concurrent(AT_ONCE, async |(name, number)| {
                // First a few more at once than there are cells, so that the last cell is fought for and some preview gets none; then so
                // many that cells are ready a second time. More would only have namespaces made.
                if number > at_once {
                    over(&history, number - later, counts).await;
                }
                house
                    .create(&objects::preview(name, LISTING, name, Some(TTL)))
                    .await;
            })
            .await;
        // All but the last few in trouble; the rest is put in order by one that nobody troubles.
        over(&history, names.len() - names.len() / 10, counts).await;
        stop.send_replace(true);
    };
    let (done, ()) = tokio::join!(join_all(troubles), visit);
    let _last = Operator::ready(&house.post, &Options::alone("last"), None).await;
    over(&history, names.len(), counts).await;
    eventually("all are over", counts.patience, async || {
        let left = all(house).await;
        let left = left.iter().filter(|p| !p.phase().is_terminal()).count();
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} are not"))
        }
    })
    .await;

    let previews = all(house).await;
    let uids: Vec<_> = previews.iter().filter_map(ResourceExt::uid).collect();
    let judged = eventually("the audit log tells of every end", counts.patience, async || {
        ledger.judge(&uids)
    })
    .await;
    assert_eq!(judged.wrong, Vec::<String>::new());
    for preview in previews {
        let (uid, status) = (preview.metadata.uid.unwrap(), preview.status.unwrap());
        assert_eq!(
            judged.ready.get(&uid),
            Some(&(1, 1)),
            "{:?}: {status:?}",
            preview.metadata.name
        );
        let receipt = status.receipt.unwrap();
        assert_eq!(
            (receipt.result, receipt.cause),
            (EndResult::Verified, StatusReason::TimeOver),
            "{:?}",
            preview.metadata.name
        );
    }
    let [kills, delays] = done
        .iter()
        .fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
    assert_eq!(judged.pods.len(), counts.claims, "a pod each");
    assert!(kills + delays > 0, "nobody was in trouble");
    let (cells, [unwatched, unlogged]) = (judged.cells.len(), judged.only);
    println!(
        "  seed {seed}: {} claims in {cells} cells; {kills} kills, {delays} delays; {unwatched} versions only logged, {unlogged} only watched; \
         {:.0} s",
        counts.claims,
        begun.elapsed().as_secs_f64()
    );
    stream::iter(&names)
        .for_each_concurrent(AT_ONCE, async |name| house.delete(name).await)
        .await;
    eventually("all claims are gone", counts.patience, async || {
        // A thousand at a time, four times a second, are more work for the API server than their deletion.
        let one = ListParams::default().limit(1);
        let left = house
            .previews()
            .list_metadata(&one)
            .await
            .map_err(|error| error.to_string())?;
        match left.items.len() {
            0 => Ok(()),
            _ => Err(format!("{:?} more are left", left.metadata.remaining_item_count)),
        }
    })
    .await;
}

/// Waits until so many have come to their end.
async fn over(history: &History, enough: usize, counts: &Counts) {
    eventually("so many are over", counts.patience, async || {
        match history.ends() {
            over if over >= enough => Ok(()),
            over => Err(format!("{over} of {enough}")),
        }
    })
    .await;
}

async fn all(house: &House) -> Vec<PreviewSandbox> {
    house.previews().list(&ListParams::default()).await.unwrap().items
}
