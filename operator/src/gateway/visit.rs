//! One visit: what is noted of a request once it is over, and the bytes that it took. Holds no connection.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use jiff::Timestamp;
use serde::Serialize;

use super::{Metrics, usage::InUse};
use crate::{
    audit::AuditLog,
    meter::{Budget, Spent},
};

/// A path is noted so far: what comes after tells nothing more about what happened.
const PATH_CHARS: usize = 200;

/// Why a body to a visitor broke off.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What is noted of each request. Never a link or a cookie: of the address only the path is here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) time: Timestamp,
    pub(super) kind: &'static str,
    /// Who asked: the visitor, or the last load balancer.
    pub(super) source: IpAddr,
    pub(super) preview: Option<String>,
    pub(super) preview_uid: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) status: u16,
    pub(super) outcome: &'static str,
    /// Bytes to the visitor, without heads.
    pub(super) sent: u64,
    pub(super) milliseconds: u128,
}

/// A request from its head to the last byte of its answer; it is noted when this is dropped.
pub(super) struct Visit {
    begun: Instant,
    record: Record,
    sent: AtomicU64,
    audit: AuditLog,
    metrics: Metrics,
    in_use: Option<InUse>,
}

impl Visit {
    pub(super) fn begin(
        source: IpAddr,
        method: &str,
        path: &str,
        audit: &AuditLog,
        metrics: &Metrics,
    ) -> Self {
        Self {
            begun: Instant::now(),
            record: Record {
                time: Timestamp::now(),
                kind: "gateway",
                source,
                preview: None,
                preview_uid: None,
                method: method.to_owned(),
                path: path.chars().take(PATH_CHARS).collect(),
                status: 0,
                outcome: "ok",
                sent: 0,
                milliseconds: 0,
            },
            sent: AtomicU64::new(0),
            audit: audit.clone(),
            metrics: metrics.clone(),
            in_use: None,
        }
    }

    /// It is for this preview.
    pub(super) fn of(&mut self, preview: &str, uid: &str) {
        self.record.preview = Some(preview.to_owned());
        self.record.preview_uid = Some(uid.to_owned());
    }

    /// It is carried: somebody is there for as long as it goes on.
    pub(super) fn carried(&mut self, in_use: InUse) {
        self.in_use = Some(in_use);
    }

    /// How it was answered.
    pub(super) fn answered(&mut self, status: u16, outcome: &'static str) {
        self.record.status = status;
        self.record.outcome = outcome;
    }

    /// So many bytes went to the visitor.
    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.record.sent = self.sent.load(Ordering::Relaxed);
        self.record.milliseconds = self.begun.elapsed().as_millis();
        self.metrics
            .requests
            .with_label_values(&[self.record.outcome])
            .inc();
        self.metrics.bytes.inc_by(self.record.sent);
        self.audit.record(&self.record);
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
            self.visit.record.outcome = "spent";
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
