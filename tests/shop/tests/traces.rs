//! An order's steps as whoever follows traces sees them: spans of the shop's own process, at a collector that takes them off the wire.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Said, trace::v1::Span,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinSet};
use vitrine_parts::Running;
use vitrine_shop_tests::{
    around::{Around, program, spawn_with},
    town::{CHECKOUT, STRIPE_KEY, session_of, until, wants},
    wire::Numbers,
};
use vitrine_stripe::sim::Act;

type Spans = Arc<Mutex<Vec<Span>>>;

async fn take(State(spans): State<Spans>, body: Bytes) -> StatusCode {
    let sent = ExportTraceServiceRequest::decode(body).unwrap();
    let sent = sent.resource_spans.into_iter().flat_map(|of| of.scope_spans);
    spans.lock().unwrap().extend(sent.flat_map(|of| of.spans));
    StatusCode::OK
}

/// A collector: where it is, and what it has.
async fn collector(tasks: &mut JoinSet<()>) -> (String, Spans) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let spans = Spans::default();
    let routes = Router::new()
        .route("/v1/traces", post(take))
        .with_state(spans.clone());
    tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (address, spans)
}

fn said(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Said::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}

/// What a span has asked others.
fn asked<'a>(spans: &'a [Span], by: &Span, whom: &str) -> Vec<&'a Span> {
    let is_of =
        |span: &&Span| span.trace_id == by.trace_id && span.parent_span_id == by.span_id && span.name == whom;
    spans.iter().filter(is_of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finance_is_asked_and_has_answered_before_anything_is_signed() {
    let program = program(env!("CARGO_TARGET_TMPDIR"));
    let around = Around::numbered(&Numbers::new(None, || {})).await;
    let mut tasks = JoinSet::new();
    let (collector, spans) = collector(&mut tasks).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str()),
        // Milliseconds: somebody waits.
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let _shop = Running(spawn_with(&program, &around.arguments, &variables));
    let made = until(async || {
        match around
            .ask("alice", "POST", CHECKOUT, Some("k"), Some(wants("notes", 2)))
            .await
        {
            Some((201, made)) => Ok(made),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let order = made["order"].as_str().unwrap();
    around.stripe.act(&Act::Pay(session_of(&made))).unwrap();
    // A deposit, a reserve, and what each of two units has earned when it is signed: then all is done.
    let of_order = |spans: &[Span], name: &str| -> Vec<Span> {
        let is = |span: &&Span| span.name == name && said(span, "order").as_deref() == Some(order);
        spans.iter().filter(is).cloned().collect()
    };
    let all = until(async || {
        let all = spans.lock().unwrap().clone();
        let (booked, licensed) = (of_order(&all, "book").len(), of_order(&all, "license").len());
        if (booked, licensed) == (4, 2) {
            Ok(all)
        } else {
            Err(format!("{booked} entries, {licensed} licences"))
        }
    })
    .await;

    let mut booked = of_order(&all, "book").into_iter();
    let is_reserve = |span: &Span| said(span, "task").is_some_and(|task| task.starts_with("book reserve:"));
    let reserved = booked.find(is_reserve).unwrap();
    let [answered] = asked(&all, &reserved, "Finance")[..] else {
        panic!("{reserved:?} has not asked Finance once")
    };
    for licensed in of_order(&all, "license") {
        let [signed] = asked(&all, &licensed, "the signer")[..] else {
            panic!("{licensed:?} has not asked the signer once")
        };
        assert!(
            answered.end_time_unix_nano <= signed.start_time_unix_nano,
            "{answered:?} {signed:?}"
        );
    }
    // That it was paid was read from Stripe before that, by whichever of two events was first.
    let events = ["checkout.session.completed", "payment_intent.succeeded"];
    let paid = events.map(|kind| of_order(&all, kind)).concat();
    let read = paid.iter().flat_map(|event| asked(&all, event, "Stripe"));
    let first = read.map(|read| read.end_time_unix_nano).min().unwrap();
    assert!(first <= answered.start_time_unix_nano);
    // A buyer's request has a trace of its own, in which its calls to Stripe are.
    let request = format!("POST {CHECKOUT}");
    let request = all.iter().find(|span| span.name == request).unwrap();
    let in_trace = all
        .iter()
        .filter(|span| span.trace_id == request.trace_id && span.name == "Stripe");
    assert_eq!(in_trace.count(), 2, "a customer and a session");
    // And no span has a secret in it.
    let texts = all.iter().map(|span| format!("{span:?}"));
    // What is the same in all of a provider's tokens.
    let token = around.token("alice");
    let (token, _) = token.split_once('.').unwrap();
    assert!(texts.clone().count() > 0);
    for text in texts {
        assert!(!text.contains(STRIPE_KEY) && !text.contains(token), "{text}");
    }
}
