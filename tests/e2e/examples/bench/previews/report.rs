//! What measurements say, in Markdown and JSON. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use vitrine_kit::audit::Write;
use vitrine_policies::slots::{self, Dimension};

use super::{
    costs::Costs,
    load::Claim,
    side::{Side, System},
};
use crate::stats::{Sorted, ms};

/// A generator that is later than this, one time in a hundred, measures itself, …
const LATEST: Duration = Duration::from_millis(20);
/// … unless what it measures is so many times as long: it shares two cores with what it measures.
const LONGER: u32 = 5;
/// Windows of which the slowest is told.
const WINDOW: Duration = Duration::from_secs(10);

/// One measurement.
pub struct Measured {
    pub side: Side,
    pub load: String,
    pub round: usize,
    pub pool: usize,
    pub claims: Vec<Claim>,
    pub costs: Costs,
    pub reconciles: f64,
    pub noise: Sorted,
    /// Whether it may run out of what is ready: that is what is measured.
    pub runs_dry: bool,
}

/// Half, nine of ten, and all but one in a hundred.
#[derive(Clone, Copy, Debug, Default)]
pub struct Percentiles(pub [Duration; 3]);

impl Percentiles {
    fn of(times: Vec<Duration>) -> Self {
        let sorted = Sorted::of(times);
        Self([50, 90, 99].map(|percent| sorted.percentile(percent)))
    }

    fn cells(&self) -> String {
        self.0.map(ms).join(" / ")
    }

    fn json(&self) -> Value {
        json!(self.0.map(|time| time.as_secs_f64() * 1000.0))
    }
}

impl Measured {
    /// From the answer to the creation until it was ready.
    pub fn after_create(&self) -> Percentiles {
        Percentiles::of(self.claims.iter().map(Claim::after_create).collect())
    }

    /// From when it was to come.
    pub fn in_all(&self) -> Percentiles {
        Percentiles::of(self.claims.iter().map(Claim::in_all).collect())
    }

    /// By the API server's own clock: from the creation's arrival until the answer to the first write of the claim's status.
    pub fn at_the_server(&self) -> Percentiles {
        let (resource, mut told) = (self.side.resource(), BTreeMap::new());
        let of_claims = self
            .costs
            .writes
            .iter()
            .filter(|w| w.is_done() && w.resource == resource);
        for write in of_claims
            .clone()
            .filter(|w| w.subresource.as_deref() == Some("status"))
        {
            if let Some(name) = &write.name {
                told.entry(name.as_str()).or_insert(write.answered);
            }
        }
        let created = of_claims.filter(|w| w.verb == "create");
        let took = |w: &Write| {
            let ready = *told.get(w.name.as_deref()?)?;
            ready.duration_since(w.received).try_into().ok()
        };
        Percentiles::of(created.filter_map(took).collect())
    }

    /// Where the time of a warm claim goes, by the API server's own clock: one stage after the other. Of Vitrine alone.
    pub fn stages(&self) -> Vec<(&'static str, Percentiles)> {
        if self.side.system != System::Vitrine {
            return vec![];
        }
        let done = || self.costs.writes.iter().filter(|w| w.is_done());
        let by_name = |resource: &str, subresource: Option<&str>, verbs: &[&str]| {
            let mut found: BTreeMap<&str, &Write> = BTreeMap::new();
            let wanted = done().filter(|w| {
                w.resource == resource
                    && w.subresource.as_deref() == subresource
                    && verbs.contains(&w.verb.as_str())
            });
            for write in wanted {
                if let Some(name) = &write.name {
                    found.entry(name).or_insert(write);
                }
            }
            found
        };
        let creates = by_name(self.side.resource(), None, &["create"]);
        let leases = by_name("leases", None, &["create"]);
        let told = by_name(self.side.resource(), Some("status"), &["update", "patch"]);
        let mut stages: [Vec<Duration>; 5] = Default::default();
        for (name, create) in creates {
            // A claim's subject is its name.
            let slot = slots::name(Dimension::Subject, name, 0);
            let (Some(lease), Some(told)) = (leases.get(slot.as_str()), told.get(name)) else {
                continue;
            };
            let times = [
                create.received,
                create.answered,
                lease.received,
                lease.answered,
                told.received,
                told.answered,
            ];
            for (stage, pair) in stages.iter_mut().zip(times.windows(2)) {
                // A watch may tell the operator of a creation before its answer is on its way.
                stage.push(pair[1].duration_since(pair[0]).try_into().unwrap_or_default());
            }
        }
        let names = [
            "the creation",
            "until the slot's creation arrives: watch, reads, decision",
            "the slot's creation, beside which the cell is claimed",
            "until the status arrives",
            "the status",
        ];
        names.into_iter().zip(stages.map(Percentiles::of)).collect()
    }

