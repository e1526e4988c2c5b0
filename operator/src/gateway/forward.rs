//! One request: who asks, for which preview, and on to its pod. Holds no state but the routes.

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode, Uri, Version,
    body::{Bytes, Incoming},
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use prometheus::IntGauge;

use super::{
    headers,
    routes::{self, Found, Lifeline, Route, SharedRoutes, Upstream},
    upstream,
    visit::{BodyError, Book, Counted, Visit},
};
use crate::{
    link::{BadLink, Claims, OPEN_PATH, TOKEN_PARAMETER},
    meter::Metered,
};

/// The cookie that a link is exchanged for. `__Host-`: this host only, over a trustworthy origin only (RFC 6265bis).
const COOKIE: &str = "__Host-vitrine-preview";

type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The gateway's one service.
pub(super) struct Gateway {
    routes: SharedRoutes,
    book: Arc<Book>,
}

/// Where a request goes.
enum Going {
    /// The link was good: it becomes a cookie.
    In(String, Claims),
    /// To the product.
    On(Arc<Upstream>, Found),
}

/// Why a request goes nowhere.
enum Stop {
    NoHost,
    Unknown,
    Early,
    Over,
    Link(BadLink),
    NoCookie,
    BadUpgrade,
    TooMany,
    Spent,
    Upstream(String),
}

