//! Warm previews beside the warm claims of agent-sandbox: on one control plane, in one run, one after the other in alternating order.

mod chart;
mod costs;
mod floor;
mod load;
mod report;
mod side;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;
use vitrine_e2e::house::House;
use vitrine_kit::{audit, images};

use self::{
    costs::{Meter, Processes},
    load::{Arrivals, Watch},
    report::Measured,
    side::{Controller, Side, System, Tuning},
};
use super::stats::{self, ms};

/// Filling and emptying pools of thousands on two cores.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long a claim lives where claims are deleted.
const LIVES: Duration = Duration::from_secs(5);
/// The peer's own gate: so many claims at this rate, from a pool that has more.
const GATE: (u32, f64) = (750, 75.0);
/// A second, where many are to live before anything is measured.
const MAKES: f64 = 25.0;
/// Claims at once.
const BURST: usize = 300;
/// By how much the rate grows until one is not sustained.
const STEP: f64 = 1.2;
/// A system whose rate is looked for begins with this one.
const FIRST_RATE: f64 = 20.0;
/// A pool that is emptied faster than it is filled: how many wait in it at the beginning, …
const DRAINED_POOL: usize = 100;
/// … how many a second it is filled by, …
const DRAINED_REFILL: i32 = 4;
/// … and how many claims a second come, for a minute each.
const DRAINED_RATES: [f64; 2] = [8.0, 2.0];
const DRAINED_SECONDS: u64 = 60;

/// What is measured.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Choice {
    /// How often, in alternating order.
    pub rounds: usize,
    /// How long a rate lasts.
    pub seconds: u64,
    /// Ready at the beginning.
    pub pool: usize,
    /// Rates with refill, and without deletes.
    pub rates: Vec<f64>,
    /// Rates with refill and with deletes.
    pub deletes: Vec<f64>,
    /// Rates with deletes, where every preview gets a namespace that is made for it; of Vitrine alone.
    pub fresh: Vec<f64>,
    /// Whether a pool is emptied faster than it is filled, and then slower; of Vitrine alone.
    pub drained: bool,
    /// Whether the gate and claims at once are measured.
    pub gate: bool,
    /// Whether the highest rate is looked for.
    pub highest: bool,
    /// So many live previews, at which Vitrine alone is measured.
    pub live: Vec<usize>,
    /// Sizes of pools at which the cost of one rate is compared, and that rate.
    pub pools: Vec<usize>,
}

impl Choice {
    /// As `cargo xtask bench` says it, in JSON.
    pub fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }
}

/// One kind of arrivals.
#[derive(Clone, Debug)]
struct Load {
    name: String,
    arrivals: Arrivals,
    delete_after: Option<Duration>,
    /// Whether it may empty the pool.
    runs_dry: bool,
}

impl Load {
    fn steady(rate: f64, seconds: u64) -> Self {
        Self {
            name: format!("{rate:.0}/s that stay"),
            arrivals: Arrivals::poisson(rate, seconds, 1),
            delete_after: None,
            runs_dry: false,
        }
    }

    fn passing(rate: f64, seconds: u64) -> Self {
        Self {
            name: format!(
                "{rate:.0}/s, each deleted {} s after it is ready",
                LIVES.as_secs()
            ),
            arrivals: Arrivals::poisson(rate, seconds, 2),
            delete_after: Some(LIVES),
            runs_dry: false,
        }
    }
}

/// A start of Vitrine's operator where many previews live.
struct Start {
    live: usize,
    /// Seconds of processor time a second while nobody claims, by process.
    standing: BTreeMap<&'static str, f64>,
    /// Reconciliations a second then: looks at what lives.
    looks: f64,
    /// Of the operator that made them.
    before_mib: f64,
    /// From the start of the process until a claim that was there before is ready.
    first: Duration,
    after_mib: f64,
    most_mib: f64,
}