    /// The slowest p99 of any ten seconds: a window begins with every claim. Every latency is kept, and percentiles are exact; a histogram
    /// would round them.
    pub fn slowest_window(&self) -> Duration {
        let window = |first: &Claim| {
            let within = |claim: &&Claim| claim.due >= first.due && claim.due < first.due + WINDOW;
            let times = self.claims.iter().filter(within).map(Claim::in_all);
            Percentiles::of(times.collect()).0[2]
        };
        self.claims.iter().map(window).max().unwrap_or_default()
    }

    pub fn cold(&self) -> usize {
        self.claims.iter().filter(|c| c.is_cold()).count()
    }

    pub fn unanswered(&self) -> usize {
        self.claims.iter().filter(|c| c.ready.is_none()).count()
    }

    /// Whether everybody was served warm, and soon enough that nothing piled up.
    pub fn is_sustained(&self) -> bool {
        self.cold() + self.unanswered() == 0 && self.slowest_window() < Duration::from_secs(1)
    }

    /// What else than the measured limited this measurement: then its figures say nothing.
    pub fn spoiled(&self) -> Option<String> {
        let late = Percentiles::of(self.claims.iter().map(Claim::late).collect()).0[2];
        if late > LATEST.max(self.in_all().0[2] / LONGER) {
            return Some(format!("the load generator was {} ms late at p99", ms(late)));
        }
        let shed = self.costs.writes.iter().filter(|w| w.code == 429).count();
        if shed > 0 {
            return Some(format!("the API server shed {shed} writes"));
        }
        // Then its p99 would be that of a claim which found nothing ready.
        let cold = self.cold();
        (!self.runs_dry && cold * 100 > self.claims.len())
            .then(|| format!("the pool ran dry: {cold} of {} were made cold", self.claims.len()))
    }

    fn a_claim(&self, total: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let count = self.claims.len() as f64;
        total / count
    }

    fn is_of_controller(&self, write: &Write) -> bool {
        match self.side.system {
            System::Vitrine => write.user.ends_with(":vitrine-operator"),
            System::AgentSandbox => write.agent.starts_with("agent-sandbox"),
        }
    }

    /// Writes a claim, events and leader election aside: the controller's, and everybody's.
    pub fn writes(&self) -> [f64; 2] {
        let all = || self.costs.writes.iter().filter(|w| w.is_done() && !w.is_aside());
        #[expect(clippy::cast_precision_loss, reason = "some ten thousand")]
        let counts = [
            all().filter(|w| self.is_of_controller(w)).count() as f64,
            all().count() as f64,
        ];
        counts.map(|count| self.a_claim(count))
    }

    /// Everybody's writes a claim, by author and by what they are.
    fn by_author(&self) -> BTreeMap<String, BTreeMap<String, f64>> {
        let mut authors: BTreeMap<String, Vec<&Write>> = BTreeMap::new();
        for write in self.costs.writes.iter().filter(|w| w.is_done()) {
            authors.entry(self.author(write)).or_default().push(write);
        }
        #[expect(clippy::cast_precision_loss, reason = "some ten thousand")]
        let a_claim = |count: usize| self.a_claim(count as f64);
        let counted = |writes: Vec<&Write>| {
            let counts = vitrine_kit::audit::count(writes);
            counts
                .into_iter()
                .map(|(label, count)| (label, a_claim(count)))
                .collect()
        };
        authors
            .into_iter()
            .map(|(author, writes)| (author, counted(writes)))
            .collect()
    }

