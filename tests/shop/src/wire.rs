//! Proxies before Postgres, Stripe and Finance that number what has an effect: each commit and each request. At one number somebody is called, before
//! what it is of has happened, or when it has and nobody has heard of it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

/// On which side of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// It has not happened.
    Before,
    /// It has, and nobody has heard of it.
    After,
}

/// Called at the number that was chosen.
type Call = Box<dyn Fn() + Send + Sync>;

/// What is numbered, over all proxies together.
#[derive(Clone)]
pub struct Numbers {
    count: Arc<AtomicU64>,
    chosen: Option<(u64, Side)>,
    call: Arc<Call>,
    /// What each number was.
    pub named: Arc<Mutex<Vec<String>>>,
}

impl Numbers {
    /// Calls at a number, counted from 1; or never, to see how many there are.
    pub fn new(chosen: Option<(u64, Side)>, call: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            count: Arc::default(),
            chosen,
            call: Arc::new(Box::new(call)),
            named: Arc::default(),
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn next(&self, what: String) -> u64 {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        self.named
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
        number
    }

    /// Whether it was now.
    fn passes(&self, number: u64, side: Side) -> bool {
        let is_now = self.chosen == Some((number, side));
        if is_now {
            (self.call)();
        }
        is_now
    }
}

/// A proxy before an HTTP service; where it listens.
pub async fn http(tasks: &mut JoinSet<()>, to: String, name: &'static str, numbers: Numbers) -> String {
    #[derive(Clone)]
    struct Proxy {
        to: String,
        name: &'static str,
        numbers: Numbers,
        client: reqwest::Client,
    }

    async fn pass(
        State(proxy): State<Proxy>,
        method: Method,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
    ) -> Response {
        let gone = || StatusCode::BAD_GATEWAY.into_response();
        // What is only read has no effect.
        let number = (method != Method::GET).then(|| {
            proxy
                .numbers
                .next(format!("{} {method} {}", proxy.name, uri.path()))
        });
        if number.is_some_and(|number| proxy.numbers.passes(number, Side::Before)) {
            return gone();
        }
        let mut sent = proxy
            .client
            .request(method, format!("{}{uri}", proxy.to))
            .body(body);
        for (name, value) in &headers {
            if name != "host" && name != "content-length" {
                sent = sent.header(name, value);
            }
        }
        let Ok(answer) = sent.send().await else {
            return gone();
        };
        let (status, headers, bytes) = (
            answer.status(),
            answer.headers().clone(),
            answer.bytes().await.unwrap_or_default(),
        );
        if number.is_some_and(|number| proxy.numbers.passes(number, Side::After)) {
            return gone();
        }
        let mut passed = Response::new(Body::from(bytes));
        *passed.status_mut() = status;
        for (name, value) in &headers {
            if name != "content-length" && name != "transfer-encoding" {
                passed.headers_mut().append(name, value.clone());
            }
        }
        passed
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let client = vitrine_api::outside::client().unwrap();
    let routes = Router::new().fallback(pass).with_state(Proxy {
        to,
        name,
        numbers,
        client,
    });
    tasks.spawn(async move { axum::serve(listener, routes).await.unwrap() });
    base
}

/// The file of a Postgres server's socket.
const SOCKET: &str = ".s.PGSQL.5432";

/// A proxy before Postgres, in a folder of its own, which is to be named as the host.
pub fn postgres(tasks: &mut JoinSet<()>, folder: &Path, to: &Path, numbers: &Numbers) -> PathBuf {
    let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
    let (to, numbers) = (to.join(SOCKET), numbers.clone());
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let Ok(server) = UnixStream::connect(&to).await else {
                continue;
            };
            connections.spawn(connection(client, server, numbers.clone()));
        }
    });
    folder.to_owned()
}

/// A message of the protocol (PostgreSQL, "Message Formats"): its type, and all of it. The first one of a client has no type.
async fn message(from: &mut (impl AsyncRead + Unpin), has_type: bool) -> std::io::Result<(u8, Vec<u8>)> {
    let mut bytes = vec![];
    let kind = if has_type { from.read_u8().await? } else { 0 };
    if has_type {
        bytes.push(kind);
    }
    let length = from.read_u32().await?;
    bytes.extend(length.to_be_bytes());
    let mut rest = vec![0; usize::try_from(length).unwrap().saturating_sub(4)];
    from.read_exact(&mut rest).await?;
    bytes.extend(rest);
    Ok((kind, bytes))
}

/// Passes what a client says on until it waits for an answer, and then the answer. Each commit is numbered, and what inserts an event, which is a
/// transaction of its own.
async fn connection(mut client: UnixStream, mut server: UnixStream, numbers: Numbers) {
    let _ = pass(&mut client, &mut server, &numbers).await;
}