impl Start {
    fn json(&self) -> serde_json::Value {
        json!({
            "live": self.live, "standing": self.standing, "reconcilesPerSecond": self.looks, "residentMib": self.before_mib,
            "secondsToFirstClaim": self.first.as_secs_f64(), "residentMibAfter": self.after_mib,
            "residentMibAtMost": self.most_mib
        })
    }
}

struct Bench {
    house: House,
    choice: Choice,
    all: Vec<Measured>,
}

/// Measures, and prints Markdown; leaves the figures and a plot in `target/vitrine/bench`.
pub async fn measure(choice: Choice) {
    stats::go_first();
    let mut house = House::take("bench-previews", 1, "24h").await;
    policy(&house, "Reuse").await;
    // As it is installed: confined by the chart's own policies, which cost the API server something.
    house.admission();
    side::install_peer(&house);
    let mut bench = Bench {
        house,
        choice,
        all: vec![],
    };
    let vitrine = Side::new(System::Vitrine, &bench.house).await;
    let floor = floor::measure(&vitrine, &bench.house).await;
    let orders = [
        [System::Vitrine, System::AgentSandbox],
        [System::AgentSandbox, System::Vitrine],
    ];
    for round in 0..bench.choice.rounds {
        for system in orders[round % 2] {
            bench.round(system, round).await;
        }
    }
    let choice = bench.choice.clone();
    for pool in choice.pools.iter().copied() {
        for system in orders[0] {
            let load = Load::steady(choice.rates.first().copied().unwrap_or(5.0), choice.seconds);
            bench.session(system, Tuning::Steady, pool, 0, &[load]).await;
        }
    }
    if !choice.fresh.is_empty() {
        bench.fresh().await;
    }
    let drained = if choice.drained {
        bench.drained().await
    } else {
        String::new()
    };
    if choice.highest {
        for load in [Load::steady, Load::passing] {
            for system in orders[0] {
                bench.highest(system, load).await;
            }
        }
    }
    // Last, and each with those before it: ten thousand take longer to end than all else takes.
    let (mut starts, mut made) = (vec![], 0);
    for live in choice.live.iter().copied() {
        starts.push(bench.live(live, &mut made).await);
    }
    bench.tell(&floor, &starts, &drained);
}

async fn policy(house: &House, mode: &str) {
    let most = 20_000;
    let spec = json!({
        "limits": {"perSubject": 1, "perListing": most, "perSeller": most, "cluster": most},
        "cells": {"mode": mode, "maxUses": 10_000, "maxAge": "24h"}, "pools": {"maxReplicas": 10_000},
        "retention": "24h", "images": {"repositories": ["vitrine.local"]}
    });
    house.policy(spec).await;
}

/// Waits until no namespace is on its way out and for a second nobody has written anything but what is written all the time: of what was
/// before, nothing is to be measured. A service account that the controller-manager made late for the pool's cells was counted among the
/// claims that came next.
async fn settled(house: &House) {
    let namespaces: Api<Namespace> = Api::all(house.client.clone());
    let begun = Instant::now();
    loop {
        let mark = audit::mark(&house.cluster.audit_log()).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let writes = audit::read(&house.cluster.audit_log(), mark).unwrap();
        let late = writes.iter().filter(|write| !is_steady(write)).count();
        let all = namespaces.list_metadata(&ListParams::default()).await.unwrap();
        let going = all
            .iter()
            .filter(|ns| ns.metadata.deletion_timestamp.is_some())
            .count();
        if going + late == 0 {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{going} namespaces are on their way out, and in the last second there were {late} writes"
        );
    }
}

/// What nodes, pools and leaders write while nothing happens.
fn is_steady(write: &audit::Write) -> bool {
    let of_status = write.subresource.as_deref() == Some("status");
    ["leases", "events"].contains(&write.resource.as_str())
        || of_status && ["nodes", "previewpools", "sandboxwarmpools"].contains(&write.resource.as_str())
}

