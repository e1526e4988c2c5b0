//! The simulator behind HTTP: its API, a page on which a person pays, and webhooks that are sent until they are taken.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{Html, IntoResponse, Redirect, Response as Answer},
    routing::get,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};

use crate::{
    error::Error,
    form,
    sim::{Account, Act, Request, Response, Stripe},
    webhook,
};

/// Stripe waits for hours between tries (<https://docs.stripe.com/webhooks#retries>); here somebody waits.
const AGAIN: Duration = Duration::from_millis(200);
/// An endpoint that takes longer has not taken it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where events go, and by which secrets they are signed.
#[derive(Clone, Debug)]
pub struct Webhooks {
    /// The endpoint.
    pub url: String,
    /// Two, while one is rolled.
    pub secrets: Vec<String>,
}

/// A running simulator; it ends with this.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    desk: Desk,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Desk {
    stripe: Arc<Mutex<Stripe>>,
    news: Arc<Notify>,
    /// What it was asked, and what it has answered.
    log: Arc<Mutex<Vec<(Request, Response)>>>,
}

/// Unix seconds.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Desk {
    fn stripe(&self) -> MutexGuard<'_, Stripe> {
        self.stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, act: &Act) -> Result<(), Error> {
        let done = self.stripe().act(act, now());
        self.news.notify_one();
        done
    }
}

impl Server {
    /// Listens on an address, port 0 for any. Pages that people pay on are below it, unless the account says where they are.
    ///
    /// # Errors
    /// If the port is taken, or no client can be made.
    pub async fn start(
        address: SocketAddr,
        mut account: Account,
        webhooks: Option<Webhooks>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        if account.pages.is_empty() {
            account.pages = format!("http://{address}");
        }
        let desk = Desk {
            stripe: Arc::new(Mutex::new(Stripe::new(account))),
            news: Arc::default(),
            log: Arc::default(),
        };
        let routes = Router::new()
            .route("/pay/{session}", get(page).post(pay))
            .fallback(api)
            .with_state(desk.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // It ends with the set.
            let _ = axum::serve(listener, routes).await;
        });
        if let Some(webhooks) = webhooks {
            tasks.spawn(tell(desk.clone(), webhooks, client()?));
        }
        Ok(Self {
            address,
            desk,
            _tasks: tasks,
        })
    }

    /// Where its API is.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets others do something, as a buyer who pays.
    ///
    /// # Errors
    /// If it cannot be done as things are.
    pub fn act(&self, act: &Act) -> Result<(), Error> {
        self.desk.act(act)
    }

    /// What it was asked and could answer.
    pub fn asked(&self) -> Vec<Request> {
        self.good(|(request, _)| request.clone())
    }

    /// How many requests it has turned away, because there were too many.
    pub fn turned_away(&self) -> usize {
        let log = self.desk.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().filter(|(_, answer)| answer.status == 429).count()
    }

    /// What it has answered to that.
    pub fn answers(&self) -> Vec<Value> {
        self.good(|(_, answer)| answer.body.clone())
    }

    fn good<T>(&self, part: impl Fn(&(Request, Response)) -> T) -> Vec<T> {
        let log = self.desk.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter()
            .filter(|(_, answer)| answer.status < 400)
            .map(part)
            .collect()
    }

    /// What it knows.
    pub fn stripe(&self) -> MutexGuard<'_, Stripe> {
        self.desk.stripe()
    }
}

async fn api(State(desk): State<Desk>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let request = Request {
        method: method.to_string(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
        body: String::from_utf8_lossy(&body).into_owned(),
        key: header("authorization").and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned)),
        idempotency_key: header("idempotency-key"),
    };
    let answer = desk.stripe().step(&request, now());
    desk.news.notify_one();
    desk.log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((request, answer.clone()));
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let replayed = if answer.replayed { "true" } else { "false" };
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/json"),
        ("idempotent-replayed", replayed),
    ];
    (status, headers, answer.body.to_string()).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

async fn page(State(desk): State<Desk>, Path(id): Path<String>) -> Answer {
    let Some(session) = desk.stripe().session(&id).cloned() else {
        return (StatusCode::NOT_FOUND, Html("<h1>There is no such session</h1>")).into_response();
    };
    let (amount, currency) = (session.amount, session.currency.to_ascii_uppercase());
    let cancel = session.cancel_url.unwrap_or_default();
    let page = format!(
        "<!doctype html><meta charset=utf-8><title>Pay</title><h1>Pay {amount} minor units of {currency}</h1>\
         <p>This stands for Stripe's page. No card is asked for, and no money moves.</p>\
         <form method=post><button name=how value=pay>Pay</button> <button name=how value=decline>Have the card declined</button></form>\
         <p><a href=\"{}\">Back to the shop</a></p>",
        escaped(&cancel)
    );
    Html(page).into_response()
}

async fn pay(State(desk): State<Desk>, Path(id): Path<String>, body: String) -> Answer {
    let how = form::read(&body)
        .ok()
        .and_then(|form| form.get("how")?.as_str().map(str::to_owned));
    let declines = how.as_deref() == Some("decline");
    let act = if declines {
        Act::Decline(id.clone())
    } else {
        Act::Pay(id.clone())
    };
    if let Err(error) = desk.act(&act) {
        return (
            StatusCode::CONFLICT,
            Html(format!(
                "<h1>Not paid</h1><p>{}</p>",
                escaped(&error.json().to_string())
            )),
        )
            .into_response();
    }
    let success = desk
        .stripe()
        .session(&id)
        .map(|session| session.success_url.clone());
    match success.filter(|_| !declines) {
        Some(url) => Redirect::to(&url).into_response(),
        None => Redirect::to(&format!("/pay/{id}")).into_response(),
    }
}

/// For webhooks, in the clear. A client is not made without TLS, and with it not where a machine has no authorities, as a container has none.
fn client() -> std::io::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(PATIENCE)
        .tls_certs_only([])
        .build()
        .map_err(std::io::Error::other)
}

/// Sends each event until it is taken, the oldest first: whoever wants them out of order or twice sends them so himself.
async fn tell(desk: Desk, webhooks: Webhooks, client: reqwest::Client) {
    let secrets: Vec<_> = webhooks.secrets.iter().map(String::as_str).collect();
    let mut told = 0;
    loop {
        let next = desk
            .stripe()
            .events()
            .get(told)
            .map(|event| event.json.to_string());
        let Some(body) = next else {
            desk.news.notified().await;
            continue;
        };
        let signature = webhook::signature(&secrets, body.as_bytes(), now());
        let sent = client
            .post(&webhooks.url)
            .header(webhook::HEADER, signature)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await;
        if sent.is_ok_and(|answer| answer.status().is_success()) {
            told += 1;
        } else {
            tokio::time::sleep(AGAIN).await;
        }
    }
}
