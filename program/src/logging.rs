//! The log: to standard error, as text, or as JSON where `VITRINE_LOG_FORMAT=json`. `RUST_LOG` says how much.

use tracing_subscriber::EnvFilter;

/// Begins to log. Once a process.
pub fn logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::env::var("VITRINE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        builder.with_target(false).init();
    }
}
