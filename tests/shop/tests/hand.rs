//! Rows that somebody has put into the shop's database by hand: nothing is signed by them.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use jiff::Timestamp;
use sqlx::{Executor, PgConnection};
use uuid::Uuid;
use vitrine_commerce::{
    finance::{self, EntryRequest, Receipt},
    licence::{self, Licence},
    note,
};
use vitrine_shop_tests::{house::seal, town::Town};
use vitrine_stripe::sim::Act;

/// An order that was licensed: its id, the item's, the acknowledgement's, and the text of its first licence.
struct Sold {
    order: Uuid,
    item: Uuid,
    ack: Uuid,
    licence: Licence,
    key: String,
}

async fn sold(town: &Town, subject: &str) -> Sold {
    let (order, session) = town.orders(subject, "notes", 1).await;
    town.stripe.act(&Act::Pay(session)).unwrap();
    town.reaches(subject, &order, "completed").await;
    let order: Uuid = order.parse().unwrap();
    let (item, ack, payload, key): (Uuid, Uuid, Vec<u8>, String) =
        sqlx::query_as("SELECT item_id, finance_ack_id, payload, key FROM shop.licences WHERE order_id = $1")
            .bind(order)
            .fetch_one(&town.pool)
            .await
            .unwrap();
    let licence = note::unsigned(licence::KIND, &payload).unwrap();
    Sold {
        order,
        item,
        ack,
        licence,
        key,
    }
}

/// A superuser's connection, for whom no foreign key and no trigger holds.
async fn superuser(town: &Town) -> PgConnection {
    let mut connection = town.pool.acquire().await.unwrap().detach();
    for sql in [
        "SET session_replication_role = replica",
        "DROP INDEX shop.finance_acks_once",
    ] {
        connection.execute(sql).await.unwrap();
    }
    connection
}

/// Somebody who writes rows by hand.
struct Hand<'a> {
    town: &'a Town,
    connection: PgConnection,
}

impl Hand<'_> {
    /// Asks the signer for a licence of an order, written by hand. Status and code.
    async fn asks(
        &mut self,
        sold: &Sold,
        (item, unit): (Uuid, i32),
        ack: Uuid,
        licence: &Licence,
    ) -> (u16, String) {
        let id = licence::id(item, unit.unsigned_abs());
        let gone = sqlx::query("DELETE FROM shop.licences WHERE id = $1").bind(id);
        gone.execute(&mut self.connection).await.unwrap();
        sqlx::query(
            "INSERT INTO shop.licences (id, lookup, item_id, unit, order_id, finance_ack_id, ack_kind, payload, key)
            VALUES ($1, $2, $3, $4, $5, $6, 'reserve', $7, $8)",
        )
        .bind(id)
        .bind(format!("VL-{}", Uuid::now_v7()))
        .bind(item)
        .bind(unit)
        .bind(sold.order)
        .bind(ack)
        .bind(note::text(licence::KIND, licence).unwrap())
        .bind(&sold.key)
        .execute(&mut self.connection)
        .await
        .unwrap();
        let (status, said) = self.town.signs(id).await;
        (status, said["code"].as_str().unwrap_or_default().to_owned())
    }

    /// Puts an acknowledgement beside an order; its id.
    async fn acknowledges(&mut self, order: Uuid, note: &[u8]) -> Uuid {
        let (id, key) = (Uuid::now_v7(), format!("reserve:by-hand-{}", Uuid::now_v7()));
        sqlx::query(
            "INSERT INTO shop.bookings (key, order_id, kind, request)
            SELECT $1, $2, 'reserve', request FROM shop.bookings WHERE key = 'reserve:' || $2::text",
        )
        .bind(&key)
        .bind(order)
        .execute(&mut self.connection)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note)
            SELECT $1, $2, $3, 'reserve', epoch, 1000000 + sequence + (SELECT count(*) FROM shop.finance_acks), $4 FROM shop.finance_acks LIMIT 1",
        )
        .bind(id)
        .bind(&key)
        .bind(order)
        .bind(note)
        .execute(&mut self.connection)
        .await
        .unwrap();
        id
    }

    /// Writes down that Finance was asked for something else.
    async fn asked_for(&mut self, order: Uuid, request: &EntryRequest) {
        sqlx::query("UPDATE shop.bookings SET request = $2 WHERE key = 'reserve:' || $1::text")
            .bind(order)
            .bind(serde_json::to_vec(request).unwrap())
            .execute(&mut self.connection)
            .await
            .unwrap();
    }
}

