//! The shop under load: its process, Postgres and Stripe's simulator are real programs of this machine, and so are Finance and the signer, which run
//! in this one. Arrivals are open-loop. `cargo xtask bench shop` runs it, compiled for speed; its report is Markdown.

#![allow(clippy::unwrap_used, reason = "a bench says what is wrong by panicking")]

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use vitrine_parts::Running;
use vitrine_shop_tests::{
    around::{Around, spawn},
    town::{CHECKOUT, WEBHOOK_SECRET, session_of, until, wants, within},
};
use vitrine_stripe::{
    sim::{Act, Limits},
    webhook::signature,
};

/// As many at once as make an order each when nobody waits.
const AT_ONCE: usize = 32;
/// Workers of the shop's process.
const WORKERS: usize = 8;
/// A bench that takes longer is none.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Bytes of the row that the floor writes: about what an order's rows have.
const ROW: usize = 2_048;
/// Connections of the floor, as many as the shop has.
const CONNECTIONS: u32 = 20;

/// An order that can be paid.
struct Placed {
    order: uuid::Uuid,
    session: String,
}

struct Bench {
    around: Around,
    client: reqwest::Client,
    _shop: Running,
}

/// Moments of a Poisson process, from its beginning.
fn arrivals(rate: f64, time: Duration) -> Vec<Duration> {
    let (mut at, mut all) = (0.0, vec![]);
    loop {
        at += -(1.0 - rand::random::<f64>()).ln() / rate;
        if at >= time.as_secs_f64() {
            return all;
        }
        all.push(Duration::from_secs_f64(at));
    }
}

/// Does something at each of these moments, whether or not what was done before is over; what each has come to, and how long that took from the
/// moment at which it was due.
async fn at_each<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    moments: Vec<Duration>,
    mut act: impl FnMut(usize) -> F,
) -> Vec<(T, Duration)> {
    let begun = Instant::now() + Duration::from_millis(200);
    let mut running = JoinSet::new();
    for (number, moment) in moments.into_iter().enumerate() {
        let due = begun + moment;
        tokio::time::sleep_until(due.into()).await;
        let acting = act(number);
        running.spawn(async move {
            let done = acting.await;
            (done, due.elapsed())
        });
    }
    running.join_all().await
}

/// The quantiles that are told of.
#[derive(Clone, Copy)]
struct Spread {
    p50: f64,
    p90: f64,
    p99: f64,
    most: f64,
    count: usize,
}

impl Spread {
    fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part).round() as usize];
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            most: at(1.0),
            count: times.len(),
        }
    }

    fn row(&self, what: &str) -> String {
        let Self {
            p50,
            p90,
            p99,
            most,
            count,
        } = self;
        format!("| {what} | {count} | {p50:.1} | {p90:.1} | {p99:.1} | {most:.1} |")
    }
}