impl Stop {
    fn outcome(&self) -> &'static str {
        match self {
            Self::NoHost | Self::Unknown => "unknown",
            Self::Early | Self::Over => "closed",
            Self::Link(_) => "bad_link",
            Self::NoCookie => "no_link",
            Self::BadUpgrade => "bad_upgrade",
            Self::TooMany => "too_many",
            Self::Spent => "spent",
            Self::Upstream(_) => "upstream",
        }
    }

    fn response(&self) -> Response<Body> {
        let (status, text) = match self {
            Self::NoHost => (
                StatusCode::BAD_REQUEST,
                "This address names no preview.".to_owned(),
            ),
            Self::Unknown => (StatusCode::NOT_FOUND, "There is no such preview.".to_owned()),
            Self::Early => (
                StatusCode::SERVICE_UNAVAILABLE,
                "This preview is not ready yet.".to_owned(),
            ),
            Self::Over | Self::Link(BadLink::Expired) => {
                (StatusCode::GONE, "This preview has ended.".to_owned())
            }
            Self::Link(why) => (StatusCode::FORBIDDEN, format!("This link opens nothing: {why}.")),
            Self::NoCookie => (
                StatusCode::FORBIDDEN,
                "Open this preview by the link from the shop.".to_owned(),
            ),
            Self::BadUpgrade => (
                StatusCode::BAD_REQUEST,
                "Only WebSockets may be upgraded to.".to_owned(),
            ),
            Self::TooMany => (
                StatusCode::TOO_MANY_REQUESTS,
                "This preview is asked too often at a time.".to_owned(),
            ),
            Self::Spent => (
                StatusCode::FORBIDDEN,
                "This preview has used up its traffic.".to_owned(),
            ),
            Self::Upstream(_) => (StatusCode::BAD_GATEWAY, "The product does not answer.".to_owned()),
        };
        let mut response = Response::new(full(format!("{text}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl Gateway {
    pub(super) fn new(routes: SharedRoutes, book: Book) -> Self {
        Self {
            routes,
            book: Arc::new(book),
        }
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        source: IpAddr,
        lifeline: &Lifeline,
    ) -> Result<Response<Body>, Infallible> {
        let asked = (request.uri().path() == OPEN_PATH).then(|| (label(&request), token(request.uri())));
        if let Some((Some(label), Some(token))) = asked {
            self.catch_up(&label, token).await;
        }
        let now = Timestamp::now();
        let mut visit = Visit::begin(now, source, request.method(), request.uri(), &self.book);
        let going = match self.route(&request, now, &mut visit) {
            Ok(going) => going,
            Err(stop) => return Ok(stopped(stop, visit)),
        };
        Ok(match going {
            Going::In(token, claims) => {
                let response = exchange(&token, &claims.path);
                visit.answered(response.status().as_u16(), "opened");
                response
            }
            Going::On(upstream, found) => {
                lifeline.hang_on(&found.route);
                self.carry(request, &upstream, found, visit).await
            }
        })
    }

    /// A link is signed when its preview is ready: who comes with a good one waits for a gateway that has not heard of it yet.
    async fn catch_up(&self, label: &str, token: &str) {
        let found = self.routes.find(label);
        if found
            .as_ref()
            .is_some_and(|found| routes::is_decided(&found.route.borrow()))
        {
            return;
        }
        // Only then is the link judged here as well: anybody may ask for anything.
        if self.routes.keys().check(token, label, Timestamp::now()).is_err() {
            return;
        }
        let found = match found {
            Some(found) => Some(found),
            None => self.routes.appears(label).await,
        };
        if let Some(found) = found {
            routes::opens(found.route).await;
        }
    }

    /// Who asks, for which preview, and whether that may be.
    fn route(&self, request: &Request<Incoming>, now: Timestamp, visit: &mut Visit) -> Result<Going, Stop> {
        let label = label(request).ok_or(Stop::NoHost)?;
        let found = self.routes.find(&label).ok_or(Stop::Unknown)?;
        let route = found.route.borrow().clone();
        match &route {
            Route::Open(upstream) if upstream.expires > now => visit.of(upstream),
            Route::Closed(_) if !routes::is_decided(&route) => {}
            Route::Open(_) | Route::Closed(_) => return Err(Stop::Over),
        }
        let keys = self.routes.keys();
        let opening = if request.uri().path() == OPEN_PATH {
            let token = token(request.uri()).ok_or(Stop::Link(BadLink::Malformed))?;
            let claims = keys.check(token, &label, now).map_err(Stop::Link)?;
            Some((token.to_owned(), claims))
        } else {
            let token = cookie(request.headers()).ok_or(Stop::NoCookie)?;
            found.link.check(&keys, token, &label).map_err(Stop::Link)?;
            None
        };
        // How far a preview is only those are told whom it is for.
        let Route::Open(upstream) = route else {
            return Err(Stop::Early);
        };
        if let Some((token, claims)) = opening {
            return Ok(Going::In(token, claims));
        }
        // Only who has the link uses the preview's rate up.
        let limits = self.routes.limits();
        if !found.usage.admits(limits.requests, Instant::now()) {
            return Err(Stop::TooMany);
        }
        if found.usage.budget.is_spent(limits.bytes) {
            return Err(Stop::Spent);
        }
        visit.carried(found.usage.enter(now));
        Ok(Going::On(upstream, found))
    }

    async fn carry(
        &self,
        mut request: Request<Incoming>,
        upstream: &Upstream,
        found: Found,
        mut visit: Visit,
    ) -> Response<Body> {
        let upgrade = match wants_upgrade(request.headers()) {
            Ok(upgrade) => upgrade,
            Err(stop) => return stopped(stop, visit),
        };
        let visitor = upgrade.then(|| hyper::upgrade::on(&mut request));
        to_product(&mut request, upgrade);
        let (route, cut) = (found.route.clone(), &self.book.metrics.cut);
        let sent = upstream::send(upstream, &found.idle, request, upgrade, route, cut).await;
        let mut response = match sent {
            Ok(response) => response,
            Err(why) => return stopped(Stop::Upstream(why), visit),
        };

        let limit = self.routes.limits().bytes;
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        *response.version_mut() = Version::HTTP_11;
        visit.answered(response.status().as_u16(), "ok");
        match visitor {
            Some(visitor) if switches => {
                if !is_websocket(response.headers()) {
                    return stopped(Stop::BadUpgrade, visit);
                }
                let product = hyper::upgrade::on(&mut response);
                to_visitor(response.headers_mut(), true, &upstream.policy);
                tokio::spawn(join(visitor, product, found, limit, visit, cut.clone()));
                response.map(|_| full(""))
            }
            // Nobody asked for another protocol: a product that switches on its own would leave HTTP unseen.
            None if switches => stopped(Stop::BadUpgrade, visit),
            _ => {
                to_visitor(response.headers_mut(), false, &upstream.policy);
                let budget = found.usage.budget.clone();
                response.map(|body| {
                    BodyExt::boxed_unsync(Counted {
                        body,
                        budget,
                        limit,
                        visit,
                    })
                })
            }
        }
    }
}

fn stopped(stop: Stop, mut visit: Visit) -> Response<Body> {
    if let Stop::Upstream(why) = &stop {
        tracing::info!(why, "a product does not answer");
    }
    let response = stop.response();
    visit.answered(response.status().as_u16(), stop.outcome());
    response
}

/// Carries both directions of a WebSocket until either side, the preview, or its budget ends.
async fn join(
    visitor: hyper::upgrade::OnUpgrade,
    product: hyper::upgrade::OnUpgrade,
    found: Found,
    limit: u64,
    mut visit: Visit,
    cut: IntGauge,
) {
    let Ok((visitor, product)) = tokio::try_join!(visitor, product) else {
        return;
    };
    let mut visitor = TokioIo::new(visitor);
    let mut product = Metered::new(TokioIo::new(product), found.usage.budget.clone(), limit).reading();
    let count = product.count();
    tokio::select! {
        // Either side may hang up as it likes.
        _ = tokio::io::copy_bidirectional(&mut visitor, &mut product) => {}
        () = routes::end(found.route) => cut.inc(),
    }
    visit.sent(count.read.load(Ordering::Relaxed));
}

/// The first label of the host.
fn label<B>(request: &Request<B>) -> Option<String> {
    let host = request.headers().get(header::HOST)?.to_str().ok()?;
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let (label, _) = host.split_once('.')?;
    (!label.is_empty()).then(|| label.to_ascii_lowercase())
}

fn token(uri: &Uri) -> Option<&str> {
    let query = uri.query()?;
    // Tokens are base64url and a dot: nothing in them is ever percent-encoded.
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(TOKEN_PARAMETER)?.strip_prefix('='))
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    cookies(headers).find_map(|pair| pair.strip_prefix(COOKIE)?.strip_prefix('='))
}

/// Each `name=value` (RFC 6265, section 4.2.1).
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::COOKIE).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .map(str::trim)
}

