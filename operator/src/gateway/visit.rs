//! One visit: what is noted of a request once it is over, and the bytes that it took. Holds no connection.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use hyper::{
    Method, Uri,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
};
use jiff::Timestamp;
use serde::Serialize;

use super::{Metrics, routes::Upstream, usage::InUse};
use crate::{
    audit::{self, AuditLog},
    meter::{Budget, Spent},
};

/// A path is noted so far, in bytes: what comes after tells nothing more about what happened.
const PATH_BYTES: usize = 200;
/// The longest method that is registered has 17 bytes (IANA HTTP Method Registry); a stranger may send any.
const METHOD_BYTES: usize = 20;

/// Why a body to a visitor broke off.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Where visits are noted.
pub(super) struct Book {
    pub(super) audit: AuditLog,
    pub(super) metrics: Metrics,
}

/// What is noted of each request. Never a link or a cookie: of the address only the path is here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    time: Timestamp,
    kind: &'static str,
    /// Who asked: the visitor, or the last load balancer.
    source: IpAddr,
    preview: Option<&'a str>,
    preview_uid: Option<&'a str>,
    method: &'a str,
    path: &'a str,
    status: u16,
    outcome: &'static str,
    /// Bytes to the visitor, without heads.
    sent: u64,
    milliseconds: u128,
}

/// A request from its head to the last byte of its answer; it is noted when this is dropped.
pub(super) struct Visit {
    begun: Instant,
    time: Timestamp,
    source: IpAddr,
    method: Method,
    /// Its own copy: a visit may last, and a part of the request's head would keep all of it.
    path: Box<str>,
    upstream: Option<Arc<Upstream>>,
    status: u16,
    outcome: &'static str,
    sent: u64,
    book: Arc<Book>,
    in_use: Option<InUse>,
}

impl Visit {
    pub(super) fn begin(
        time: Timestamp,
        source: IpAddr,
        method: &Method,
        uri: &Uri,
        book: &Arc<Book>,
    ) -> Self {
        Self {
            begun: Instant::now(),
            time,
            source,
            method: method.clone(),
            path: audit::cut(uri.path(), PATH_BYTES).into(),
            upstream: None,
            status: 0,
            outcome: "ok",
            sent: 0,
            book: book.clone(),
            in_use: None,
        }
    }

    /// It is for this preview.
    pub(super) fn of(&mut self, upstream: &Arc<Upstream>) {
        self.upstream = Some(upstream.clone());
    }

    /// It is carried: somebody is there for as long as it goes on.
    pub(super) fn carried(&mut self, in_use: InUse) {
        self.in_use = Some(in_use);
    }

    /// How it was answered.
    pub(super) fn answered(&mut self, status: u16, outcome: &'static str) {
        self.status = status;
        self.outcome = outcome;
    }

    /// So many bytes went to the visitor.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let record = Record {
            time: self.time,
            kind: "gateway",
            source: self.source,
            preview: self.upstream.as_ref().map(|upstream| upstream.preview.as_str()),
            preview_uid: self.upstream.as_ref().map(|upstream| upstream.uid.as_str()),
            method: audit::cut(self.method.as_str(), METHOD_BYTES),
            path: &self.path,
            status: self.status,
            outcome: self.outcome,
            sent: self.sent,
            milliseconds: self.begun.elapsed().as_millis(),
        };
        let metrics = &self.book.metrics;
        metrics.requests.with_label_values(&[record.outcome]).inc();
        metrics.bytes.inc_by(record.sent);
        self.book.audit.record(&record);
    }
}

/// A product's body on its way to a visitor: counted, and broken off when the preview has had all that it may have.
pub(super) struct Counted {
    pub(super) body: Incoming,
    pub(super) budget: Arc<Budget>,
    pub(super) limit: u64,
    pub(super) visit: Visit,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(Some(frame)) = polled else {
            return polled.map(|_| None);
        };
        let frame = frame?;
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        self.visit.sent(bytes);
        if !self.budget.take(bytes, self.limit) {
            self.visit.outcome = "spent";
            return Poll::Ready(Some(Err(Spent.into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