    /// Who wrote, as people call it. Administrators are told apart by their programs.
    fn author(&self, write: &Write) -> String {
        const OF_KUBERNETES: [&str; 2] = ["system:serviceaccount:kube-system:", "system:"];
        if self.is_of_controller(write) {
            return "the controller".to_owned();
        }
        let part = OF_KUBERNETES
            .iter()
            .find_map(|prefix| write.user.strip_prefix(prefix));
        let program = write.agent.split('/').next().unwrap_or_default();
        part.filter(|part| *part != "admin")
            .unwrap_or(if program.is_empty() { "the load" } else { program })
            .to_owned()
    }

    /// How many writes of a kind the controller made in the second in which it made most.
    pub fn busiest(&self, verb: &str, resource: &str) -> usize {
        let mut seconds: BTreeMap<i64, usize> = BTreeMap::new();
        let own = self.costs.writes.iter().filter(|w| {
            w.is_done()
                && self.is_of_controller(w)
                && (w.verb.as_str(), w.resource.as_str(), w.subresource.as_ref()) == (verb, resource, None)
        });
        for write in own {
            *seconds.entry(write.received.as_second()).or_default() += 1;
        }
        seconds.into_values().max().unwrap_or_default()
    }

    /// Milliseconds of processor time a claim, by process; the whole under "all".
    pub fn cpu(&self) -> BTreeMap<&'static str, f64> {
        let mut cpu: BTreeMap<_, _> = self
            .costs
            .cpu
            .iter()
            .map(|(what, seconds)| (*what, self.a_claim(seconds * 1000.0)))
            .collect();
        cpu.insert("all", cpu.values().sum());
        cpu
    }

    /// A line of the table.
    pub fn line(&self) -> String {
        let head = format!(
            "| {} | {} | {} | {} |",
            self.load,
            self.side.system.name(),
            self.pool,
            self.claims.len()
        );
        if let Some(why) = self.spoiled() {
            return format!("{head} not reported: {why} |");
        }
        let cpu = self.cpu();
        let cpu = ["all", "controller", "API server", "etcd"]
            .map(|what| format!("{:.0}", cpu[what]))
            .join(" / ");
        let [own, all] = self.writes();
        let (cold, unanswered) = (self.cold(), self.unanswered());
        format!(
            "{head} {} | {} | {} | {} | {cold} / {unanswered} | {own:.1} / {all:.1} | {cpu} | {:.1} | {:.0} | {} |",
            self.after_create().cells(),
            self.in_all().cells(),
            self.at_the_server().cells(),
            ms(self.slowest_window()),
            self.a_claim(self.reconciles),
            self.costs.resident_mib,
            ms(self.noise.percentile(99)),
        )
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        json!({
            "system": self.side.system.name(), "load": self.load, "round": self.round, "pool": self.pool, "claims": self.claims.len(),
            "seconds": self.costs.lasted.as_secs_f64(), "spoiled": self.spoiled(),
            "msAfterCreate": self.after_create().json(), "msInAll": self.in_all().json(), "msAtTheServer": self.at_the_server().json(),
            "msSlowestWindow": self.slowest_window().as_secs_f64() * 1000.0,
            "cold": self.cold(), "unanswered": self.unanswered(), "writes": self.writes(), "writesByAuthor": self.by_author(),
            "stages": self.stages().iter().map(|(stage, times)| (*stage, times.json())).collect::<BTreeMap<_, _>>(),
            "cpuMs": self.cpu(), "reconciles": self.a_claim(self.reconciles), "residentMib": self.costs.resident_mib,
            "noiseMs": self.noise.percentile(99).as_secs_f64() * 1000.0
        })
    }
}

