//! Traces: what is done for a request, and by a worker, as spans for whoever the standard's variables name
//! (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>); for nobody where they name nobody. Touches the network, from threads of its own.

use axum::http::HeaderMap;
use opentelemetry::{KeyValue, propagation::TextMapPropagator, trace::TracerProvider};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{
    ExporterBuildError, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, SpanExporter,
};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets};
use vitrine_program::Beside;

/// Spans of this project's crates: what libraries say of themselves is for their log.
const OURS: &str = "vitrine";

/// What spans are sent by; what waits is sent at its end.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Of a service by this name, unless a variable says another one; if anybody wants them.
    ///
    /// # Errors
    /// If the variables make no sense, or there is no TLS to be had.
    pub fn wanted(service: &'static str) -> Result<Option<Self>, ExporterBuildError> {
        let named = [OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT];
        let is_off = said("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true")
            || said("OTEL_TRACES_EXPORTER").eq_ignore_ascii_case("none");
        if is_off || named.iter().all(|name| said(name).is_empty()) {
            return Ok(None);
        }
        // The process has one already, or has this one from here on.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter = SpanExporter::builder().with_http().build()?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_attributes(named_by(service)).build())
            .build();
        Ok(Some(Self(provider)))
    }

    /// What makes them, beside the log, from the same spans.
    pub fn beside(&self) -> Beside {
        let tracer = self.0.tracer(OURS);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(Targets::new().with_target(OURS, Level::INFO))
            .boxed()
    }

    /// Sends what waits.
    pub fn end(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

/// What a variable says; nothing if it is not there.
fn said(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

/// The service's name, where no variable says it.
fn named_by(service: &'static str) -> Option<KeyValue> {
    let is_said = !said("OTEL_SERVICE_NAME").is_empty()
        || said("OTEL_RESOURCE_ATTRIBUTES")
            .split(',')
            .any(|attribute| attribute.trim_start().starts_with("service.name="));
    (!is_said).then(|| KeyValue::new("service.name", service))
}

/// Has a span that nobody has entered go on with its caller's trace (W3C Trace Context).
pub(crate) fn go_on(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Nobody wants traces, or this one was entered: then it has none, or one of its own.
    let _ = span.set_parent(caller);
}

/// What tells another service of ours to go on with this trace; nothing where there is none.
pub fn told_on() -> HeaderMap {
    let mut headers = HeaderMap::new();
    TraceContextPropagator::new()
        .inject_context(&Span::current().context(), &mut HeaderInjector(&mut headers));
    headers
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::Request, routing::get};
    use tower::ServiceExt;
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

    use super::*;
    use crate::{Callers, Metrics, layered};

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[tokio::test]
    async fn a_trace_goes_on_where_callers_are_ours_and_nowhere_else() {
        let traces = Traces(SdkTracerProvider::builder().build());
        let _log = tracing_subscriber::registry()
            .with(Some(traces.beside()))
            .set_default();
        for (callers, goes_on) in [(Callers::Ours, true), (Callers::Anybody, false)] {
            let routes = Router::new().route("/", get(async || told_on()));
            let request = Request::get("/").header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"));
            let asked =
                layered(routes, callers, Metrics::new()).oneshot(request.body(Body::empty()).unwrap());
            let answer = asked.await.unwrap();
            let told = answer.headers()["traceparent"].to_str().unwrap();
            assert_eq!(told.contains(TRACE), goes_on, "{callers:?}: {told}");
        }
    }
}
