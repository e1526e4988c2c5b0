//! The shop's flows on a scheduler that a seed decides (`vitrine_shop_tests::simulation`).

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use vitrine_parts::soak;
use vitrine_shop_tests::simulation::{Broken, Choice, run};

#[test]
fn no_history_breaks_a_promise() {
    for seed in 0..if soak() { 5_000 } else { 300 } {
        let outcome = run(Choice::of(seed));
        assert_eq!(outcome.violation, None, "seed {seed}: {outcome:?}");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..20 {
        let (one, other) = (run(Choice::of(seed)), run(Choice::of(seed)));
        assert_eq!((one.trace, one.steps), (other.trace, other.steps), "seed {seed}");
    }
}

/// Each is found within so many histories; else the simulation says nothing of the shop that is built rightly.
const WITHIN: u64 = 2_000;

#[test]
fn every_shop_that_is_built_wrongly_is_caught() {
    let mut free = vec![];
    for broken in Broken::ALL {
        let caught = (0..WITHIN)
            .map(|seed| Choice {
                broken,
                ..Choice::of(seed)
            })
            .find(|choice| run(*choice).violation.is_some());
        match caught {
            Some(choice) => {
                let least = choice.shrunk();
                eprintln!(
                    "{broken:?}: history {}, {:?}; enough is {least:?}",
                    choice.seed,
                    run(least).violation
                );
            }
            None => free.push(broken),
        }
    }
    assert!(
        free.is_empty(),
        "{free:?} were not caught within {WITHIN} histories"
    );
}
