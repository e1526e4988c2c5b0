//! The promises stand in the schema: each is tried to be broken by SQL, as the owner of everything and as the shop's own role.

#![allow(clippy::unwrap_used, reason = "tests say what is wrong by panicking")]

use serde_json::json;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use vitrine_api::store::postgres::MIGRATIONS;
use vitrine_shop_tests::{
    postgres::{database, server},
    town::until,
};

/// An order of two units for 37 EUR that was paid by pi_1 and acknowledged, with a licence for the first unit. Ids are a digit repeated.
const ORDER: &str = "
INSERT INTO shop.accounts (id, issuer, subject) VALUES ('11111111-1111-1111-1111-111111111111', 'https://id', 'alice');
INSERT INTO shop.products VALUES ('notes', '22222222-2222-2222-2222-222222222222', 1, 'acme', 'Notes', '>=1', '{}', true, now());
INSERT INTO shop.prices (id, sku, currency, version, minor, tax_rate_ppm, tax_included)
    VALUES ('33333333-3333-3333-3333-333333333333', 'notes', 'EUR', 1, 1850, 0, false);
INSERT INTO shop.orders (id, account, request_sha256, currency, subtotal, discount, tax, total)
    VALUES ('44444444-4444-4444-4444-444444444444', '11111111-1111-1111-1111-111111111111', repeat('0', 64), 'EUR', 3700, 0, 0, 3700),
    ('55555555-5555-5555-5555-555555555555', '11111111-1111-1111-1111-111111111111', repeat('0', 64), 'EUR', 3700, 0, 0, 3700);
INSERT INTO shop.order_items (id, order_id, line, sku, title, seller, versions, grants, price, quantity, subtotal, discount, tax, total)
    SELECT id, order_id, 0, 'notes', 'Notes', 'acme', '>=1', '{}', '33333333-3333-3333-3333-333333333333', 2, 3700, 0, 0, 3700
    FROM (VALUES ('66666666-6666-6666-6666-666666666666'::uuid, '44444444-4444-4444-4444-444444444444'::uuid),
        ('77777777-7777-7777-7777-777777777777', '55555555-5555-5555-5555-555555555555')) AS item (id, order_id);
INSERT INTO shop.units SELECT id, unit, order_id FROM shop.order_items, generate_series(0, 1) AS unit;
INSERT INTO shop.attempts (order_id, n, path, body, key, begun_at, session, url, expires_at, session_state, funds)
    VALUES ('44444444-4444-4444-4444-444444444444', 1, '/', '', 'k1', now(), 'cs_1', 'u', now(), 2, 2);
INSERT INTO shop.payments (id, order_id, attempt, state, received, currency)
    VALUES ('pi_1', '44444444-4444-4444-4444-444444444444', 1, 3, 3700, 'EUR');
UPDATE shop.orders SET accepted = 'pi_1' WHERE id = '44444444-4444-4444-4444-444444444444';
INSERT INTO shop.bookings VALUES ('reserve:4', '44444444-4444-4444-4444-444444444444', 'reserve', ''),
    ('deposit:pi_1', '44444444-4444-4444-4444-444444444444', 'deposit', ''),
    ('unacknowledged', '44444444-4444-4444-4444-444444444444', 'deposit', '');
INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES
    ('88888888-8888-8888-8888-888888888888', 'reserve:4', '44444444-4444-4444-4444-444444444444', 'reserve', '99999999-9999-9999-9999-999999999999', 1, 'n'),
    ('aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa', 'deposit:pi_1', '44444444-4444-4444-4444-444444444444', 'deposit', '99999999-9999-9999-9999-999999999999', 2, 'n');
INSERT INTO shop.licences (id, lookup, item_id, unit, order_id, finance_ack_id, ack_kind, payload, key)
    VALUES ('bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb', 'VL-1', '66666666-6666-6666-6666-666666666666', 0, '44444444-4444-4444-4444-444444444444',
    '88888888-8888-8888-8888-888888888888', 'reserve', 'p', 'k');
UPDATE shop.licences SET signature = repeat('x', 64)::bytea, signed_at = now();
INSERT INTO shop.refunds (id, order_id, payment, amount, currency, named, reason, path, body, key, asked_at)
    VALUES ('cccccccc-cccc-cccc-cccc-cccccccccccc', '44444444-4444-4444-4444-444444444444', 'pi_1', 1850, 'EUR', true, 'r', '/', '', 'r1', now());
