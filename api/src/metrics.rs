//! What the shop counts. In memory.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector};

/// The shop's counters.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Orders that were asked for.
    pub orders: IntCounter,
    /// Events of Stripe's: new, known, rejected, unavailable, too_many.
    pub webhooks: IntCounterVec,
    /// Steps of workers: of events and tasks; done, put off, fenced, failed.
    pub steps: IntCounterVec,
    /// By how many seconds Stripe's clock is ahead of ours.
    pub stripe_ahead: IntGauge,
    /// 1 while Finance has all that it has acknowledged, and 0 while nothing is licensed because it has not.
    pub ledger_whole: IntGauge,
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<C, prometheus::Error>,
) -> C {
    let metric = metric.unwrap_or_else(|error| unreachable!("the metric's name is sound: {error}"));
    registry
        .register(Box::new(metric.clone()))
        .unwrap_or_else(|error| unreachable!("each metric is registered once: {error}"));
    metric
}

impl Counters {
    /// Nothing counted yet.
    pub fn new(registry: &Registry) -> Self {
        Self {
            orders: registered(
                registry,
                IntCounter::new("vitrine_orders_asked_total", "Orders that were asked for."),
            ),
            webhooks: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "vitrine_webhooks_total",
                        "Events of Stripe's, by what became of them.",
                    ),
                    &["outcome"],
                ),
            ),
            steps: registered(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "vitrine_worker_steps_total",
                        "Steps of workers, by what they were of and what became of them.",
                    ),
                    &["of", "outcome"],
                ),
            ),
            stripe_ahead: registered(
                registry,
                IntGauge::new(
                    "vitrine_stripe_clock_ahead_seconds",
                    "By how many seconds Stripe's clock is ahead of ours.",
                ),
            ),
            ledger_whole: registered(
                registry,
                IntGauge::new(
                    "vitrine_finance_ledger_whole",
                    "1 while Finance has all that it has acknowledged, 0 while nothing is licensed because it has not.",
                ),
            ),
        }
    }
}

/// What is counted of the catalogue.
#[derive(Clone, Debug)]
pub struct OfCatalogue {
    /// Products that are sold.
    pub products: IntGauge,
    /// Times that what the listings say could not be written.
    pub failures: IntCounter,
    /// Times that the watch of listings was interrupted.
    pub interruptions: IntCounter,
}

impl OfCatalogue {
    /// Nothing counted yet.
    pub fn new(registry: &Registry) -> Self {
        Self {
            products: registered(
                registry,
                IntGauge::new("vitrine_products_sold", "Products that are sold."),
            ),
            failures: registered(
                registry,
                IntCounter::new(
                    "vitrine_catalogue_failures_total",
                    "Times that what the listings say could not be written.",
                ),
            ),
            interruptions: registered(
                registry,
                IntCounter::new(
                    "vitrine_catalogue_interruptions_total",
                    "Times that the watch of listings was interrupted.",
                ),
            ),
        }
    }
}