impl Bench {
    async fn round(&mut self, system: System, round: usize) {
        let choice = self.choice.clone();
        let mut loads: Vec<_> = choice
            .rates
            .iter()
            .map(|rate| Load::steady(*rate, choice.seconds))
            .collect();
        loads.extend(
            choice
                .deletes
                .iter()
                .map(|rate| Load::passing(*rate, choice.seconds)),
        );
        self.session(system, Tuning::Steady, choice.pool, round, &loads)
            .await;
        if choice.gate {
            let loads = [
                Load {
                    name: format!("{} at {:.0}/s", GATE.0, GATE.1),
                    arrivals: Arrivals::even(GATE.0, GATE.1),
                    delete_after: None,
                    runs_dry: false,
                },
                Load {
                    name: format!("{BURST} at once"),
                    arrivals: Arrivals::at_once(BURST),
                    delete_after: None,
                    runs_dry: false,
                },
            ];
            self.session(system, Tuning::Burst, choice.pool, round, &loads)
                .await;
        }
    }

    /// Starts the controller, has its pool filled, and measures one load after the other, each from a full pool.
    async fn session(&mut self, system: System, tuning: Tuning, pool: usize, round: usize, loads: &[Load]) {
        let controller = Controller::start(system, tuning, &self.house).await;
        let side = Side::new(system, &self.house).await;
        let filled = side.fill(pool, PATIENCE).await;
        eprintln!(
            "{}: a pool of {pool} is full after {:.0} s",
            system.name(),
            filled.as_secs_f64()
        );
        for load in loads {
            let measured = self.measured(&controller, &side, pool, round, load).await;
            load::clear(&side, PATIENCE).await;
            self.all.push(measured);
        }
    }

    async fn measured(
        &self,
        controller: &Controller,
        side: &Side,
        pool: usize,
        round: usize,
        load: &Load,
    ) -> Measured {
        side.full(pool, PATIENCE).await;
        settled(&self.house).await;
        let processes = Processes::of(&self.house.cluster, controller.pid);
        let watch = Arc::new(Watch::begin(side).await);
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let noise = tokio::spawn(stats::noise(stopped));
        let reconciles = controller.reconciles().await;
        let meter = Meter::begin(&self.house.cluster, &processes);
        let prefix = format!("c{}", self.all.len());
        let claims = load::run(side, &watch, &prefix, &load.arrivals, load.delete_after).await;
        // What a claim leads to belongs to it: the refill, and where it is deleted its end.
        if load.delete_after.is_some() {
            load::clear(side, PATIENCE).await;
        }
        side.full(pool, PATIENCE).await;
        let costs = meter.end();
        let reconciles = controller.reconciles().await - reconciles;
        stop.send_replace(true);
        let measured = Measured {
            side: side.clone(),
            load: load.name.clone(),
            round,
            pool,
            claims,
            costs,
            reconciles,
            noise: noise.await.unwrap(),
            runs_dry: load.runs_dry,
        };
        eprintln!("{}", measured.line());
        measured
    }