UPDATE shop.refunds SET state = 2, stripe_id = 're_1';
INSERT INTO shop.refund_units VALUES ('cccccccc-cccc-cccc-cccc-cccccccccccc', '44444444-4444-4444-4444-444444444444', '66666666-6666-6666-6666-666666666666', 1);
INSERT INTO shop.disputes (id, order_id, payment, state, amount, currency) VALUES ('dp_1', '44444444-4444-4444-4444-444444444444', 'pi_1', 4, 3700, 'EUR');
INSERT INTO shop.inbox (event_id, type, object_id, created, sha256) VALUES ('evt_1', 't', 'pi_1', now(), repeat('0', 64));
INSERT INTO shop.audit (aggregate, number, actor, kind, body) VALUES ('44444444-4444-4444-4444-444444444444', 1, 'a', 'k', '{}');
INSERT INTO shop.revocation_lists VALUES (1, now(), now(), 'p', 'k', repeat('x', 64)::bytea);
";

const LICENCE: &str = "INSERT INTO shop.licences (id, lookup, item_id, unit, order_id, finance_ack_id, ack_kind, payload, key) VALUES \
                       (gen_random_uuid(), 'VL-2', ";

/// An id of nothing.
const NOTHING: &str = "dddddddd-dddd-dddd-dddd-dddddddddddd";

