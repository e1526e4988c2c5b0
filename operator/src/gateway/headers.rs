//! What a visitor's browser is told beside the product's own headers, and what of those it is not told. Pure.
//!
//! A seller's script runs in the visitor's browser, outside of every network policy (attacks, 9). These headers are its
//! confinement there. A browser enforces every Content-Security-Policy that it gets, so ours can only narrow the product's.
//! What no header can stop is that a page sends its visitor elsewhere: a browser lets every page navigate itself.

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Where reports of a browser would go, another server for the same origin, and what is ours to say. Of the product's headers
/// these never arrive.
const OURS: [HeaderName; 8] = [
    HeaderName::from_static("content-security-policy-report-only"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("nel"),
    header::ALT_SVC,
    header::X_FRAME_OPTIONS,
    header::REFERRER_POLICY,
    HeaderName::from_static("permissions-policy"),
];

/// Said to every visitor.
static ALWAYS: [(HeaderName, HeaderValue); 6] = [
    // A product may check where its own forms come from; nobody else learns anything.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    // Devices, identity and tracking: a preview needs none of them.
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static(
            "accelerometer=(), attribution-reporting=(), bluetooth=(), browsing-topics=(), camera=(), display-capture=(), \
             geolocation=(), gyroscope=(), hid=(), identity-credentials-get=(), idle-detection=(), local-fonts=(), \
             magnetometer=(), microphone=(), midi=(), otp-credentials=(), payment=(), publickey-credentials-create=(), \
             publickey-credentials-get=(), serial=(), storage-access=(), usb=(), window-management=(), \
             xr-spatial-tracking=()",
        ),
    ),
    // The page from which a preview was opened stays out of its reach.
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    // Names are looked up as fast as a page can write them down.
    (
        HeaderName::from_static("x-dns-prefetch-control"),
        HeaderValue::from_static("off"),
    ),
    (
        HeaderName::from_static("origin-agent-cluster"),
        HeaderValue::from_static("?1"),
    ),
    (
        HeaderName::from_static("x-robots-tag"),
        HeaderValue::from_static("noindex, nofollow"),
    ),
];

/// The Content-Security-Policy of a preview whose script may talk to these hosts and that may be shown within these origins.
///
/// `None` if one of them cannot be in a header, which the custom resources rule out.
pub(super) fn policy(hosts: &[String], frame_ancestors: &[String]) -> Option<HeaderValue> {
    let hosts: String = hosts.iter().map(|host| format!(" https://{host}")).collect();
    let ancestors = if frame_ancestors.is_empty() {
        "'none'".to_owned()
    } else {
        frame_ancestors.join(" ")
    };
    // Inline script and eval are the product's own business: what they may reach is ours.
    let text = format!(
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:{hosts}; connect-src 'self' data: blob:{hosts}; \
         form-action 'self'{hosts}; base-uri 'self'; object-src 'none'; frame-ancestors {ancestors}; webrtc 'block'; \
         sandbox allow-scripts allow-same-origin allow-forms allow-modals allow-pointer-lock"
    );
    HeaderValue::from_str(&text).ok()
}

/// Makes the headers of a product's answer those of a preview.
pub(super) fn confine(headers: &mut HeaderMap, policy: &HeaderValue) {
    // Room for all at once: each growth moves every header.
    headers.reserve(ALWAYS.len() + 1);
    for name in &OURS {
        headers.remove(name);
    }
    let own: Vec<HeaderValue> = values(headers, &header::CONTENT_SECURITY_POLICY)
        .filter_map(|policy| HeaderValue::from_str(&without_reports(&policy)).ok())
        .collect();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
    for policy in own {
        headers.append(header::CONTENT_SECURITY_POLICY, policy);
    }
    let links: Vec<HeaderValue> = values(headers, &header::LINK)
        .filter(|link| !hints(link))
        .filter_map(|link| HeaderValue::from_str(&link).ok())
        .collect();
    headers.remove(header::LINK);
    for link in links {
        headers.append(header::LINK, link);
    }
    for (name, value) in &ALWAYS {
        headers.insert(name, value.clone());
    }
}