async fn receipt_of(town: &Town, ack: Uuid) -> Vec<u8> {
    sqlx::query_scalar("SELECT note FROM shop.finance_acks WHERE id = $1")
        .bind(ack)
        .fetch_one(&town.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn rows_that_were_put_there_by_hand_sign_nothing() {
    let mut town = Town::new().await;
    let (mine, others) = (sold(&town, "alice").await, sold(&town, "bob").await);
    town.ends().await;
    let refused = (403, "licence-refused".to_owned());
    let (_, finance_key) = town.finance();
    let connection = superuser(&town).await;
    let mut hand = Hand {
        town: &town,
        connection,
    };

    // The way itself is sound: what Finance has acknowledged is signed, also when it is written once more.
    assert_eq!(
        hand.asks(&mine, (mine.item, 0), mine.ack, &mine.licence).await.0,
        200
    );

    // A second unit of a paid order, with the order's own acknowledgement.
    let second = Licence {
        id: licence::id(mine.item, 1),
        ..mine.licence.clone()
    };
    sqlx::query("INSERT INTO shop.units VALUES ($1, 1, $2)")
        .bind(mine.item)
        .bind(mine.order)
        .execute(&town.pool)
        .await
        .unwrap();
    assert_eq!(hand.asks(&mine, (mine.item, 1), mine.ack, &second).await, refused);

    // The acknowledgement of another order.
    let of = |note: &[u8]| Licence {
        finance_receipt_sha256: finance::digest(note),
        ..mine.licence.clone()
    };
    let others_note = receipt_of(&town, others.ack).await;
    assert_eq!(
        hand.asks(&mine, (mine.item, 0), others.ack, &of(&others_note))
            .await,
        refused
    );
    let copied = hand.acknowledges(mine.order, &others_note).await;
    assert_eq!(
        hand.asks(&mine, (mine.item, 0), copied, &of(&others_note)).await,
        refused
    );

    // One that somebody else has signed, one with another amount under Finance's signature, and one that is none.
    let sound: Receipt = finance::open(&receipt_of(&town, mine.ack).await, &[finance_key]).unwrap();
    let (_, forged) = seal("shop.example/finance", 77)
        .note(finance::KIND, &sound)
        .unwrap();
    let mut wrong = sound.clone();
    wrong.amount.minor += 1;
    let (_, wrong) = seal("shop.example/finance", 1)
        .note(finance::KIND, &wrong)
        .unwrap();
    for note in [forged, wrong, b"acknowledged".to_vec()] {
        let ack = hand.acknowledges(mine.order, &note).await;
        assert_eq!(hand.asks(&mine, (mine.item, 0), ack, &of(&note)).await, refused);
    }

    // Finance's own receipt, and a licence that says more than was bought.
    for change in [
        (|licence: &mut Licence| licence.sku.id = "everything".to_owned()) as fn(&mut Licence),
        |licence| licence.entitlements.push("everything".to_owned()),
        |licence| licence.expires = Some(Timestamp::MAX),
    ] {
        let mut licence = mine.licence.clone();
        change(&mut licence);
        assert_eq!(
            hand.asks(&mine, (mine.item, 0), mine.ack, &licence).await,
            refused
        );
    }

    // Another request than Finance has acknowledged.
    let request: Vec<u8> =
        sqlx::query_scalar("SELECT request FROM shop.bookings WHERE key = 'reserve:' || $1::text")
            .bind(mine.order)
            .fetch_one(&town.pool)
            .await
            .unwrap();
    let mut more: EntryRequest = serde_json::from_slice(&request).unwrap();
    more.parts.push(finance::Part {
        unit: 1,
        ..more.parts[0].clone()
    });
    hand.asked_for(mine.order, &more).await;
    assert_eq!(hand.asks(&mine, (mine.item, 1), mine.ack, &second).await, refused);
}
