//! The operator's metrics, with bounded labels. Touches a registry of its own.

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use vitrine_crds::{Phase, StatusReason, preview_sandbox::Measure};

use crate::error::Error;

/// What is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations by outcome.
    pub reconciles: IntCounterVec,
    /// Errors by category.
    pub errors: IntCounterVec,
    /// Ends by cause.
    pub ends: IntCounterVec,
    /// Repairs by what was repaired.
    pub repairs: IntCounterVec,
    /// Previews by phase.
    pub previews: IntGaugeVec,
    /// Previews that got slots and a cell, by whether they were ready in it at once.
    pub admissions: IntCounterVec,
    /// Cells of pools by how they are.
    pub pool_cells: IntGaugeVec,
    /// Seconds from creation to ready.
    pub ready_seconds: Histogram,
    /// Seconds from the end's cause to its proof.
    pub end_seconds: Histogram,
    /// For how long the preview that has been ending for the longest has been, in seconds.
    pub longest_end_seconds: IntGauge,
    /// Previews taken for abuse, by what was done.
    pub abuse: IntCounterVec,
    /// Previews that were given less processor time.
    pub throttled: IntCounter,
    /// Nodes on which isolation did not hold, and which get no previews for a while.
    pub nodes_set_aside: IntGauge,
    /// Objects that could not be read.
    pub malformed: IntCounter,
    /// Orphans removed.
    pub orphans: IntCounter,
    /// Receipts that the sink acknowledged.
    pub receipts_delivered: IntCounter,
    /// Receipts that the sink has still to get.
    pub receipts_waiting: IntGauge,
    /// Receipts that neither the sink nor the spool took before their preview went.
    pub receipts_dropped: IntCounter,
    /// Failures of the sink by what they were.
    pub receipt_failures: IntCounterVec,
}

impl Metrics {
    /// Counts an error.
    pub fn failed(&self, error: &Error) {
        self.errors.with_label_values(&[error.category()]).inc();
    }

    /// Makes and registers them.
    ///
    /// # Errors
    /// If two metrics have one name, which is a defect.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        // From a warm claim to the longest provisioning deadline that makes sense.
        let buckets = vec![
            0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0,
        ];
        let histogram = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let histogram = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.clone()))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let previews = IntGaugeVec::new(Opts::new("vitrine_previews", "previews by phase"), &["phase"])?;
        registry.register(Box::new(previews.clone()))?;
        let pool_cells = IntGaugeVec::new(
            Opts::new("vitrine_pool_cells", "cells of pools by how they are"),
            &["state"],
        )?;
        registry.register(Box::new(pool_cells.clone()))?;
        let receipts_waiting = IntGauge::new(
            "vitrine_receipts_waiting",
            "receipts that the sink has still to acknowledge",
        )?;
        registry.register(Box::new(receipts_waiting.clone()))?;
        let nodes_set_aside = IntGauge::new(
            "vitrine_nodes_set_aside",
            "nodes that get no previews because isolation did not hold on them",
        )?;
        registry.register(Box::new(nodes_set_aside.clone()))?;
        let longest_end_seconds = IntGauge::new(
            "vitrine_preview_longest_end_seconds",
            "for how long the preview that has been ending for the longest has been",
        )?;
        registry.register(Box::new(longest_end_seconds.clone()))?;
        let metrics = Self {
            reconciles: counters(
                "vitrine_reconciles_total",
                "reconciliations by outcome",
                "outcome",
            )?,
            errors: counters("vitrine_errors_total", "errors by category", "category")?,
            ends: counters("vitrine_preview_ends_total", "ends of previews by cause", "cause")?,
            repairs: counters(
                "vitrine_repairs_total",
                "repairs of cells by what was repaired",
                "part",
            )?,
            admissions: counters(
                "vitrine_preview_admissions_total",
                "previews that got slots and a cell, by whether they were ready in it at once",
                "start",
            )?,
            pool_cells,
            ready_seconds: histogram("vitrine_preview_ready_seconds", "seconds from creation to ready")?,
            end_seconds: histogram(
                "vitrine_preview_end_seconds",
                "seconds from the cause of an end to its proof",
            )?,
            abuse: counters(
                "vitrine_abuse_findings_total",
                "previews taken for abuse, by what was done",
                "measure",
            )?,
            throttled: counter(
                "vitrine_previews_throttled_total",
                "previews that were given less processor time",
            )?,
            nodes_set_aside,
            longest_end_seconds,
            malformed: counter(
                "vitrine_malformed_objects_total",
                "objects that could not be read and were set aside",
            )?,
            orphans: counter(
                "vitrine_orphans_removed_total",
                "cells and slots without a preview that were removed",
            )?,
            receipts_delivered: counter(
                "vitrine_receipts_delivered_total",
                "receipts that the sink acknowledged",
            )?,
            receipts_waiting,
            receipts_dropped: counter(
                "vitrine_receipts_dropped_total",
                "receipts that neither the sink nor the spool took before their preview went",
            )?,
            receipt_failures: counters(
                "vitrine_receipt_sink_failures_total",
                "receipts that the sink did not acknowledge, by whether it was the sink or the receipt",
                "category",
            )?,
            previews,
            registry,
        };
        // A series that begins at one rises by nothing, as far as Prometheus can tell: what alerts look at begins at zero.
        for measure in [Measure::Throttle, Measure::End, Measure::Block] {
            metrics.abuse.with_label_values(&[measure.as_str()]);
        }
        for cause in [
            StatusReason::IsolationBroken,
            StatusReason::SealBroken,
            StatusReason::NetworkNotEnforcing,
            StatusReason::ImageVolumes,
            StatusReason::ProbeFailed,
            StatusReason::Unproven,
        ] {
            metrics.ends.with_label_values(&[cause.as_str()]);
        }
        metrics.stands_by();
        Ok(metrics)
    }

    /// Shows zeros: before anything was counted, and when whoever leads counts it.
    pub fn stands_by(&self) {
        self.receipts_waiting.set(0);
        self.nodes_set_aside.set(0);
        self.longest_end_seconds.set(0);
        for phase in Phase::ALL {
            self.previews.with_label_values(&[phase.as_str()]).set(0);
        }
        self.pool_cells.reset();
    }

    /// The text format of Prometheus.
    pub fn text(&self) -> String {
        let mut buffer = vec![];
        match TextEncoder::new().encode(&self.registry.gather(), &mut buffer) {
            Ok(()) => String::from_utf8_lossy(&buffer).into_owned(),
            Err(error) => format!("# failed to encode the metrics: {error}\n"),
        }
    }
}