/// The readable values of a header. One that is not text is dropped: a browser could read it otherwise than we do.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = String> + use<'a> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
}

/// A policy without the addresses that violations are reported to: to report one, a page only needs to violate it.
fn without_reports(policy: &str) -> String {
    // One header may hold several policies.
    let policies = policy.split(',').map(|policy| {
        let directives = policy.split(';').filter(|directive| {
            let name = directive.split_whitespace().next().unwrap_or_default();
            !name.eq_ignore_ascii_case("report-uri") && !name.eq_ignore_ascii_case("report-to")
        });
        directives.collect::<Vec<_>>().join(";")
    });
    policies.collect::<Vec<_>>().join(",")
}

/// Whether a Link header asks for connections ahead of time, which no policy judges.
fn hints(link: &str) -> bool {
    let link = link.to_ascii_lowercase();
    ["preconnect", "dns-prefetch", "prefetch", "prerender", "preload"]
        .iter()
        .any(|hint| link.contains(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(own: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in own {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        confine(&mut headers, &policy(&[], &[]).unwrap());
        headers
    }

    #[test]
    fn a_preview_without_hosts_talks_to_itself_alone_and_is_framed_by_nobody() {
        let text = policy(&[], &[]).unwrap();
        let text = text.to_str().unwrap();
        for part in [
            "connect-src 'self' data: blob:;",
            "form-action 'self';",
            "frame-ancestors 'none';",
            "webrtc 'block'",
            "sandbox ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("http"), "{text}");
        for way_out in ["allow-popups", "allow-top-navigation", "allow-downloads"] {
            assert!(!text.contains(way_out), "{text}");
        }
    }

    #[test]
    fn hosts_and_pages_that_were_allowed_are_named() {
        let text = policy(&["api.example".into()], &["https://shop.example".into()]).unwrap();
        let text = text.to_str().unwrap();
        assert!(
            text.contains("connect-src 'self' data: blob: https://api.example;"),
            "{text}"
        );
        assert!(text.contains("form-action 'self' https://api.example;"), "{text}");
        assert!(text.contains("frame-ancestors https://shop.example;"), "{text}");
        assert!(policy(&["a\nb".into()], &[]).is_none());
    }

    #[test]
    fn the_products_own_policy_stands_beside_ours_without_its_reports() {
        let headers = answered(&[(
            "content-security-policy",
            "default-src 'self'; report-uri https://evil.example/r; Report-To evil",
        )]);
        let policies: Vec<_> = headers.get_all(header::CONTENT_SECURITY_POLICY).iter().collect();
        assert_eq!(policies.len(), 2);
        assert_eq!(policies[1], "default-src 'self'");
    }

    #[test]
    fn what_would_report_or_connect_elsewhere_does_not_arrive() {
        let headers = answered(&[
            (
                "content-security-policy-report-only",
                "default-src 'none'; report-uri https://evil.example",
            ),
            ("reporting-endpoints", "evil=\"https://evil.example\""),
            ("report-to", "{}"),
            ("nel", "{}"),
            ("alt-svc", "h3=\"evil.example:443\""),
            ("link", "<https://evil.example>; rel=preconnect"),
            ("link", "</page/2>; rel=next"),
            ("referrer-policy", "unsafe-url"),
            ("permissions-policy", "camera=*"),
            ("x-frame-options", "ALLOWALL"),
            ("x-own", "kept"),
        ]);
        let text = format!("{headers:?}");
        assert!(!text.contains("evil"), "{text}");
        assert_eq!(headers[header::LINK], "</page/2>; rel=next");
        assert_eq!(headers[header::REFERRER_POLICY], "same-origin");
        assert!(
            headers["permissions-policy"]
                .to_str()
                .unwrap()
                .contains("camera=()")
        );
        assert!(!headers.contains_key(header::X_FRAME_OPTIONS));
        assert_eq!(headers["x-own"], "kept");
    }
}