/// Rows like those that are there, but for what must not be: the table, which row, what is otherwise, and by what it is refused.
fn varied() -> Vec<(&'static str, String, &'static str)> {
    let rows = [
        (
            "accounts",
            "true",
            json!({"id": NOTHING}),
            "accounts_issuer_subject_key",
        ),
        (
            "products",
            "true",
            json!({"sku": "other"}),
            "products_listing_uid_key",
        ),
        (
            "prices",
            "true",
            json!({"id": NOTHING, "version": 2, "currency": "eur"}),
            "prices_currency_check",
        ),
        (
            "prices",
            "true",
            json!({"id": NOTHING, "version": 2, "minor": -1}),
            "prices_minor_check",
        ),
        (
            "prices",
            "true",
            json!({"id": NOTHING, "version": 2, "sku": "other"}),
            "prices_sku_fkey",
        ),
        (
            "prices",
            "true",
            json!({"id": NOTHING, "version": 2, "tax_rate_ppm": 1_000_001}),
            "prices_tax_rate_ppm_check",
        ),
        (
            "prices",
            "true",
            json!({"id": NOTHING, "version": 0}),
            "prices_version_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING}),
            "orders_number_key",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "account": NOTHING}),
            "orders_account_fkey",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "currency": "eur"}),
            "orders_currency_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "request_sha256": "x"}),
            "orders_request_sha256_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "subtotal": -1, "tax": 1, "total": 0}),
            "orders_subtotal_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "discount": -1, "total": 3701}),
            "orders_discount_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "tax": -1, "total": 3699}),
            "orders_tax_check",
        ),
        (
            "orders",
            "accepted IS NULL",
            json!({"id": NOTHING, "number": 99, "subtotal": 0, "discount": 1, "total": -1}),
            "orders_total_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING}),
            "order_items_order_id_line_key",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "total": 1}),
            "order_items_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": -1}),
            "order_items_line_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "order_id": NOTHING}),
            "order_items_order_id_fkey",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "price": NOTHING}),
            "order_items_price_fkey",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "sku": "other"}),
            "order_items_sku_fkey",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "quantity": 0}),
            "order_items_quantity_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "subtotal": -1, "tax": 1, "total": 0}),
            "order_items_subtotal_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "discount": -1, "total": 3701}),
            "order_items_discount_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "tax": -1, "total": 3699}),
            "order_items_tax_check",
        ),
        (
            "order_items",
            "true",
            json!({"id": NOTHING, "line": 1, "subtotal": 0, "discount": 1, "total": -1}),
            "order_items_total_check",
        ),
        ("units", "unit = 0", json!({"unit": -1}), "units_unit_check"),
        (
            "units",
            "order_id::text ~ '^4'",
            json!({"unit": 9, "order_id": "55555555-5555-5555-5555-555555555555"}),
            "units_item_id_order_id_fkey",
        ),
        (
            "attempts",
            "true",
            json!({"n": 2, "key": "k2"}),
            "attempts_session_key",
        ),
        (
            "attempts",
            "true",
            json!({"n": 0, "key": "k2", "session": "cs_2"}),
            "attempts_n_check",
        ),
        (
            "attempts",
            "true",
            json!({"n": 2, "key": "k2", "session": "cs_2", "url": null}),
            "attempts_check",
        ),
        (
            "attempts",
            "true",
            json!({"n": 2, "key": "k2", "session": "cs_2", "funds": 3}),
            "attempts_funds_check",
        ),
        (
            "attempts",
            "true",
            json!({"n": 2, "key": "k2", "session": "cs_2", "session_state": 3}),
            "attempts_session_state_check",
        ),
        (
            "attempts",
            "true",
            json!({"order_id": NOTHING, "key": "k2", "session": "cs_2"}),
            "attempts_order_id_fkey",
        ),
        (
            "payments",
            "true",
            json!({"id": "pi_2", "currency": null}),
            "payments_check",
        ),
        (
            "payments",
            "true",
            json!({"id": "pi_2", "currency": "eur"}),
            "payments_currency_check",
        ),
        (
            "payments",
            "true",
            json!({"id": "pi_2", "received": -1}),
            "payments_received_check",
        ),
        (
            "payments",
            "true",
            json!({"id": "pi_2", "state": 4}),
            "payments_state_check",
        ),
        (
            "payments",
            "true",
            json!({"id": "pi_2", "order_id": NOTHING}),
            "payments_order_id_fkey",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2"}),
            "refunds_stripe_id_key",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "stripe_id": "re_2"}),
            "refunds_key_key",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2", "stripe_id": "re_2", "amount": -1}),
            "refunds_amount_check",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2", "stripe_id": "re_2", "path": null}),
            "refunds_check",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": null, "path": null, "body": null, "asked_at": null, "stripe_id": null}),
            "refunds_check1",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2", "stripe_id": "re_2", "currency": "eur"}),
            "refunds_currency_check",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2", "stripe_id": "re_2", "state": 5}),
            "refunds_state_check",
        ),
        (
            "refunds",
            "true",
            json!({"id": NOTHING, "key": "r2", "stripe_id": "re_2", "order_id": NOTHING}),
            "refunds_order_id_fkey",
        ),
        (
            "refund_units",
            "true",
            json!({"unit": 9}),
            "refund_units_item_id_unit_order_id_fkey",
        ),
        (
            "refund_units",
            "true",
            json!({"refund_id": NOTHING}),
            "refund_units_refund_id_order_id_fkey",
        ),
        (
            "disputes",
            "true",
            json!({"id": "dp_2", "amount": -1}),
            "disputes_amount_check",
        ),
        (
            "disputes",
            "true",
            json!({"id": "dp_2", "currency": "eur"}),
            "disputes_currency_check",
        ),
        (
            "disputes",
            "true",
            json!({"id": "dp_2", "state": 8}),
            "disputes_state_check",
        ),
        (
            "disputes",
            "true",
            json!({"id": "dp_2", "order_id": NOTHING}),
            "disputes_order_id_fkey",
        ),
        (
            "bookings",
            "true",
            json!({"key": "other", "kind": "gift"}),
            "bookings_kind_check",
        ),
        (
            "bookings",
            "true",
            json!({"key": "other", "order_id": NOTHING}),
            "bookings_order_id_fkey",
        ),
        (
            "finance_acks",
            "kind = 'deposit'",
            json!({"id": NOTHING, "sequence": 9}),
            "finance_acks_key_key",
        ),
        (
            "finance_acks",
            "kind = 'deposit'",
            json!({"id": NOTHING, "key": "unacknowledged", "sequence": 0}),
            "finance_acks_sequence_check",
        ),
        (
            "licences",
            "true",
            json!({"id": NOTHING, "lookup": "VL-2", "unit": 1, "signature": null}),
            "licences_check",
        ),
        (
            "licences",
            "true",
            json!({"id": NOTHING, "lookup": "V".repeat(65), "unit": 1}),
            "licences_lookup_check",
        ),
        (
            "licences",
            "true",
            json!({"id": NOTHING, "lookup": "VL-2", "unit": 1, "signature": "x"}),
            "licences_signature_check",
        ),
        (
            "revocation_lists",
            "true",
            json!({"sequence": 0}),
            "revocation_lists_sequence_check",
        ),
        (
            "revocation_lists",
            "true",
            json!({"sequence": 2, "signature": "x"}),
            "revocation_lists_signature_check",
        ),
        (
            "inbox",
            "true",
            json!({"event_id": "evt_2", "handled_at": "2026-01-01T00:00:00Z"}),
            "inbox_check",
        ),
        (
            "inbox",
            "true",
            json!({"event_id": "evt_2", "sha256": "x"}),
            "inbox_sha256_check",
        ),
        ("audit", "true", json!({"number": 0}), "audit_number_check"),
    ];
    let rows = rows.into_iter().map(|(table, row, otherwise, word)| {
        let sql = format!(
            "INSERT INTO shop.{table} OVERRIDING SYSTEM VALUE
            SELECT (jsonb_populate_record(t, '{otherwise}')).* FROM shop.{table} t WHERE {row} LIMIT 1"
        );
        ("a row that is not sound", sql, word)
    });
    rows.collect()
}

