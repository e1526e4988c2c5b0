//! The log: to standard error, as text, or as JSON where `VITRINE_LOG_FORMAT=json`. `RUST_LOG` says how much.

use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Something else that is told of all that happens, with a filter of its own.
pub type Beside = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to log. Once a process.
pub fn logging() {
    logging_beside(None);
}

/// Begins to log, and to tell something else. Once a process.
pub fn logging_beside(other: Option<Beside>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = if std::env::var("VITRINE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        log.json().with_filter(filter).boxed()
    } else {
        log.with_target(false).with_filter(filter).boxed()
    };
    tracing_subscriber::registry().with(other).with(log).init();
}
