//! How events are signed on their way to a shop (<https://docs.stripe.com/webhooks/signature>). Pure.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The header that the signature is in.
pub const HEADER: &str = "stripe-signature";

/// The header's value for a body that is sent at a moment, Unix seconds, with one signature for each secret that lives: two, while one is
/// rolled.
pub fn signature(secrets: &[&str], body: &[u8], at: i64) -> String {
    let signed = secrets.iter().map(|secret| {
        // An HMAC takes keys of any length.
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap_or_else(|error| unreachable!("{error}"));
        mac.update(format!("{at}.").as_bytes());
        mac.update(body);
        format!(",v1={}", hex::encode(mac.finalize().into_bytes()))
    });
    format!("t={at}{}", signed.collect::<String>())
}