/// What must be refused, and a word of the refusal.
fn breaks() -> Vec<(&'static str, String, &'static str)> {
    let licence = |rest: &str| format!("{LICENCE}{rest}, 'p', 'k')");
    let (order, other) = (
        "'44444444-4444-4444-4444-444444444444'",
        "'55555555-5555-5555-5555-555555555555'",
    );
    let (item, others_item) = (
        "'66666666-6666-6666-6666-666666666666'",
        "'77777777-7777-7777-7777-777777777777'",
    );
    let (reserve, deposit) = (
        "'88888888-8888-8888-8888-888888888888'",
        "'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa'",
    );
    let mut breaks = vec![
        ("a second licence for a unit", licence(&format!("{item}, 0, {order}, {reserve}, 'reserve'")), "licences_item_id_unit_key"),
        ("what a person types for another licence", licence(&format!("{item}, 1, {order}, {reserve}, 'reserve'")).replace("VL-2", "VL-1"), "licences_lookup_key"),
        ("a licence by another order's acknowledgement", licence(&format!("{others_item}, 0, {other}, {reserve}, 'reserve'")), "licences_finance_ack_id"),
        ("a licence by a deposit", licence(&format!("{item}, 1, {order}, {deposit}, 'deposit'")), "licences_ack_kind_check"),
        ("a licence by a deposit that says it is a reserve", licence(&format!("{item}, 1, {order}, {deposit}, 'reserve'")), "licences_finance_ack_id"),
        ("a licence without an acknowledgement", licence(&format!("{item}, 1, {order}, NULL, 'reserve'")), "finance_ack_id"),
        ("a licence for a unit that was not bought", licence(&format!("{item}, 2, {order}, {reserve}, 'reserve'")), "licences_item_id_unit_order_id"),
        ("a licence for another order's unit", licence(&format!("{others_item}, 0, {order}, {reserve}, 'reserve'")), "licences_item_id_unit_order_id"),
        ("another signature", "UPDATE shop.licences SET signature = repeat('y', 64)::bytea".to_owned(), "said once"),
        ("another text under a signature", "UPDATE shop.licences SET payload = 'q'".to_owned(), "said once"),
        ("another text with its signature", format!("INSERT INTO shop.licences (id, lookup, item_id, unit, order_id, finance_ack_id, ack_kind, payload, key) VALUES (gen_random_uuid(), 'VL-9', {item}, 1, {order}, {reserve}, 'reserve', 'p', 'k'); UPDATE shop.licences SET payload = 'q', signature = repeat('x', 64)::bytea, signed_at = now() WHERE lookup = 'VL-9'"), "said once"),
        ("another key under a signature", "UPDATE shop.licences SET key = 'q'".to_owned(), "said once"),
        ("a signature that is none", "UPDATE shop.revocation_lists SET signature = 'x'".to_owned(), "said once"),
        ("an acknowledgement of nothing that was asked", format!("INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES (gen_random_uuid(), 'x', {order}, 'post', '99999999-9999-9999-9999-999999999999', 7, 'n')"), "finance_acks_key"),
        ("another note of an acknowledgement", "UPDATE shop.finance_acks SET note = 'm'".to_owned(), "said once"),
        ("the same entry of a ledger twice", format!("INSERT INTO shop.bookings VALUES ('post:4', {order}, 'post', ''); INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES (gen_random_uuid(), 'post:4', {order}, 'post', '99999999-9999-9999-9999-999999999999', 1, 'n')"), "finance_acks_epoch_sequence_key"),
        ("an acknowledgement by another ledger", format!("INSERT INTO shop.bookings VALUES ('post:4', {order}, 'post', ''); INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES (gen_random_uuid(), 'post:4', {order}, 'post', gen_random_uuid(), 7, 'n')"), "not of the one that was acknowledged by before"),
        ("a ledger that is not whole and nobody knows why", "UPDATE shop.ledger SET is_whole = false".to_owned(), "ledger_check"),
        ("a second reserve", format!("INSERT INTO shop.bookings VALUES ('reserve:x', {order}, 'reserve', ''); INSERT INTO shop.finance_acks (id, key, order_id, kind, epoch, sequence, note) VALUES (gen_random_uuid(), 'reserve:x', {order}, 'reserve', '99999999-9999-9999-9999-999999999999', 7, 'n')"), "finance_acks_once"),
        ("another request of an entry", "UPDATE shop.bookings SET request = 'x'".to_owned(), "said once"),
        ("another payment that pays", format!("INSERT INTO shop.payments (id, order_id, state, received, currency) VALUES ('pi_2', {order}, 3, 3700, 'EUR'); UPDATE shop.orders SET accepted = 'pi_2' WHERE id = {order}"), "said once"),
        ("another order's payment that pays", format!("UPDATE shop.orders SET accepted = 'pi_1' WHERE id = {other}; SET CONSTRAINTS ALL IMMEDIATE"), "orders_accepted"),
        ("a payment that pays twice", format!("INSERT INTO shop.payments (id, order_id, state, received, currency) VALUES ('pi_1', {other}, 3, 3800, 'EUR')"), "payments_pkey"),
        ("a payment of another order", format!("UPDATE shop.payments SET order_id = {other}"), "said once"),
        ("a payment that is taken back", "UPDATE shop.payments SET state = 1".to_owned(), "goes from 3 back to 1"),
        ("a payment of another amount", "UPDATE shop.payments SET received = 1".to_owned(), "said once"),
        ("money of nobody knows how much", format!("INSERT INTO shop.payments (id, order_id, state) VALUES ('pi_3', {order}, 3)"), "payments_check"),
        ("a session that opens again", "UPDATE shop.attempts SET session_state = 0".to_owned(), "goes from 2 back to 0"),
        ("another session of an attempt", "UPDATE shop.attempts SET session = 'cs_2'".to_owned(), "said once"),
        ("two attempts at once", format!("INSERT INTO shop.attempts (order_id, n, path, body, key, begun_at) VALUES ({order}, 2, '/', '', 'k2', now()), ({order}, 3, '/', '', 'k3', now())"), "attempts_open"),
        ("a key of two attempts", format!("INSERT INTO shop.attempts (order_id, n, path, body, key, begun_at) VALUES ({other}, 1, '/', '', 'k1', now())"), "attempts_key_key"),
        ("more money back than came", format!("INSERT INTO shop.refunds (id, order_id, payment, amount, currency, named, reason, path, body, key, asked_at) VALUES (gen_random_uuid(), {order}, 'pi_1', 1851, 'EUR', true, 'r', '/', '', 'r2', now())"), "of payment pi_1 3700 was received, 1850 went back"),
        ("a refund of nothing", format!("INSERT INTO shop.refunds (id, order_id, payment, amount, currency, named, reason, stripe_id) VALUES (gen_random_uuid(), {order}, 'pi_9', 1, 'EUR', false, 'r', 're_9'); SET CONSTRAINTS ALL IMMEDIATE"), "refunds_payment_order_id"),
        ("a refund of another amount", "UPDATE shop.refunds SET amount = 1".to_owned(), "said once"),
        ("a refund that is taken back", "UPDATE shop.refunds SET state = 0".to_owned(), "goes from 2 back to 0"),
        ("a total that does not add up", format!("INSERT INTO shop.orders (id, account, request_sha256, currency, subtotal, discount, tax, total) SELECT gen_random_uuid(), account, request_sha256, 'EUR', 100, 10, 5, 96 FROM shop.orders WHERE id = {order}"), "orders_check"),
        ("a total that is changed", "UPDATE shop.orders SET subtotal = 1, total = 1".to_owned(), "said once"),
        ("a line that is changed", "UPDATE shop.order_items SET quantity = 3".to_owned(), "said once"),
        ("a price that is changed", "UPDATE shop.prices SET minor = 1".to_owned(), "said once"),
        ("two prices of one version", "INSERT INTO shop.prices SELECT gen_random_uuid(), sku, currency, version, 1, 0, false FROM shop.prices".to_owned(), "prices_sku_currency_version_key"),
        ("an event twice", "INSERT INTO shop.inbox (event_id, type, object_id, created, sha256) VALUES ('evt_1', 't', 'pi_1', now(), repeat('0', 64))".to_owned(), "inbox_pkey"),
        ("another past", "UPDATE shop.audit SET body = '[]'".to_owned(), "said once"),
        ("another buyer", "UPDATE shop.accounts SET subject = 'mallory'".to_owned(), "said once"),
        ("a customer of two buyers", format!("UPDATE shop.accounts SET stripe_customer = 'cus_1'; INSERT INTO shop.accounts VALUES ('{NOTHING}', 'https://id', 'bob', 'cus_1')"), "accounts_stripe_customer_key"),
        ("another unit", "UPDATE shop.units SET unit = unit + 10".to_owned(), "said once"),
        ("another unit of a refund", "UPDATE shop.refund_units SET unit = 0".to_owned(), "said once"),
        ("a dispute that is taken back", "UPDATE shop.disputes SET state = 0".to_owned(), "goes from 4 back to 0"),
        ("a dispute over another amount", "UPDATE shop.disputes SET amount = 1".to_owned(), "said once"),
        ("a second ledger", "INSERT INTO shop.ledger (one) VALUES (false)".to_owned(), "ledger_one_check"),
        ("news of what has not happened", format!("INSERT INTO shop.outbox VALUES ({order}, 9)"), "outbox_aggregate_number_fkey"),
        ("a task of no order", format!("INSERT INTO shop.tasks (order_id, task, next_try_at) VALUES ('{NOTHING}', 't', now())"), "tasks_order_id_fkey"),
        ("no licence that is revoked", format!("INSERT INTO shop.revoked VALUES ('{NOTHING}', true, now())"), "revoked_licence_fkey"),
    ];
    breaks.extend(varied());
    for table in [
        "accounts",
        "products",
        "prices",
        "orders",
        "order_items",
        "units",
        "attempts",
        "payments",
        "refunds",
        "refund_units",
        "disputes",
        "bookings",
        "finance_acks",
        "licences",
        "inbox",
        "audit",
        "revocation_lists",
    ] {
        breaks.push((
            "a row that is deleted",
            format!("DELETE FROM shop.{table}"),
            "never deleted",
        ));
        breaks.push((
            "a table that is emptied",
            format!("TRUNCATE shop.{table} CASCADE"),
            "never deleted",
        ));
    }
    breaks
}

