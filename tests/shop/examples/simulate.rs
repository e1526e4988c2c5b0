//! Many histories of the shop on a scheduler that a seed decides, on all cores: how many, how many steps, what happened how often, and whether one
//! broke a promise. `cargo xtask bench histories` runs it, compiled for speed.

#![allow(clippy::unwrap_used, reason = "a bench says what is wrong by panicking")]

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use vitrine_shop_tests::simulation::{
    Cell, Choice,
    cells::{FAULTS, IMPOSSIBLE, gaps},
    run,
};

/// From so many histories on, what can happen has to have happened.
const ENOUGH: u64 = 100_000;

/// What all histories together have come to.
#[derive(Default)]
struct Sum {
    steps: u64,
    histories: u64,
    coverage: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    handled: BTreeMap<Cell, u64>,
    ends: BTreeMap<String, u64>,
    wrong: Vec<(u64, String)>,
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap());
    let (first, count) = (arguments.next().unwrap(), arguments.next().unwrap());
    let (next, sum, begun) = (AtomicU64::new(first), Mutex::new(Sum::default()), Instant::now());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let outcome = run(Choice::of(seed));
                    let mut sum = sum.lock().unwrap();
                    sum.steps += outcome.steps;
                    sum.histories += 1;
                    for ((effect, fault), times) in outcome.coverage {
                        *sum.coverage.entry(effect).or_default().entry(fault).or_default() += times;
                    }
                    for (cell, times) in outcome.handled {
                        *sum.handled.entry(cell).or_default() += times;
                    }
                    for end in outcome.ends {
                        *sum.ends.entry(end).or_default() += 1;
                    }
                    sum.wrong.extend(
                        outcome
                            .violation
                            .map(|violation| (seed, format!("{violation:?}"))),
                    );
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} histories from seed {first}, {} steps, {:.0} s on {cores} cores; {} broke a promise.\n",
        sum.histories,
        sum.steps,
        seconds,
        sum.wrong.len()
    );
    for (seed, violation) in &sum.wrong {
        println!("- seed {seed}: {violation}");
    }
    let faults = [
        "heard",
        "lost",
        "unheard",
        "too often",
        "serialisation failure",
        "stale",
        "forged",
    ];
    println!(
        "| effect | {} |\n|---|{}",
        faults.join(" | "),
        "--:|".repeat(faults.len())
    );
    for (effect, by_fault) in &sum.coverage {
        let counts = faults.map(|fault| by_fault.get(fault).map_or_else(|| "–".to_owned(), u64::to_string));
        println!("| {effect} | {} |", counts.join(" | "));
    }
    table(&sum.handled);
    println!("\n| end of an order | how often |\n|---|--:|");
    for (end, times) in &sum.ends {
        println!("| {end} | {times} |");
    }
    let gaps = gaps(&sum.handled);
    println!("\n{} cells of that table are filled.", sum.handled.len());
    for listed in &IMPOSSIBLE {
        println!(
            "- {:?} is not handled at {:?}: {}.",
            listed.kinds, listed.statuses, listed.why
        );
    }
    if !gaps.empty.is_empty() {
        println!("Empty, and not listed as impossible: {:?}.", gaps.empty);
    }
    if !gaps.surprising.is_empty() {
        println!(
            "Filled, and listed as impossible or nowhere: {:?}.",
            gaps.surprising
        );
    }
    let lacks = !gaps.surprising.is_empty() || (sum.histories >= ENOUGH && !gaps.empty.is_empty());
    if !sum.wrong.is_empty() || lacks {
        std::process::exit(1);
    }
}

/// What became of events by their kind and by where their orders stood.
fn table(handled: &BTreeMap<Cell, u64>) {
    println!(
        "\n| event | its order | {} |\n|---|---|{}",
        FAULTS.join(" | "),
        "--:|".repeat(FAULTS.len())
    );
    let rows: std::collections::BTreeSet<_> = handled.keys().map(|(kind, stood, _)| (kind, *stood)).collect();
    for (kind, stood) in rows {
        let counts = FAULTS.map(|fault| {
            let times = handled.get(&(kind.clone(), stood, fault));
            times.map_or_else(|| "–".to_owned(), u64::to_string)
        });
        println!("| `{kind}` | {stood:?} | {} |", counts.join(" | "));
    }
}