/// How claims fared in each ten seconds in which they came.
pub fn windows(claims: &[Claim]) -> String {
    let mut windows: BTreeMap<u128, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        let window = claim.due.as_millis() / WINDOW.as_millis();
        windows.entry(window).or_default().push(claim);
    }
    let mut text =
        "| from second | claims | cold | unanswered | in all p50 / p90 / p99 ms |\n|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for (window, claims) in windows {
        let cold = claims.iter().filter(|c| c.is_cold()).count();
        let unanswered = claims.iter().filter(|c| c.ready.is_none()).count();
        let times = Percentiles::of(claims.iter().map(|c| c.in_all()).collect());
        text += &format!(
            "| {} | {} | {cold} | {unanswered} | {} |\n",
            window * u128::from(WINDOW.as_secs()),
            claims.len(),
            times.cells()
        );
    }
    text
}

/// Where the time goes, for every load of the first round.
pub fn stages(all: &[Measured]) -> String {
    let mut text = String::new();
    for one in all.iter().filter(|one| one.round == 0 && one.spoiled().is_none()) {
        let stages = one.stages();
        if stages.is_empty() {
            continue;
        }
        text += &format!(
            "\n| {}, pool of {}: stage | p50 / p90 / p99 ms |\n|---|--:|\n",
            one.load, one.pool
        );
        for (stage, times) in stages {
            text += &format!("| {stage} | {} |\n", times.cells());
        }
    }
    text
}

/// A write that comes less often than once in so many claims is not told in the table.
const RARE: f64 = 0.05;

/// Writes a claim by author, resource and verb, for every load of the first round.
pub fn writes(all: &[Measured]) -> String {
    let mut text = String::new();
    for one in all.iter().filter(|one| one.round == 0 && one.spoiled().is_none()) {
        text += &format!(
            "\n| {}, {}, pool of {}: author | writes a claim |\n|---|---|\n",
            one.side.system.name(),
            one.load,
            one.pool
        );
        for (author, writes) in one.by_author() {
            let frequent = writes.iter().filter(|(_, often)| **often >= RARE);
            let told: Vec<_> = frequent
                .map(|(label, often)| format!("{label} {often:.2}"))
                .collect();
            if !told.is_empty() {
                let sum: f64 = writes.values().sum();
                text += &format!("| {author} | {sum:.2}: {} |\n", told.join(", "));
            }
        }
    }
    text
}

/// The head of the table of [`Measured::line`].
pub const HEAD: &str = "\
| load | system | pool | claims | after create p50 / p90 / p99 ms | in all | at the server | slowest 10 s, p99 | cold / unanswered | writes a claim: controller / all | CPU ms a claim: all / controller / API server / etcd | reconciles | RSS MiB | noise p99 ms |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

/// Vitrine's figures over the peer's, each the mean of its rounds, for every load that both had.
pub fn ratios(all: &[Measured]) -> String {
    let mut text = "| load | p50 | p90 | p99 | CPU of the whole stack | writes by the controller |\n|---|--:|--:|--:|--:|--:|\n".to_owned();
    let mut loads: Vec<(&str, usize)> = vec![];
    for one in all {
        if !loads.contains(&(&one.load, one.pool)) {
            loads.push((&one.load, one.pool));
        }
    }
    for (load, pool) in loads {
        let mean = |system: System, of: &dyn Fn(&Measured) -> f64| {
            let own = all.iter().filter(|m| {
                m.side.system == system && m.load == load && m.pool == pool && m.spoiled().is_none()
            });
            let values: Vec<f64> = own.map(of).collect();
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            let count = values.len() as f64;
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / count)
        };
        let ratio = |of: &dyn Fn(&Measured) -> f64| {
            let (ours, theirs) = (mean(System::Vitrine, of)?, mean(System::AgentSandbox, of)?);
            Some(format!("{:.2}", ours / theirs))
        };
        let percentile = |n: usize| ratio(&move |m: &Measured| m.after_create().0[n].as_secs_f64());
        let (cpu, writes) = (ratio(&|m| m.cpu()["all"]), ratio(&|m| m.writes()[0]));
        if let [Some(p50), Some(p90), Some(p99), Some(cpu), Some(writes)] =
            [percentile(0), percentile(1), percentile(2), cpu, writes]
        {
            text += &format!("| {load}, pool of {pool} | {p50} | {p90} | {p99} | {cpu} | {writes} |\n");
        }
    }
    text
}