    /// Has so many previews live, measures the first of the rates among them, and starts the operator anew.
    async fn live(&mut self, live: usize, made: &mut usize) -> Start {
        let (system, pool) = (System::Vitrine, self.choice.pool);
        let side = Side::new(system, &self.house).await;
        let controller = Controller::start(system, Tuning::Steady, &self.house).await;
        side.fill(pool, PATIENCE).await;
        let watch = Arc::new(Watch::begin(&side).await);
        while *made < live {
            let next = (live - *made).min(pool);
            load::run(
                &side,
                &watch,
                &format!("live{live}-{made}"),
                &Arrivals::even(u32::try_from(next).unwrap(), MAKES),
                None,
            )
            .await;
            *made += next;
            side.full(pool, PATIENCE).await;
            eprintln!("{made} of {live} live");
        }
        let mut load = Load::steady(
            self.choice.rates.first().copied().unwrap_or(5.0),
            self.choice.seconds,
        );
        load.name += &format!(", {live} live");
        let meter = Meter::begin(
            &self.house.cluster,
            &Processes::of(&self.house.cluster, controller.pid),
        );
        let looks = controller.reconciles().await;
        tokio::time::sleep(Duration::from_secs(self.choice.seconds)).await;
        let looks = controller.reconciles().await - looks;
        let idle = meter.end();
        let standing = idle
            .cpu
            .iter()
            .map(|(what, seconds)| (*what, seconds / idle.lasted.as_secs_f64()));
        let standing = standing.collect();
        let measured = self.measured(&controller, &side, pool, 0, &load).await;
        let before_mib = measured.costs.resident_mib;
        self.all.push(measured);
        drop(controller);
        let (api, first) = (side.claims(), format!("first{live}"));
        api.create(&PostParams::default(), &side.claim(&first))
            .await
            .unwrap();
        let begun = Instant::now();
        let start = Controller::start(system, Tuning::Steady, &self.house);
        let (controller, ready) = tokio::join!(start, watch.until_ready(&first));
        let first = ready.0.duration_since(begun);
        side.full(pool, PATIENCE).await;
        Start {
            live,
            standing,
            looks: looks / idle.lasted.as_secs_f64(),
            before_mib,
            first,
            after_mib: stats::resident_mib(controller.pid),
            most_mib: stats::most_resident_mib(controller.pid),
        }
    }

    /// The same rates where no cell is used again.
    async fn fresh(&mut self) {
        policy(&self.house, "Fresh").await;
        let loads: Vec<_> = self
            .choice
            .fresh
            .iter()
            .map(|rate| {
                let mut load = Load::passing(*rate, self.choice.seconds);
                load.name += ", a namespace each";
                load
            })
            .collect();
        self.session(System::Vitrine, Tuning::Steady, self.choice.pool, 0, &loads)
            .await;
        policy(&self.house, "Reuse").await;
    }

    /// Has a pool emptied for a minute faster than it is filled, then slower; how claims fared meanwhile, in Markdown.
    async fn drained(&mut self) -> String {
        let controller = Controller::start(System::Vitrine, Tuning::Steady, &self.house).await;
        let side = Side::new(System::Vitrine, &self.house).await;
        side.fill_at(DRAINED_POOL, DRAINED_REFILL, PATIENCE).await;
        let load = Load {
            name: format!(
                "{}/s for {DRAINED_SECONDS} s, then {}/s, from a pool that is filled by {DRAINED_REFILL}/s",
                DRAINED_RATES[0], DRAINED_RATES[1]
            ),
            arrivals: Arrivals::poisson(DRAINED_RATES[0], DRAINED_SECONDS, 3).then(
                &Arrivals::poisson(DRAINED_RATES[1], DRAINED_SECONDS, 4),
                DRAINED_SECONDS,
            ),
            delete_after: None,
            runs_dry: true,
        };
        let measured = self.measured(&controller, &side, DRAINED_POOL, 0, &load).await;
        let last_cold = measured
            .claims
            .iter()
            .filter(|claim| claim.is_cold())
            .map(|c| c.due)
            .max();
        let text = format!(
            "\n{}:\n\n{}\nThe last claim that was made cold came at second {:.0}; from then on it was steady. The pool was full {:.0} s after the \
             first claim, the last of which came at second {}. In the busiest second {} pods were made.\n",
            load.name,
            report::windows(&measured.claims),
            last_cold.unwrap_or_default().as_secs_f64(),
            measured.costs.lasted.as_secs_f64(),
            2 * DRAINED_SECONDS,
            measured.busiest("create", "pods")
        );
        load::clear(&side, PATIENCE).await;
        self.all.push(measured);
        text
    }

