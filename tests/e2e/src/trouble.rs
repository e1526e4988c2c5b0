//! An operator in trouble: killed, or held up, at seeded writes until it is told to stop. Runs operators behind a proxy.

use std::time::Duration;

use tokio::sync::watch;

use crate::{
    dice::Dice,
    house::House,
    operator::{Operator, Options},
    proxy::{Blow, Moment, Proxy, Trap},
};

/// Not every kind of write comes up all the time: after so long another one is waited for.
const TURN: Duration = Duration::from_secs(5);
/// A write is held up for this long at least, and so much longer at most: from a hiccup to longer than a preview of a test lives.
const SHORTEST_MS: u64 = 100;
const SPREAD_MS: usize = 4000;
/// Which of its kind is hit, at most, where a test has few of each.
pub const FEW: usize = 6;

/// Kills one operator, or holds its writes up, at one of these kinds of write after the other, and of each at one of the next `apart`.
/// Returns how often it did which.
///
/// # Panics
/// If the operator does not start.
pub async fn trouble(
    house: &House,
    name: &str,
    seed: u64,
    writes: &[&str],
    apart: usize,
    mut stop: watch::Receiver<bool>,
) -> [usize; 2] {
    let mut dice = Dice::new(seed);
    let proxy = Proxy::start(house.client.clone()).await;
    let options = Options::alone(name);
    let mut operator = Operator::ready(&house.post, &options, Some(&proxy)).await;
    let mut done = [0, 0];
    while !*stop.borrow_and_update() {
        let kill = dice.roll(2) == 0;
        let blow = if kill {
            Blow::Kill(operator.victim())
        } else {
            let more = u64::try_from(dice.roll(SPREAD_MS)).unwrap_or_default();
            Blow::Delay(Duration::from_millis(SHORTEST_MS + more))
        };
        let fires = proxy.arm(Trap {
            label: writes[dice.roll(writes.len())].to_owned(),
            nth: dice.roll(apart),
            moment: [Moment::Before, Moment::After][dice.roll(2)],
            keys: vec![],
            blow,
        });
        let sprung = tokio::select! {
            fired = fires => fired.is_ok(),
            () = tokio::time::sleep(TURN) => false,
            _ = stop.changed() => false,
        };
        proxy.disarm();
        if sprung {
            done[usize::from(!kill)] += 1;
        }
        if !operator.runs() {
            operator = Operator::start(&house.post, &options, Some(&proxy));
        }
    }
    done
}
