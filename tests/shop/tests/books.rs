//! Finance's books beside the shop's: equal, or it is told in what they differ; and a ledger that has lost something, until it has it again.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use jiff::Timestamp;
use sqlx::PgPool;
use vitrine_api::{
    books::{self, Report, Wrong},
    seams::Finance as _,
    store::postgres::Books,
};
use vitrine_commerce::{
    finance::{EntryKind, EntryRequest, Kept},
    money::Money,
};
use vitrine_finance::{
    ledger,
    replay::{ReplayError, replay},
    statement::statement,
};
use vitrine_shop_tests::{
    postgres::{database, server},
    town::{Town, until},
};
use vitrine_stripe::sim::Act;

async fn report(town: &Town) -> Report {
    let (finance, key) = town.finance();
    books::compare(&town.shop.books(), &finance, &[key])
        .await
        .unwrap()
}

/// Buys something, until it is licensed and all of it is booked.
async fn sold(town: &Town, subject: &str) {
    let (order, session) = town.orders(subject, "notes", 2).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    town.reaches(subject, &order, "completed").await;
    all_is_booked(&town.shop.books()).await;
}

async fn all_is_booked(books: &Books) {
    until(async || match books.waiting_for_finance().await.unwrap() {
        0 => Ok(()),
        waiting => Err(format!("{waiting} entries wait")),
    })
    .await;
}

