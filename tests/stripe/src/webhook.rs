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

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf '1800000000.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_a`, and the same with the other secret.
    #[test]
    fn a_body_is_signed_with_every_secret_that_lives() {
        assert_eq!(
            signature(&["whsec_a", "whsec_b"], br#"{"id":"evt_1"}"#, 1_800_000_000),
            "t=1800000000,v1=a55079840ea2399121b7cc9ddcc2d7f3eadb4e93e38ab7d315482aa8d4846852,v1=0764d1ee345d13f2345465816f59d50ccae81bde4c6f7fd396f241c73fd47a0d"
        );
    }
}
