//! The benches of previews in numbers, on nodes that run nothing: `cargo xtask bench end | gateway | previews` brings up the cluster and starts
//! this. Measures and never judges; a setup that fails panics. Runs operator and gateway as processes, listens on loopback.
#![allow(
    clippy::unwrap_used,
    reason = "a bench that cannot be set up has nothing to measure"
)]

mod bare_proxy;
mod end;
mod gateway;
mod load;
mod pods;
mod previews;
mod setup;
mod stats;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A program compiled for speed aborts when it panics, and drops nothing: what it has started ends here.
fn end_children_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let threads = std::fs::read_dir("/proc/self/task")
            .into_iter()
            .flatten()
            .flatten();
        let children =
            threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let pids: String = children.collect();
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            // It may have ended already.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }));
}

fn main() {
    end_children_on_panic();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| {
        text.parse::<usize>()
            .unwrap_or_else(|_| panic!("{text:?} is no number"))
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match words.as_slice() {
            ["end", previews] => end::measure(number(previews)).await,
            ["gateway", previews, seconds] => gateway::measure(number(previews), number(seconds)).await,
            ["previews", choice] => previews::measure(previews::Choice::read(choice)).await,
            ["bare-proxy", listen, to] => {
                bare_proxy::serve(listen.parse().unwrap(), to.parse().unwrap()).await
            }
            other => panic!("no bench is called {other:?}"),
        }
    });
}