/// The link becomes a cookie, and the token leaves the address bar and every Referer. The cookie has no end of its own: the preview
/// has one, which may still be put off.
fn exchange(token: &str, path: &str) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    // The path is signed; "//" would be another host all the same.
    let path = Some(path).filter(|p| p.starts_with('/') && !p.starts_with("//"));
    let location = path.and_then(|p| HeaderValue::from_str(p).ok());
    headers.insert(
        header::LOCATION,
        location.unwrap_or(HeaderValue::from_static("/")),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let cookie = format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=None; Partitioned");
    // A token that passed its check has no character that a header could refuse.
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        headers.insert(header::SET_COOKIE, cookie);
    }
    response
}

/// Headers that end at the next hop (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
];

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

fn wants_upgrade(headers: &HeaderMap) -> Result<bool, Stop> {
    match (headers.contains_key(header::UPGRADE), is_websocket(headers)) {
        (false, _) => Ok(false),
        (true, true) => Ok(true),
        (true, false) => Err(Stop::BadUpgrade),
    }
}

/// The path alone of an address that names more (RFC 9112, section 3.2); `None` if there is nothing more.
fn origin_form(uri: &Uri) -> Option<Uri> {
    uri.authority()?;
    // Of "http://host#x" the path is empty, which in a request line would be two spaces.
    let path = uri.path_and_query().filter(|path| path.as_str() != "/");
    Some(path.cloned().map_or_else(|| Uri::from_static("/"), Uri::from))
}

