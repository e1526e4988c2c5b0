//! The benches of previews in numbers, on nodes that run nothing: `cargo xtask bench end | gateway` brings up the cluster and starts
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
mod setup;
mod stats;

fn main() {
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
            ["bare-proxy", listen, to] => {
                bare_proxy::serve(listen.parse().unwrap(), to.parse().unwrap()).await
            }
            other => panic!("no bench is called {other:?}"),
        }
    });
}
