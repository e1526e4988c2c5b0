//! The world outside, over HTTP: Stripe, Finance, the signer.

pub mod finance;
pub mod signer;
pub mod stripe;

use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, header::RETRY_AFTER};
use tracing::{Instrument, Span};
use vitrine_service::told_on;

use crate::seams::Outside;

/// An answer that takes longer is given up: whether it took effect is not known then. Shorter than a lease.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A client for all of them.
///
/// # Errors
/// If there is no TLS to be had.
pub fn client() -> Result<reqwest::Client, reqwest::Error> {
    // The process has one already, or has this one from here on.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(PATIENCE)
        .connect_timeout(CONNECT)
        .user_agent("vitrine")
        .build()
}

/// Asks a service of ours, which goes on with this trace.
async fn ask(who: &'static str, what: &str, request: RequestBuilder) -> Result<Vec<u8>, Outside> {
    let asked = async { read(who, request.headers(told_on()).send().await).await };
    asked.instrument(asking(who, what)).await
}

/// The span of a question to somebody outside.
fn asking(who: &'static str, what: &str) -> Span {
    tracing::info_span!(
        "ask",
        otel.name = who,
        otel.kind = "client",
        peer.service = who,
        what
    )
}

/// The bytes of a good answer, or what is wrong.
async fn read(who: &'static str, sent: reqwest::Result<Response>) -> Result<Vec<u8>, Outside> {
    let unknown = |error: reqwest::Error| Outside::Unknown {
        who,
        // Without its address, which may have something in it that is nobody's business.
        why: error.without_url().to_string(),
    };
    let response = sent.map_err(unknown)?;
    let (status, wait) = (response.status(), retry_after(&response));
    let body = response.bytes().await.map_err(unknown)?;
    if status.is_success() {
        return Ok(body.into());
    }
    let said: Said = serde_json::from_slice(&body).unwrap_or_default();
    Err(match status {
        StatusCode::TOO_MANY_REQUESTS => Outside::TooOften { who, wait },
        // 409 of Stripe's: another call with this key is at it.
        _ if status.is_server_error()
            || status == StatusCode::REQUEST_TIMEOUT
            || (status == StatusCode::CONFLICT && said.code().is_none()) =>
        {
            Outside::Unknown {
                who,
                why: format!("it answered {status}"),
            }
        }
        _ => Outside::Refused {
            who,
            code: said.code().unwrap_or_else(|| status.as_u16().to_string()),
            why: said.why().unwrap_or_else(|| format!("it answered {status}")),
        },
    })
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What an error says of itself: a problem of ours, or an error of Stripe's.
#[derive(Default, serde::Deserialize)]
struct Said {
    code: Option<String>,
    detail: Option<String>,
    title: Option<String>,
    error: Option<Error>,
}

#[derive(serde::Deserialize)]
struct Error {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
}

impl Said {
    fn code(&self) -> Option<String> {
        let of_stripe = || {
            self.error
                .as_ref()
                .and_then(|error| error.code.clone().or_else(|| error.kind.clone()))
        };
        self.code.clone().or_else(of_stripe)
    }

    fn why(&self) -> Option<String> {
        let of_stripe = || self.error.as_ref().and_then(|error| error.message.clone());
        self.detail
            .clone()
            .or_else(|| self.title.clone())
            .or_else(of_stripe)
    }
}