impl Bench {
    /// A shop that sends Stripe so many requests a second at most, if that is said.
    async fn new(program: &str, rate: Option<u32>) -> Self {
        let mut around = Around::direct(WORKERS).await;
        if let Some(rate) = rate {
            around
                .arguments
                .retain(|said| !said.starts_with("--stripe-rate="));
            around.arguments.push(format!("--stripe-rate={rate}"));
        }
        let shop = Running(spawn(program.as_ref(), &around.arguments));
        let client = vitrine_api::outside::client().unwrap();
        let products = format!("{}/api/v1/marketplace/products", around.base);
        until(async || match client.get(&products).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        Self {
            around,
            client,
            _shop: shop,
        }
    }

    /// Orders something as a new buyer.
    fn order(&self, number: usize) -> impl Future<Output = Placed> + Send + use<> {
        let to = format!("{}{CHECKOUT}", self.around.base);
        let subject = format!("buyer-{number}-{}", rand::random::<u64>());
        let request = self
            .client
            .post(to)
            .bearer_auth(self.around.token(&subject))
            .header("idempotency-key", "k")
            .header("content-type", "application/json")
            .body(wants("notes", 1).to_string());
        async move {
            let answer = request.send().await.unwrap();
            let (status, body) = (answer.status(), answer.bytes().await.unwrap());
            assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
            let made: Value = serde_json::from_slice(&body).unwrap();
            let order = made["order"].as_str().unwrap().parse().unwrap();
            Placed {
                order,
                session: session_of(&made),
            }
        }
    }

    /// Tells the shop, as Stripe does, that a session was paid.
    fn tell(&self, session: &str) -> impl Future<Output = ()> + Send + use<> {
        let body = json!({
            "id": format!("evt_{:x}", rand::random::<u128>()), "object": "event", "type": "checkout.session.completed",
            "created": Timestamp::now().as_second(), "livemode": false, "data": {"object": {"id": session, "object": "checkout.session"}}
        });
        let body = body.to_string();
        let signed = signature(&[WEBHOOK_SECRET], body.as_bytes(), Timestamp::now().as_second());
        let request = self
            .client
            .post(format!("{}/webhooks/stripe", self.around.base))
            .header("stripe-signature", signed)
            .body(body);
        async move {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
        }
    }

    fn pay(&self, placed: &[Placed]) {
        for placed in placed {
            self.around.stripe.act(&Act::Pay(placed.session.clone())).unwrap();
        }
    }

    /// Waits until all of these are licensed, and says when each was.
    async fn licensed(&self, orders: &[uuid::Uuid]) -> BTreeMap<uuid::Uuid, Timestamp> {
        let seen = within(LONGEST, async || {
            let rows: Vec<(uuid::Uuid, jiff_sqlx::Timestamp)> = sqlx::query_as(
                "SELECT order_id, signed_at FROM shop.licences WHERE signed_at IS NOT NULL AND order_id = ANY($1)",
            )
            .bind(orders)
            .fetch_all(&self.around.pool)
            .await
            .unwrap();
            if rows.len() == orders.len() {
                Ok(rows)
            } else {
                // To look is work for Postgres too.
                tokio::time::sleep(Duration::from_millis(200)).await;
                Err(format!("{} of {} are licensed", rows.len(), orders.len()))
            }
        });
        let rows = seen.await.unwrap().into_iter();
        rows.map(|(order, at)| (order, at.to_jiff())).collect()
    }

    /// Buyers at a rate; then as many webhooks at the same rate, and how long it took from each to its licence.
    async fn at_rate(&self, rate: f64, time: Duration, orders_before: i64) {
        let placed = at_each(arrivals(rate, time), |number| self.order(number)).await;
        let (placed, checkout): (Vec<_>, Vec<_>) = placed.into_iter().unzip();
        self.pay(&placed);
        let mut moments = arrivals(rate, time * 2);
        moments.truncate(placed.len());
        let told_at = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
        let told = at_each(moments, |number| {
            let Placed { order, session } = &placed[number];
            told_at.lock().unwrap().insert(*order, Timestamp::now());
            self.tell(session)
        })
        .await;
        let told_at = told_at.lock().unwrap().clone();
        let orders: Vec<_> = told_at.keys().copied().collect();
        let licensed = self.licensed(&orders).await;
        let until_licence = told_at.iter().map(|(order, told)| {
            let took = licensed[order].duration_since(*told);
            Duration::try_from(took).unwrap_or_default()
        });
        let of = |what: &str| format!("{what}, {orders_before} orders before");
        println!("{}", Spread::of(checkout).row(&of("checkout")));
        println!(
            "{}",
            Spread::of(told.into_iter().map(|(_, took)| took)).row(&of("webhook"))
        );
        println!("{}", Spread::of(until_licence).row(&of("webhook to licence")));
    }

    /// So many orders, as fast as they are taken.
    async fn place(&self, count: usize) -> Vec<Placed> {
        stream::iter(0..count)
            .map(|number| tokio::spawn(self.order(number)))
            .buffer_unordered(AT_ONCE)
            .map(Result::unwrap)
            .collect()
            .await
    }

    /// Tells that all of these were paid, as fast as that is taken.
    async fn tell_of_all(&self, placed: &[Placed]) {
        stream::iter(placed)
            .for_each_concurrent(AT_ONCE, |placed| self.tell(&placed.session))
            .await;
    }

    async fn all_licensed(&self, placed: &[Placed]) {
        let orders: Vec<_> = placed.iter().map(|placed| placed.order).collect();
        self.licensed(&orders).await;
    }

    /// So many orders as fast as they are taken, and then as fast as they are licensed; orders a second, both.
    async fn as_fast_as_it_goes(&self, count: usize) -> (f64, f64) {
        let begun = Instant::now();
        let placed = self.place(count).await;
        let taken = count as f64 / begun.elapsed().as_secs_f64();
        self.pay(&placed);
        let begun = Instant::now();
        self.tell_of_all(&placed).await;
        self.all_licensed(&placed).await;
        (taken, count as f64 / begun.elapsed().as_secs_f64())
    }

    async fn orders(&self) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM shop.orders");
        count.fetch_one(&self.around.pool).await.unwrap()
    }
}

