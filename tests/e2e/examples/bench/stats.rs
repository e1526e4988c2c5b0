//! Figures of many: percentiles, and how late this machine is by itself. Pure but for the clock.

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

/// By how much a sleep of a millisecond is too long, until told to stop: what of every latency is the machine's own.
pub async fn noise(mut stop: tokio::sync::watch::Receiver<bool>) -> Sorted {
    let mut late = vec![];
    while !*stop.borrow_and_update() {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(1)).await;
        late.push(begun.elapsed().saturating_sub(Duration::from_millis(1)));
    }
    Sorted::of(late)
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