    /// Raises the rate until it is not sustained any more.
    async fn highest(&mut self, system: System, load: fn(f64, u64) -> Load) {
        let (pool, seconds) = (self.choice.pool, self.choice.seconds);
        let controller = Controller::start(system, Tuning::Highest, &self.house).await;
        let side = Side::new(system, &self.house).await;
        side.fill(pool, PATIENCE).await;
        let (mut rate, mut sustained) = (FIRST_RATE, None);
        loop {
            let load = Load {
                runs_dry: true,
                ..load(rate, seconds)
            };
            let measured = self.measured(&controller, &side, pool, 0, &load).await;
            load::clear(&side, PATIENCE).await;
            let goes_on = measured.is_sustained() && measured.spoiled().is_none();
            self.all.push(measured);
            if !goes_on {
                let highest = sustained.map_or_else(|| "none".to_owned(), |rate: f64| format!("{rate:.0}/s"));
                eprintln!(
                    "{}: the highest rate that was sustained is {highest}",
                    system.name()
                );
                return;
            }
            sustained = Some(rate);
            rate *= STEP;
        }
    }

    fn tell(&self, floor: &stats::Sorted, starts: &[Start], drained: &str) {
        println!("{}", report::HEAD);
        for measured in &self.all {
            println!("{}", measured.line());
        }
        println!("\nVitrine over agent-sandbox:\n\n{}", report::ratios(&self.all));
        println!("Where the time of a claim goes:\n{}", report::stages(&self.all));
        println!("Who writes what, events included:\n{}", report::writes(&self.all));
        println!(
            "The floor, the writes of one warm claim alone and one after the other: p50 {} / p90 {} / p99 {} ms.",
            ms(floor.percentile(50)),
            ms(floor.percentile(90)),
            ms(floor.percentile(99))
        );
        println!("{drained}");
        for start in starts {
            let standing = |what| start.standing.get(what).copied().unwrap_or_default() * 100.0;
            println!(
                "\nWith {} live previews the operator takes {:.0} MiB. While nobody claims, the whole stack takes {:.1} % of a processor: \
                 controller {:.1}, API server {:.1}, etcd {:.1}; and there are {:.1} reconciles a second. Started anew, it has a claim ready {:.1} s after its start, then takes {:.0} MiB, at most {:.0}.",
                start.live,
                start.before_mib,
                start.standing.values().sum::<f64>() * 100.0,
                standing("controller"),
                standing("API server"),
                standing("etcd"),
                start.looks,
                start.first.as_secs_f64(),
                start.after_mib,
                start.most_mib
            );
        }
        let folder = images::target().join("vitrine/bench");
        std::fs::create_dir_all(&folder).unwrap();
        let figures = json!({
            "floorMs": ([50, 90, 99].map(|percent| floor.percentile(percent).as_secs_f64() * 1000.0)),
            "starts": starts.iter().map(Start::json).collect::<Vec<_>>(),
            "measured": self.all.iter().map(Measured::json).collect::<Vec<_>>()
        });
        std::fs::write(
            folder.join("previews.json"),
            serde_json::to_string_pretty(&figures).unwrap(),
        )
        .unwrap();
        let fastest = self.choice.rates.last().map(|rate| Load::steady(*rate, 0).name);
        let series =
            [(System::Vitrine, "#1565c0"), (System::AgentSandbox, "#c62828")].map(|(system, colour)| {
                let one = self
                    .all
                    .iter()
                    .find(|m| m.side.system == system && Some(&m.load) == fastest.as_ref());
                let points = one.into_iter().flat_map(|m| &m.claims);
                chart::Series {
                    name: system.name(),
                    colour,
                    points: points.map(|claim| (claim.due, claim.in_all())).collect(),
                }
            });
        let title = format!(
            "From when a claim was to come until it is ready, {}",
            fastest.unwrap_or_default()
        );
        // Where both were measured: a part of the whole leaves the plot of another part as it is.
        if series.iter().all(|series| !series.points.is_empty()) {
            std::fs::write(folder.join("previews.svg"), chart::draw(&title, &series)).unwrap();
        }
    }
}