/// One row of an order's size in a transaction, at a rate: what Postgres alone takes for it.
async fn floor(url: sqlx::postgres::PgConnectOptions, rate: f64, time: Duration) -> Spread {
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .connect_with(url)
        .await
        .unwrap();
    sqlx::query("CREATE TABLE IF NOT EXISTS public.floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, row bytea)")
        .execute(&pool)
        .await
        .unwrap();
    let write = |pool: PgPool| async move {
        sqlx::query("INSERT INTO public.floor (row) VALUES ($1)")
            .bind(vec![7_u8; ROW])
            .execute(&pool)
            .await
            .unwrap();
    };
    let written = at_each(arrivals(rate, time), |_| write(pool.clone())).await;
    Spread::of(written.into_iter().map(|(_, took)| took))
}

/// So many orders that are paid all at once, at a Stripe that has its usual limits and a shop that knows of the account's: how long until the last
/// one is licensed, and how often Stripe had to turn the shop away.
async fn drained(program: &str, orders: usize) {
    let bench = Bench::new(program, Some(Limits::USUAL.account)).await;
    let placed = bench.place(orders).await;
    let stripe = &bench.around.stripe;
    stripe.stripe().limit(Limits::USUAL);
    bench.pay(&placed);
    let (asked, begun) = (stripe.asked().len(), Instant::now());
    bench.tell_of_all(&placed).await;
    let told = begun.elapsed().as_secs_f64();
    bench.all_licensed(&placed).await;
    let (answered, turned_away) = (stripe.asked().len() - asked, stripe.turned_away());
    println!(
        "{orders} orders that were paid at once, of which Stripe told within {told:.0} s, are licensed after {:.0} s. Of a Stripe that takes \
         {} requests a second, {} of each endpoint, {answered} were answered and {turned_away} turned away ({:.1} %).",
        begun.elapsed().as_secs_f64(),
        Limits::USUAL.account,
        Limits::USUAL.endpoint,
        turned_away as f64 * 100.0 / (answered + turned_away) as f64
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, rate, seconds, sizes, limited] = arguments.as_slice() else {
        panic!("PROGRAM RATE SECONDS SIZE,… LIMITED and not {arguments:?}");
    };
    let (rate, time) = (
        rate.parse::<f64>().unwrap(),
        Duration::from_secs(seconds.parse().unwrap()),
    );
    if let Ok(orders @ 1..) = limited.parse() {
        return drained(program, orders).await;
    }
    let bench = Bench::new(program, None).await;
    println!("At {rate}/s, open-loop, {seconds} s each; milliseconds from when each was due.\n");
    println!("| | n | p50 | p90 | p99 | most |\n|---|--:|--:|--:|--:|--:|");
    let options = (*bench.around.pool.connect_options()).clone();
    println!(
        "{}",
        floor(options.clone(), rate, time)
            .await
            .row("floor: one row of 2 KiB, committed")
    );
    let mut fast = vec![];
    for size in sizes.split(',').map(|size| size.parse::<i64>().unwrap()) {
        let missing = usize::try_from(size - bench.orders().await).unwrap_or_default();
        if missing > 0 {
            let (taken, licensed) = bench.as_fast_as_it_goes(missing).await;
            fast.push((missing, size, taken, licensed));
        }
        bench.at_rate(rate, time, bench.orders().await).await;
    }
    println!("{}", floor(options, rate, time).await.row("floor, once more"));
    println!(
        "\nAs fast as it goes, {AT_ONCE} at once, orders a second:\n\n| orders | up to | taken | licensed |\n|--:|--:|--:|--:|"
    );
    for (count, size, taken, licensed) in fast {
        println!("| {count} | {size} | {taken:.0} | {licensed:.0} |");
    }
}