/// A ledger restored from a copy that was made before its last entries.
async fn loses(ledger: &PgPool, last: i64) {
    let mut transaction = ledger.begin().await.unwrap();
    for sql in [
        "ALTER TABLE ledger.head DISABLE TRIGGER ALL",
        "ALTER TABLE ledger.entries DISABLE TRIGGER ALL",
        "ALTER TABLE ledger.postings DISABLE TRIGGER ALL",
        "UPDATE ledger.head SET sequence = sequence - $1",
        "DELETE FROM ledger.postings WHERE sequence > (SELECT sequence FROM ledger.head) AND $1 > 0",
        "DELETE FROM ledger.entries WHERE sequence > (SELECT sequence FROM ledger.head) AND $1 > 0",
        "UPDATE ledger.head h SET root = e.root FROM ledger.entries e WHERE e.sequence = h.sequence AND $1 > 0",
        "ALTER TABLE ledger.head ENABLE TRIGGER ALL",
        "ALTER TABLE ledger.entries ENABLE TRIGGER ALL",
        "ALTER TABLE ledger.postings ENABLE TRIGGER ALL",
    ] {
        let query = sqlx::query(sql);
        let query = if sql.contains("$1") {
            query.bind(last)
        } else {
            query
        };
        query.execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

/// What `vitrine-api receipts` says.
async fn kept(books: &Books) -> String {
    let held = books.held_after(0, books::PAGE.into()).await.unwrap();
    held.into_iter()
        .map(|held| serde_json::to_string(&Kept::from(held)).unwrap() + "\n")
        .collect()
}

/// All of a ledger.
async fn whole(ledger: &PgPool) -> (String, Vec<String>) {
    let head = sqlx::query_scalar("SELECT concat_ws(' ', epoch, sequence, root) FROM ledger.head");
    let rows = sqlx::query_scalar(
        "SELECT to_jsonb(e)::text || coalesce(jsonb_agg(to_jsonb(p) ORDER BY p.line) FILTER (WHERE p.line IS NOT NULL), '[]')::text
        FROM ledger.entries e LEFT JOIN ledger.postings p USING (sequence) GROUP BY e.sequence ORDER BY e.sequence",
    );
    (
        head.fetch_one(ledger).await.unwrap(),
        rows.fetch_all(ledger).await.unwrap(),
    )
}

#[tokio::test]
async fn books_that_are_equal_differ_in_nothing_and_what_differs_is_told() {
    let mut town = Town::new().await;
    sold(&town, "alice").await;
    let equal = report(&town).await;
    // A deposit, a reserve, and two units that are theirs.
    assert_eq!(
        (equal.entries, equal.equal, equal.differing),
        (4, 4, 0),
        "{equal:?}"
    );

    // Somebody books what the shop knows nothing of.
    let stray = EntryRequest {
        key: "deposit:pi_stray".to_owned(),
        kind: EntryKind::Deposit,
        order: uuid::Uuid::from_u128(1),
        amount: Money::new(5, "EUR".parse().unwrap()),
        payment: Some("pi_stray".to_owned()),
        parts: vec![],
        reverses: None,
    };
    let (finance, _) = town.finance();
    let bytes = serde_json::to_vec(&stray).unwrap();
    finance.post(&stray.key, &bytes).await.unwrap();
    let strange = report(&town).await;
    assert_eq!((strange.equal, strange.differing), (4, 1), "{strange:?}");
    assert_eq!(
        (strange.differences[0].of.as_str(), strange.differences[0].wrong),
        ("deposit:pi_stray", Wrong::NotAsked)
    );

    // And it loses what is newest, one of which it has acknowledged.
    town.ends().await;
    loses(&town.books, 2).await;
    let lost = report(&town).await;
    let wrong: Vec<_> = lost
        .differences
        .iter()
        .map(|one| (one.sequence, one.wrong))
        .collect();
    assert_eq!(wrong, [(Some(4), Wrong::Lost)], "{lost:?}");
}

#[tokio::test]
async fn a_ledger_that_has_lost_something_stops_the_shop_until_it_is_given_back() {
    let town = Town::new().await;
    sold(&town, "alice").await;
    let (books, (finance, key)) = (town.shop.books(), town.finance());
    let before = whole(&town.books).await;
    assert_eq!(books::look(&books, &finance).await.unwrap(), None);

    loses(&town.books, 3).await;
    let wrong = books::look(&books, &finance).await.unwrap().unwrap();
    assert!(wrong.contains("entry 4") && wrong.contains("replay"), "{wrong}");
    let (order, session) = town.orders("bob", "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    town.reaches("bob", &order, "awaiting_finance").await;
    // A later one has been paid too: workers have been past the first one's entries, and taken none.
    let (later, session) = town.orders("carol", "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    town.reaches("carol", &later, "awaiting_finance").await;
    let tasks: Vec<(String, i32)> = sqlx::query_as(
        "SELECT task, tries FROM shop.tasks WHERE task LIKE 'book %' OR task LIKE 'license %' ORDER BY task",
    )
    .fetch_all(&town.pool)
    .await
    .unwrap();
    assert!(
        tasks.len() >= 2 && tasks.iter().all(|(_, tries)| *tries == 0),
        "{tasks:?}"
    );

    assert_eq!(
        replay(&town.books, &key, kept(&books).await.as_bytes())
            .await
            .unwrap(),
        3
    );
    assert_eq!(whole(&town.books).await, before);
    assert_eq!(books::look(&books, &finance).await.unwrap(), None);
    town.reaches("bob", &order, "completed").await;
    town.reaches("carol", &later, "completed").await;
    all_is_booked(&books).await;
    assert_eq!(report(&town).await.differing, 0);
}

#[tokio::test]
async fn an_empty_ledger_becomes_the_one_that_it_was_and_takes_nothing_that_it_has_not_signed() {
    let town = Town::new().await;
    sold(&town, "alice").await;
    let (kept, (_, key)) = (kept(&town.shop.books()).await, town.finance());
    let empty = database(server(), &ledger::MIGRATIONS).await.pool(None, 2).await;
    let lines: Vec<_> = kept.lines().collect();
    let tried = async |lines: &[&str]| replay(&empty, &key, lines.join("\n").as_bytes()).await;

    assert!(matches!(tried(&lines[1..]).await, Err(ReplayError::Gap(1, 2, 0))));
    let forged = lines[0].replacen("4000", "4001", 1);
    assert!(matches!(tried(&[&forged]).await, Err(ReplayError::Receipt(1, _))));
    let swapped: Kept = serde_json::from_str(lines[0]).unwrap();
    let other: Kept = serde_json::from_str(lines[1]).unwrap();
    let swapped = serde_json::to_string(&Kept {
        request: other.request,
        ..swapped
    });
    assert!(matches!(
        tried(&[&swapped.unwrap()]).await,
        Err(ReplayError::Receipt(1, _))
    ));
    assert!(matches!(tried(&["{}"]).await, Err(ReplayError::Line(1, _))));

    assert_eq!(tried(&lines).await.unwrap(), 4);
    assert_eq!(whole(&empty).await, whole(&town.books).await);
    // By it a seller is told the same, to the byte.
    let told = async |ledger: &PgPool| {
        let told = statement(ledger, "acme", Timestamp::UNIX_EPOCH, Timestamp::MAX)
            .await
            .unwrap();
        assert_eq!((told.lines.len(), told.totals[0].due), (2, 1429 + 1428));
        serde_json::to_string(&told).unwrap()
    };
    assert_eq!(told(&empty).await, told(&town.books).await);
    // Again there is nothing to do.
    assert_eq!(tried(&lines).await.unwrap(), 0);
}