/// Tries something, and leaves no trace of it.
async fn tried(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    connection.execute("BEGIN").await.unwrap();
    let tried = tried_within(connection, sql).await;
    connection.execute("ROLLBACK").await.unwrap();
    tried
}

/// The same in a transaction that goes on.
async fn tried_within(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    connection.execute("SAVEPOINT before").await.unwrap();
    let tried = connection.execute(AssertSqlSafe(sql.to_owned())).await;
    let tried = match tried {
        Ok(_) => connection.execute("SET CONSTRAINTS ALL IMMEDIATE").await,
        refused => refused,
    };
    connection
        .execute("ROLLBACK TO before; SET CONSTRAINTS ALL DEFERRED")
        .await
        .unwrap();
    tried.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn every_promise_of_the_schema_holds_against_its_owner() {
    let database = database(server(), &MIGRATIONS).await;
    let mut connection = database.connect().await;
    connection.execute(ORDER).await.unwrap();
    let mut broken = vec![];
    for (what, sql, word) in breaks() {
        match tried(&mut connection, &sql).await {
            Err(refused) if refused.contains(word) => {}
            other => broken.push(format!("{what}: {sql}: {other:?}")),
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // What is allowed is allowed: else nothing of the above says anything.
    for sql in [
        format!("{LICENCE}'66666666-6666-6666-6666-666666666666', 1, '44444444-4444-4444-4444-444444444444', '88888888-8888-8888-8888-888888888888', 'reserve', 'p', 'k')"),
        "UPDATE shop.refunds SET state = 4".to_owned(),
        "UPDATE shop.orders SET closed = true WHERE id = '55555555-5555-5555-5555-555555555555'".to_owned(),
        "UPDATE shop.products SET published = false".to_owned(),
        "INSERT INTO shop.attempts (order_id, n, path, body, key, begun_at) VALUES ('55555555-5555-5555-5555-555555555555', 1, '/', '', 'k2', now())".to_owned(),
    ] {
        assert_eq!(tried(&mut connection, &sql).await, Ok(()), "{sql}");
    }
}

/// What takes one of the schema's promises away: each constraint but the keys by which rows are named, each index that is unique, each trigger.
const MUTANTS: &str = "
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I CASCADE', conrelid::regclass, conname) FROM pg_constraint
    WHERE connamespace = 'shop'::regnamespace AND contype IN ('c', 'u', 'f', 'x')
UNION ALL SELECT format('DROP INDEX %s', indexrelid::regclass) FROM pg_index JOIN pg_class ON pg_class.oid = indrelid
    WHERE relnamespace = 'shop'::regnamespace AND indisunique AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
UNION ALL SELECT format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = 'shop'::regnamespace AND NOT tgisinternal
ORDER BY 1";

/// A promise that nothing is tried against could be taken away, and nobody would see it.
#[tokio::test]
async fn no_promise_of_the_schema_can_be_taken_away_unseen() {
    let database = database(server(), &MIGRATIONS).await;
    let mut connection = database.connect().await;
    connection.execute(ORDER).await.unwrap();
    let mutants: Vec<String> = sqlx::query_scalar(MUTANTS)
        .fetch_all(&mut connection)
        .await
        .unwrap();
    assert!(mutants.len() > 100, "{}", mutants.len());
    let mut unseen = vec![];
    for mutant in mutants {
        connection.execute("BEGIN").await.unwrap();
        connection.execute(AssertSqlSafe(mutant.clone())).await.unwrap();
        let mut is_seen = false;
        for (_, sql, word) in breaks() {
            let tried = tried_within(&mut connection, &sql).await;
            is_seen |= !tried.is_err_and(|refused| refused.contains(word));
            if is_seen {
                break;
            }
        }
        connection.execute("ROLLBACK").await.unwrap();
        if !is_seen {
            unseen.push(mutant);
        }
    }
    assert!(
        unseen.is_empty(),
        "nothing is tried against {} of them:\n{}",
        unseen.len(),
        unseen.join("\n")
    );
}

/// What went back is reckoned under the payment's lock: of two refunds at once the second one sees the first.
#[tokio::test]
async fn two_refunds_at_once_give_back_no_more_than_came() {
    let database = database(server(), &MIGRATIONS).await;
    let (mut one, mut other) = (database.connect().await, database.connect().await);
    one.execute(ORDER).await.unwrap();
    // All that is left.
    let refund = |key: &str| {
        format!(
            "INSERT INTO shop.refunds (id, order_id, payment, amount, currency, named, reason, path, body, key, asked_at)
            VALUES (gen_random_uuid(), '44444444-4444-4444-4444-444444444444', 'pi_1', 1850, 'EUR', true, 'r', '/', '', '{key}', now())"
        )
    };
    one.execute("BEGIN").await.unwrap();
    one.execute(AssertSqlSafe(refund("r2"))).await.unwrap();
    let asked = refund("r3");
    let second = tokio::spawn(async move { other.execute(AssertSqlSafe(asked)).await.map(drop) });
    let looking = database.pool(None, 1).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    until(async || {
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&looking).await.unwrap();
        if waiting == 1 {
            Ok(())
        } else {
            Err(format!("{waiting} wait for a lock"))
        }
    })
    .await;
    one.execute("COMMIT").await.unwrap();
    let refused = second.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("3700 went back"), "{refused}");
}

/// As the chart's README has it: an administrator makes roles, and steps are taken by a login that owns the database and nothing else.
#[tokio::test]
async fn an_owner_who_may_not_make_roles_takes_every_step() {
    // With the roles, by an administrator.
    let database = database(server(), &MIGRATIONS).await;
    let mut administrator = database.connect().await;
    administrator
        .execute("DROP SCHEMA shop CASCADE; DROP TABLE _sqlx_migrations; CREATE ROLE owner NOLOGIN; ALTER SCHEMA public OWNER TO owner;")
        .await
        .unwrap();
    let owns = format!("ALTER DATABASE {} OWNER TO owner", database.name());
    administrator.execute(AssertSqlSafe(owns)).await.unwrap();
    MIGRATIONS
        .run(&database.pool(Some("owner"), 1).await)
        .await
        .unwrap();
    administrator
        .execute("SET ROLE vitrine_api; SELECT FROM shop.orders")
        .await
        .unwrap();
}

#[tokio::test]
async fn roles_can_do_what_they_are_for_and_no_more() {
    let database = database(server(), &MIGRATIONS).await;
    let mut connection = database.connect().await;
    connection.execute(ORDER).await.unwrap();
    let refused = |role: &'static str, sql: &'static str| (role, sql, false);
    let allowed = |role: &'static str, sql: &'static str| (role, sql, true);
    let (api, signer, catalogue) = ("vitrine_api", "vitrine_signer", "vitrine_catalogue");
    for (role, sql, may) in [
        allowed(api, "SELECT FROM shop.orders FOR UPDATE"),
        allowed(api, "SELECT FROM shop.products FOR SHARE"),
        allowed(
            api,
            "INSERT INTO shop.tasks (order_id, task, next_try_at) SELECT id, 't', now() FROM shop.orders",
        ),
        allowed(api, "DELETE FROM shop.tasks"),
        allowed(api, "SELECT nextval('shop.fences')"),
        // By it the shop knows that it is ready (CIC-15).
        allowed(api, "SELECT version FROM _sqlx_migrations"),
        refused(api, "UPDATE shop.products SET published = true"),
        refused(api, "INSERT INTO shop.products SELECT FROM shop.products"),
        allowed(catalogue, "SELECT version FROM _sqlx_migrations"),
        allowed(catalogue, "UPDATE shop.products SET published = false"),
        allowed(
            catalogue,
            "INSERT INTO shop.prices SELECT gen_random_uuid(), sku, currency, 2, 1, 0, false FROM shop.prices",
        ),
        refused(catalogue, "UPDATE shop.prices SET version = version"),
        refused(catalogue, "SELECT FROM shop.orders"),
        refused(catalogue, "SELECT FROM shop.accounts"),
        refused(catalogue, "DELETE FROM shop.products"),
        refused(api, "UPDATE _sqlx_migrations SET success = true"),
        refused(api, "UPDATE shop.ledger SET one = one"),
        refused(api, "UPDATE shop.orders SET total = total"),
        refused(api, "UPDATE shop.licences SET lookup = lookup"),
        refused(api, "UPDATE shop.finance_acks SET note = note"),
        refused(api, "UPDATE shop.audit SET body = body"),
        refused(api, "DELETE FROM shop.orders"),
        refused(api, "DROP TRIGGER never ON shop.orders"),
        refused(api, "ALTER TABLE shop.orders DISABLE TRIGGER ALL"),
        refused(api, "SET session_replication_role = replica"),
        refused(api, "CREATE TABLE shop.mine ()"),
        allowed(signer, "SELECT payload, key FROM shop.licences"),
        allowed(signer, "SELECT note FROM shop.finance_acks"),
        refused(signer, "SELECT FROM shop.payments"),
        refused(signer, "UPDATE shop.licences SET signature = NULL"),
        refused(
            signer,
            "INSERT INTO shop.revocation_lists VALUES (9, now(), now(), 'p', 'k', NULL)",
        ),
    ] {
        let tried = tried(&mut connection, &format!("SET LOCAL ROLE {role}; {sql}")).await;
        assert_eq!(tried.is_ok(), may, "{role}: {sql}: {tried:?}");
    }
}

/// What a shop keeps of people and payments is agreed on column by column (FIN-08): `UPDATE_GOLDEN=1 cargo test -p vitrine-shop-tests --test schema`
/// writes the list anew, for a person to read. What is sensitive of a payment (cards, banks, addresses) stays with Stripe and Finance.
#[tokio::test]
async fn the_shop_keeps_what_it_may_keep_and_no_other_column() {
    let database = database(server(), &MIGRATIONS).await;
    let mut connection = database.connect().await;
    let columns: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', table_name || '.' || column_name, data_type) FROM information_schema.columns WHERE table_schema = 'shop' ORDER BY 1",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let now = columns.join("\n") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/columns.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let agreed = std::fs::read_to_string(path).unwrap_or_default();
    let new: Vec<_> = columns
        .iter()
        .filter(|column| !agreed.lines().any(|known| known == **column))
        .collect();
    assert!(
        now == agreed,
        "these columns are not agreed on: {new:?}; read tests/shop/golden/columns.txt after UPDATE_GOLDEN=1"
    );
}
