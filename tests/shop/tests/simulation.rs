//! The shop's flows on a scheduler that a seed decides (`vitrine_shop_tests::simulation`).

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use vitrine_shop_tests::simulation::{Choice, run};

#[test]
fn no_history_breaks_a_promise() {
    let seeds = std::env::var("VITRINE_HISTORIES").map_or(300, |text| text.parse().unwrap());
    for seed in 0..seeds {
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
