//! Whether a webhook is Stripe's (<https://docs.stripe.com/webhooks/signature>). Pure.
//!
//! Ours, because the crate for it accepts an empty secret, which anybody can sign with, and refuses what it cannot parse before it says whose it is.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// How far a webhook's time may be from ours, in seconds: Stripe's own tolerance.
pub const TOLERANCE: i64 = 300;
/// Of a body, in bytes. Stripe's largest events are some tens of kilobytes.
pub const LARGEST: usize = 256 << 10;

/// The secrets of one endpoint that live now: two, while one is rolled.
#[derive(Clone)]
pub struct Secrets(Vec<String>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

impl Secrets {
    /// `None` without any, or where one is empty: then there is no endpoint.
    pub fn new(secrets: impl IntoIterator<Item = String>) -> Option<Self> {
        let secrets: Vec<_> = secrets.into_iter().collect();
        let all_say_something = secrets.iter().all(|secret| !secret.trim().is_empty());
        (!secrets.is_empty() && all_say_something).then_some(Self(secrets))
    }
}

/// Why a webhook is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// Too large.
    #[error("the body is larger than {LARGEST} bytes")]
    TooLarge,
    /// The header is missing, or cannot be read.
    #[error("the header Stripe-Signature is missing or has no time and no v1 signature")]
    Malformed,
    /// Signed by somebody else, or of another body.
    #[error("no signature fits the body")]
    Mismatch,
    /// Too old, or not yet.
    #[error("it was signed more than {TOLERANCE} seconds from now")]
    OutOfTime,
}

/// What the header says.
struct Signed<'a> {
    at: i64,
    /// The same as it was written: that is what is signed.
    said: &'a str,
    signatures: Vec<Vec<u8>>,
}

fn read(header: Option<&str>) -> Option<Signed<'_>> {
    let (mut at, mut signatures) = (None, vec![]);
    for (name, value) in header?.split(',').filter_map(|part| part.trim().split_once('=')) {
        match name {
            // The last one: what is signed has the time in it.
            "t" => at = value.parse::<i64>().ok().map(|at| (at, value)),
            "v1" => signatures.extend(hex::decode(value)),
            // Schemes that are not known, as v0 of test events.
            _ => {}
        }
    }
    let (at, said) = at?;
    (!signatures.is_empty()).then_some(Signed { at, said, signatures })
}

const fn is_in_time(at: i64, now: i64) -> bool {
    now.abs_diff(at) <= TOLERANCE.unsigned_abs()
}

/// Whether a header may be Stripe's, by itself: of one that may not, the body need not be read.
pub fn is_plausible(header: Option<&str>, now: i64) -> bool {
    read(header).is_some_and(|signed| is_in_time(signed.at, now))
}

/// Judges a body as it arrived, before anything of it is read, at a moment in Unix seconds.
///
/// # Errors
/// Why it is not taken.
pub fn verify(secrets: &Secrets, header: Option<&str>, body: &[u8], now: i64) -> Result<(), BadSignature> {
    if body.len() > LARGEST {
        return Err(BadSignature::TooLarge);
    }
    let Signed { at, said, signatures } = read(header).ok_or(BadSignature::Malformed)?;
    let fits = secrets.0.iter().any(|secret| {
        signatures.iter().any(|signature| {
            // An HMAC takes keys of any length.
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
                return false;
            };
            mac.update(said.as_bytes());
            mac.update(b".");
            mac.update(body);
            mac.verify_slice(signature).is_ok()
        })
    });
    if !fits {
        return Err(BadSignature::Mismatch);
    }
    if is_in_time(at, now) {
        Ok(())
    } else {
        Err(BadSignature::OutOfTime)
    }
}