/// Makes a visitor's request one to the product: without our cookie, without what ends here.
fn to_product(request: &mut Request<Incoming>, upgrade: bool) {
    if let Some(path) = origin_form(request.uri()) {
        *request.uri_mut() = path;
    }
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    strip_hop_by_hop(headers, upgrade);
    let mut rest = String::new();
    for pair in cookies(headers).filter(|pair| !pair.starts_with(COOKIE) && !pair.is_empty()) {
        if !rest.is_empty() {
            rest.push_str("; ");
        }
        rest.push_str(pair);
    }
    headers.remove(header::COOKIE);
    if let Ok(rest) = HeaderValue::try_from(rest)
        && !rest.is_empty()
    {
        headers.insert(header::COOKIE, rest);
    }
}

fn to_visitor(headers: &mut HeaderMap, upgrade: bool, policy: &HeaderValue) {
    strip_hop_by_hop(headers, upgrade);
    headers::confine(headers, policy);
    // A seller that sets our cookie, or one for the whole domain, would reach beyond its own host.
    let cookies: Vec<_> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .filter(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
            !text.trim_start().starts_with(&COOKIE.to_ascii_lowercase())
                && !text
                    .split(';')
                    .skip(1)
                    .any(|attribute| attribute.trim().starts_with("domain"))
        })
        .cloned()
        .collect();
    headers.remove(header::SET_COOKIE);
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_label_is_the_first_one_without_its_port() {
        let request = |host: &str| Request::builder().header(header::HOST, host).body(()).unwrap();
        assert_eq!(
            label(&request("p-1.previews.localhost:8080")).as_deref(),
            Some("p-1")
        );
        assert_eq!(label(&request("P-1.previews.localhost")).as_deref(), Some("p-1"));
        assert_eq!(label(&request("localhost:8080")), None);
        assert_eq!(label(&request(".previews.localhost")), None);
    }

    #[test]
    fn our_cookie_is_found_among_others_and_no_other_is_taken_for_it() {
        let headers =
            |text: &str| HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(text).unwrap())]);
        assert_eq!(
            cookie(&headers("a=1; __Host-vitrine-preview=x.y; b=2")),
            Some("x.y")
        );
        assert_eq!(cookie(&headers("__Host-vitrine-preview2=x.y")), None);
    }

    #[test]
    fn a_product_cannot_set_our_cookie_or_one_for_the_domain() {
        let mut headers = HeaderMap::new();
        for value in [
            "a=1; Path=/",
            "__Host-vitrine-preview=evil; Path=/",
            "b=2; Domain=previews.localhost",
            "c=3; domain =x",
        ] {
            headers.append(header::SET_COOKIE, HeaderValue::from_static(value));
        }
        to_visitor(
            &mut headers,
            false,
            &HeaderValue::from_static("default-src 'self'"),
        );
        assert_eq!(
            headers.get_all(header::SET_COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; Path=/"]
        );
    }

    #[test]
    fn only_websockets_are_upgraded_to() {
        let headers =
            |value: &'static str| HeaderMap::from_iter([(header::UPGRADE, HeaderValue::from_static(value))]);
        assert!(matches!(wants_upgrade(&HeaderMap::new()), Ok(false)));
        assert!(matches!(wants_upgrade(&headers("WebSocket")), Ok(true)));
        assert!(wants_upgrade(&headers("h2c")).is_err());
    }

    #[test]
    fn a_product_is_asked_for_a_path_whatever_the_visitor_named_with_it() {
        let asked = |target: &'static str| {
            let uri = Uri::try_from(target).unwrap();
            origin_form(&uri).map_or_else(|| target.to_owned(), |path| path.to_string())
        };
        for (target, wanted) in [
            ("/a?b", "/a?b"),
            ("*", "*"),
            ("h:80", "/"),
            ("http://h", "/"),
            ("http://h/", "/"),
            ("http://h#f", "/"),
            ("http://h/p?q", "/p?q"),
            ("http://h/p#f", "/p"),
            ("http://h?q", "/?q"),
        ] {
            assert_eq!(asked(target), wanted, "{target}");
        }
    }

    #[test]
    fn the_token_is_read_from_its_own_parameter_only() {
        assert_eq!(token(&"/x?a=1&t=x.y".parse().unwrap()), Some("x.y"));
        assert_eq!(token(&"/x?tt=x.y".parse().unwrap()), None);
    }
}
