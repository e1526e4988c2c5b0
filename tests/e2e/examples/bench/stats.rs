//! Figures of many: percentiles; how late this machine is by itself, and a load that is not. Sleeps, and sets priorities by chrt(1).

use std::time::{Duration, Instant};

/// Durations, sorted.
pub struct Sorted(Vec<Duration>);

impl Sorted {
    pub fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        Self(all)
    }

    /// The smallest of which so many hundredths are no larger; zero of none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// In milliseconds, with as many places as say something.
pub fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 100.0 {
        format!("{ms:.2}")
    } else {
        format!("{ms:.0}")
    }
}

/// By how much a sleep of a millisecond is too long for a thread like any other, until told to stop: what of every latency is the machine's
/// own.
pub async fn noise(stop: tokio::sync::watch::Receiver<bool>) -> Sorted {
    let sleeps = move || {
        let mut late = vec![];
        while !*stop.borrow() {
            let begun = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            late.push(begun.elapsed().saturating_sub(Duration::from_millis(1)));
        }
        Sorted::of(late)
    };
    tokio::task::spawn_blocking(sleeps).await.unwrap()
}

/// Has the threads that there are go before all others (sched(7), `SCHED_RR`), and none that begins later: they make the load, and a load
/// that comes late because what is measured has the processors measures itself. Processes that are started later are like any other.
pub fn go_first() {
    let pid = std::process::id().to_string();
    let arguments = ["--rr", "--reset-on-fork", "--all-tasks", "--pid", "1", &pid];
    vitrine_kit::program::run_with(std::process::Command::new("chrt").args(arguments)).unwrap();
}

/// Resident memory of a process, in MiB (proc(5), VmRSS).
pub fn resident_mib(pid: u32) -> f64 {
    of_status(pid, "VmRSS:")
}

/// The most that a process has had resident, in MiB (proc(5), `VmHWM`).
pub fn most_resident_mib(pid: u32) -> f64 {
    of_status(pid, "VmHWM:")
}

fn of_status(pid: u32, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}