async fn pass(client: &mut UnixStream, server: &mut UnixStream, numbers: &Numbers) -> std::io::Result<()> {
    let (_, first) = message(client, false).await?;
    server.write_all(&first).await?;
    until_ready(client, server).await?;
    // Names of prepared statements that keep an event.
    let mut keeping = BTreeSet::new();
    loop {
        let (mut said, mut effect) = (vec![], None);
        loop {
            let (kind, bytes) = message(client, true).await?;
            // After type and length: zero-terminated texts.
            let texts: Vec<_> = bytes[5..]
                .split(|byte| *byte == 0)
                .take(2)
                .map(String::from_utf8_lossy)
                .collect();
            let [one, other] = [0, 1].map(|place| texts.get(place).cloned().unwrap_or_default());
            match kind {
                b'Q' if one.contains("COMMIT") => effect = Some("commit"),
                b'P' if other.contains("INSERT INTO shop.inbox") => {
                    keeping.insert(one.into_owned());
                }
                b'B' if keeping.contains(other.as_ref()) => effect = Some("keep an event"),
                _ => {}
            }
            said.extend(bytes);
            // Query, Sync, Terminate: an answer follows, or the end.
            match kind {
                b'Q' | b'S' => break,
                b'X' => return server.write_all(&said).await,
                _ => {}
            }
        }
        let number = effect.map(|effect| numbers.next(format!("Postgres {effect}")));
        if number.is_some_and(|number| numbers.passes(number, Side::Before)) {
            return Ok(());
        }
        server.write_all(&said).await?;
        let answer = answer(server).await?;
        if number.is_some_and(|number| numbers.passes(number, Side::After)) {
            return Ok(());
        }
        client.write_all(&answer).await?;
    }
}

/// Something that a statement says, and what it says instead where it is changed on its way.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    says: &'static str,
    instead: &'static str,
}

impl Mutant {
    /// Instead is said no more than was said: the rest is spaces.
    pub const fn new(says: &'static str, instead: &'static str) -> Self {
        assert!(instead.len() <= says.len(), "it says more than it should");
        Self { says, instead }
    }

    fn change(&self, message: &mut [u8]) {
        let mut from = 0;
        while let Some(at) = message[from..]
            .windows(self.says.len())
            .position(|window| window == self.says.as_bytes())
        {
            let place = &mut message[from + at..][..self.says.len()];
            place.fill(b' ');
            place[..self.instead.len()].copy_from_slice(self.instead.as_bytes());
            from += at + self.says.len();
        }
    }
}

/// A proxy before Postgres, in a folder of its own, by which statements say something else than they mean to.
pub fn rewriting(tasks: &mut JoinSet<()>, folder: &Path, to: &Path, mutant: Mutant) -> PathBuf {
    async fn pass(client: UnixStream, server: UnixStream, mutant: Mutant) -> std::io::Result<()> {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let there = async {
            let (_, first) = message(&mut from_client, false).await?;
            to_server.write_all(&first).await?;
            loop {
                let (kind, mut bytes) = message(&mut from_client, true).await?;
                // Parse: a statement is prepared.
                if kind == b'P' {
                    mutant.change(&mut bytes);
                }
                to_server.write_all(&bytes).await?;
            }
        };
        tokio::select! {
            ended = there => ended,
            ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(drop),
        }
    }

    let listener = UnixListener::bind(folder.join(SOCKET)).unwrap();
    let to = to.join(SOCKET);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            if let Ok(server) = UnixStream::connect(&to).await {
                connections.spawn(async move {
                    // It ends with either side.
                    let _ = pass(client, server, mutant).await;
                });
            }
        }
    });
    folder.to_owned()
}

async fn answer(server: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut answer = vec![];
    loop {
        let (kind, bytes) = message(server, true).await?;
        answer.extend(bytes);
        // ReadyForQuery.
        if kind == b'Z' {
            return Ok(answer);
        }
    }
}

async fn until_ready(
    client: &mut (impl AsyncWrite + Unpin),
    server: &mut (impl AsyncRead + Unpin),
) -> std::io::Result<()> {
    // Everybody is trusted here: nothing is asked of the client before the server is ready.
    let answer = answer(server).await?;
    client.write_all(&answer).await
}

/// A way to somebody over TCP that can be cut: nobody gets through then, and whoever was in the middle of something hears no more of it.
pub async fn switched(tasks: &mut JoinSet<()>, to: String) -> (String, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (switch, is_up) = watch::channel(true);
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut is_up) = (to.clone(), is_up.clone());
            if !*is_up.borrow() {
                continue;
            }
            open.spawn(async move {
                let Ok(mut far) = TcpStream::connect(to.trim_start_matches("http://")).await else {
                    return;
                };
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => {}
                    _ = is_up.wait_for(|is_up| !is_up) => {}
                }
            });
            while open.try_join_next().is_some() {}
        }
    });
    (format!("http://{address}"), switch)
}
