-- The shop: who buys what, what was paid, what Finance said, what was licensed. The promises of docs/architecture.md stand here as
-- constraints, so that no code path and no person at psql can break them.
--
-- Facts only grow: a trigger refuses what would unlearn one. Nobody writes an order's status; it is reckoned from the facts.
-- Amounts are minor units of an ISO 4217 currency. Small numbers of states are those of vitrine_commerce::facts, in their order.

CREATE SCHEMA shop;

-- The clock of leases and of what is tried later. A function, so that a test can set it; stable, so that an index is of use.
CREATE FUNCTION shop.now() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pg_catalog.now()';

-- People, as their identity provider knows them.
CREATE TABLE shop.accounts (
    id uuid PRIMARY KEY,
    issuer text NOT NULL,
    subject text NOT NULL,
    stripe_customer text UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer, subject)
);

-- Listings of the cluster that are sold, as they were last seen there. Gone from the cluster: not published, and kept.
CREATE TABLE shop.products (
    sku text PRIMARY KEY,
    listing_uid uuid NOT NULL UNIQUE,
    generation bigint NOT NULL,
    seller text NOT NULL,
    title text NOT NULL,
    versions text NOT NULL,
    -- What a licence says: manifest, limits, entitlements, days.
    grants jsonb NOT NULL,
    published boolean NOT NULL,
    seen_at timestamptz NOT NULL
);

-- Prices are never changed: a new one is a new row, and an order names the one it was made by.
CREATE TABLE shop.prices (
    id uuid PRIMARY KEY,
    sku text NOT NULL REFERENCES shop.products,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    version integer NOT NULL CHECK (version > 0),
    minor bigint NOT NULL CHECK (minor >= 0),
    tax_rate_ppm integer NOT NULL CHECK (tax_rate_ppm BETWEEN 0 AND 1000000),
    tax_included boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (sku, currency, version)
);

CREATE TABLE shop.orders (
    id uuid PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    account uuid NOT NULL REFERENCES shop.accounts,
    -- SHA-256 of the request that made it: the same id asked for with another one is refused.
    request_sha256 text NOT NULL CHECK (request_sha256 ~ '^[0-9a-f]{64}$'),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    subtotal bigint NOT NULL CHECK (subtotal >= 0),
    discount bigint NOT NULL CHECK (discount >= 0),
    tax bigint NOT NULL CHECK (tax >= 0),
    total bigint NOT NULL CHECK (total >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- No attempt is begun any more.
    closed boolean NOT NULL DEFAULT false,
    -- Which payment pays it; said once.
    accepted text,
    -- CHK-14
    CHECK (total = subtotal - discount + tax)
);
CREATE INDEX orders_of_account ON shop.orders (account, number);

CREATE TABLE shop.order_items (
    id uuid PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES shop.orders,
    line integer NOT NULL CHECK (line >= 0),
    sku text NOT NULL REFERENCES shop.products,
    title text NOT NULL,
    seller text NOT NULL,
    versions text NOT NULL,
    grants jsonb NOT NULL,
    price uuid NOT NULL REFERENCES shop.prices,
    quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
    subtotal bigint NOT NULL CHECK (subtotal >= 0),
    discount bigint NOT NULL CHECK (discount >= 0),
    tax bigint NOT NULL CHECK (tax >= 0),
    total bigint NOT NULL CHECK (total >= 0),
    CHECK (total = subtotal - discount + tax),
    UNIQUE (order_id, line),
    UNIQUE (id, order_id)
);

-- What is licensed and delivered one by one.
CREATE TABLE shop.units (
    item_id uuid NOT NULL,
    unit integer NOT NULL CHECK (unit >= 0),
    order_id uuid NOT NULL,
    PRIMARY KEY (item_id, unit),
    UNIQUE (item_id, unit, order_id),
    FOREIGN KEY (item_id, order_id) REFERENCES shop.order_items (id, order_id)
);

-- Attempts to pay. The call is stored by the edge that decides it, and sent again verbatim.
CREATE TABLE shop.attempts (
    order_id uuid NOT NULL REFERENCES shop.orders,
    n integer NOT NULL CHECK (n > 0),
    path text NOT NULL,
    body text NOT NULL,
    key text NOT NULL UNIQUE,
    begun_at timestamptz NOT NULL,
    session text UNIQUE,
    url text,
    expires_at timestamptz,
    session_state smallint NOT NULL DEFAULT 0 CHECK (session_state BETWEEN 0 AND 2),
    funds smallint NOT NULL DEFAULT 0 CHECK (funds BETWEEN 0 AND 2),
    PRIMARY KEY (order_id, n),
    CHECK ((session IS NULL) = (url IS NULL) AND (session IS NULL) = (expires_at IS NULL))
);
-- At most one that can be paid.
CREATE UNIQUE INDEX attempts_open ON shop.attempts (order_id) WHERE session_state = 0;

-- Payments by Stripe's id.
CREATE TABLE shop.payments (
    id text PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES shop.orders,
    -- Which it says it is of. No foreign key: a payment is a fact, whatever it says.
    attempt integer,
    state smallint NOT NULL CHECK (state BETWEEN 0 AND 3),
    received bigint CHECK (received >= 0),
    currency text CHECK (currency ~ '^[A-Z]{3}$'),
    -- It said two different things of itself, of which the first ones are here.
    contradicted boolean NOT NULL DEFAULT false,
    method text,
    -- Stripe's time (CHK-31).
    paid_at timestamptz,
    CHECK ((received IS NULL) = (currency IS NULL)),
    CHECK (state < 3 OR received IS NOT NULL OR contradicted),
    UNIQUE (id, order_id)
);
CREATE INDEX payments_of_order ON shop.payments (order_id);
ALTER TABLE shop.orders ADD CONSTRAINT orders_accepted FOREIGN KEY (accepted, id) REFERENCES shop.payments (id, order_id) DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE shop.refunds (
    id uuid PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES shop.orders,
    payment text NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    stripe_id text UNIQUE,
    state smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 4),
    contradicted boolean NOT NULL DEFAULT false,
    -- Whether it is said which units it is for, in shop.refund_units; none of them for a payment that paid nothing.
    named boolean NOT NULL,
    reason text NOT NULL,
    -- Ours: the call that makes it, and its key. Of the dashboard's: none.
    path text,
    body text,
    key text UNIQUE,
    asked_at timestamptz,
    CHECK ((path IS NULL) = (key IS NULL) AND (body IS NULL) = (key IS NULL) AND (asked_at IS NULL) = (key IS NULL)),
    CHECK (stripe_id IS NOT NULL OR key IS NOT NULL),
    FOREIGN KEY (payment, order_id) REFERENCES shop.payments (id, order_id) DEFERRABLE INITIALLY DEFERRED,
    UNIQUE (id, order_id)
);
CREATE INDEX refunds_of_order ON shop.refunds (order_id);

CREATE TABLE shop.refund_units (
    refund_id uuid NOT NULL,
    order_id uuid NOT NULL,
    item_id uuid NOT NULL,
    unit integer NOT NULL,
    PRIMARY KEY (refund_id, item_id, unit),
    FOREIGN KEY (refund_id, order_id) REFERENCES shop.refunds (id, order_id),
    FOREIGN KEY (item_id, unit, order_id) REFERENCES shop.units (item_id, unit, order_id)
);

CREATE TABLE shop.disputes (
    id text PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES shop.orders,
    payment text NOT NULL,
    state smallint NOT NULL CHECK (state BETWEEN 0 AND 7),
    contradicted boolean NOT NULL DEFAULT false,
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$')
);
CREATE INDEX disputes_of_order ON shop.disputes (order_id);

-- What Finance is asked for: the bytes are stored by the edge that decides it.
CREATE TABLE shop.bookings (
    key text PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES shop.orders,
    kind text NOT NULL CHECK (kind IN ('deposit', 'reserve', 'post', 'refund', 'reinstate', 'memo')),
    request bytea NOT NULL,
    UNIQUE (key, order_id, kind)
);
CREATE INDEX bookings_of_order ON shop.bookings (order_id);

-- What Finance has signed.
CREATE TABLE shop.finance_acks (
    id uuid PRIMARY KEY,
    key text NOT NULL UNIQUE,
    order_id uuid NOT NULL,
    kind text NOT NULL,
    epoch uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    note bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (key, order_id, kind) REFERENCES shop.bookings (key, order_id, kind),
    -- What a ledger has said once it does not say otherwise.
    UNIQUE (epoch, sequence),
    UNIQUE (id, order_id, kind)
);
CREATE UNIQUE INDEX finance_acks_once ON shop.finance_acks (order_id) WHERE kind IN ('reserve', 'memo');

-- Promise 4: no licence without Finance's acknowledgement of this very order. The signer checks the receipt itself.
CREATE TABLE shop.licences (
    id uuid PRIMARY KEY,
    -- What a person types.
    lookup text NOT NULL UNIQUE CHECK (length(lookup) <= 64),
    item_id uuid NOT NULL,
    unit integer NOT NULL,
    order_id uuid NOT NULL,
    finance_ack_id uuid NOT NULL,
    ack_kind text NOT NULL CHECK (ack_kind IN ('reserve', 'memo')),
    -- The text of the note: what is signed.
    payload bytea NOT NULL,
    key text NOT NULL,
    signature bytea CHECK (octet_length(signature) = 64),
    created_at timestamptz NOT NULL DEFAULT now(),
    signed_at timestamptz,
    -- Promise 5: one a unit.
    UNIQUE (item_id, unit),
    FOREIGN KEY (item_id, unit, order_id) REFERENCES shop.units (item_id, unit, order_id),
    FOREIGN KEY (finance_ack_id, order_id, ack_kind) REFERENCES shop.finance_acks (id, order_id, kind),
    CHECK ((signature IS NULL) = (signed_at IS NULL))
);
CREATE INDEX licences_of_order ON shop.licences (order_id);

-- Which licences were revoked, and which of them given back: what lists of them are made from.
CREATE TABLE shop.revoked (
    licence uuid PRIMARY KEY REFERENCES shop.licences,
    is_revoked boolean NOT NULL,
    changed_at timestamptz NOT NULL
);
CREATE INDEX revoked_changed ON shop.revoked (changed_at);

-- Stripe's events, by which something has to be looked up. No body: what they say is read anew.
CREATE TABLE shop.inbox (
    event_id text PRIMARY KEY,
    type text NOT NULL,
    object_id text NOT NULL,
    created timestamptz NOT NULL,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    received_at timestamptz NOT NULL DEFAULT now(),
    -- By which set of handlers it was handled, or found to be of no interest: a later set looks again.
    handled_at timestamptz,
    handled_by integer,
    ignored boolean NOT NULL DEFAULT false,
    -- Who works at it, until when by the database's clock, and the how-manieth that is.
    leased_until timestamptz,
    fence bigint NOT NULL DEFAULT 0,
    tries integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL DEFAULT shop.now(),
    CHECK ((handled_at IS NULL) = (handled_by IS NULL))
);
CREATE INDEX inbox_open ON shop.inbox (next_try_at, event_id) WHERE handled_at IS NULL;

-- What workers have to do for an order, as vitrine_api::order::Task writes it. Done: no row.
CREATE TABLE shop.tasks (
    order_id uuid NOT NULL REFERENCES shop.orders,
    task text NOT NULL,
    leased_until timestamptz,
    fence bigint NOT NULL DEFAULT 0,
    tries integer NOT NULL DEFAULT 0,
    next_try_at timestamptz NOT NULL,
    PRIMARY KEY (order_id, task)
);
CREATE INDEX tasks_open ON shop.tasks (next_try_at, order_id, task);
-- A task that comes to be again has a higher fence than any worker that was at it before.
CREATE SEQUENCE shop.fences;

-- What happened, in the effect's own transaction, numbered under the aggregate's lock. Never changed, never deleted.
CREATE TABLE shop.audit (
    aggregate uuid NOT NULL,
    number bigint NOT NULL CHECK (number > 0),
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    kind text NOT NULL,
    body jsonb NOT NULL,
    PRIMARY KEY (aggregate, number)
);

-- Of that, what others have still to be told. Told: no row.
CREATE TABLE shop.outbox (
    aggregate uuid NOT NULL,
    number bigint NOT NULL,
    PRIMARY KEY (aggregate, number),
    FOREIGN KEY (aggregate, number) REFERENCES shop.audit (aggregate, number)
);

CREATE TABLE shop.revocation_lists (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    payload bytea NOT NULL,
    key text NOT NULL,
    signature bytea CHECK (octet_length(signature) = 64)
);

-- Steps that are never taken back.
CREATE FUNCTION shop.only_forward() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    field text;
    was jsonb := to_jsonb(OLD);
    is_now jsonb := to_jsonb(NEW);
BEGIN
    FOREACH field IN ARRAY TG_ARGV LOOP
        IF (is_now ->> field)::bigint < (was ->> field)::bigint THEN
            RAISE EXCEPTION '%.% goes from % back to %', TG_TABLE_NAME, field, was ->> field, is_now ->> field
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER only_forward BEFORE UPDATE ON shop.attempts FOR EACH ROW EXECUTE FUNCTION shop.only_forward('session_state', 'funds');
CREATE TRIGGER only_forward BEFORE UPDATE ON shop.payments FOR EACH ROW EXECUTE FUNCTION shop.only_forward('state');
CREATE TRIGGER only_forward BEFORE UPDATE ON shop.refunds FOR EACH ROW EXECUTE FUNCTION shop.only_forward('state');
CREATE TRIGGER only_forward BEFORE UPDATE ON shop.disputes FOR EACH ROW EXECUTE FUNCTION shop.only_forward('state');

-- What is said once. The arguments name what may change: "field" from nothing to something, or from no to yes; "field=" as it likes
-- (another trigger may know more of it). Nothing else ever does.
CREATE FUNCTION shop.said_once() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    field text;
    was jsonb := to_jsonb(OLD);
    is_now jsonb := to_jsonb(NEW);
    -- Null without arguments: by that, everything could be changed.
    may text[] := coalesce(TG_ARGV, '{}');
BEGIN
    FOR field IN SELECT key FROM jsonb_each(was) LOOP
        IF was -> field IS DISTINCT FROM is_now -> field
            AND NOT (field || '=' = ANY (may))
            AND NOT (field = ANY (may) AND was -> field IN ('null'::jsonb, 'false'::jsonb)) THEN
            RAISE EXCEPTION '%.% is said once, and was %', TG_TABLE_NAME, field, was -> field
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NEW;
END $$;
CREATE TRIGGER said_once BEFORE UPDATE ON shop.accounts FOR EACH ROW EXECUTE FUNCTION shop.said_once('stripe_customer');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.prices FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.said_once('accepted', 'closed');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.order_items FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.units FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.attempts FOR EACH ROW
    EXECUTE FUNCTION shop.said_once('session', 'url', 'expires_at', 'session_state=', 'funds=');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.payments FOR EACH ROW
    EXECUTE FUNCTION shop.said_once('attempt', 'received', 'currency', 'contradicted', 'method', 'paid_at', 'state=');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.refunds FOR EACH ROW
    EXECUTE FUNCTION shop.said_once('stripe_id', 'contradicted', 'named', 'state=');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.refund_units FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.disputes FOR EACH ROW EXECUTE FUNCTION shop.said_once('contradicted', 'state=');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.bookings FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.finance_acks FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.licences FOR EACH ROW EXECUTE FUNCTION shop.said_once('signature', 'signed_at');
CREATE TRIGGER said_once BEFORE UPDATE ON shop.audit FOR EACH ROW EXECUTE FUNCTION shop.said_once();
CREATE TRIGGER said_once BEFORE UPDATE ON shop.revocation_lists FOR EACH ROW EXECUTE FUNCTION shop.said_once('signature');

CREATE FUNCTION shop.never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never deleted', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
DO $$
DECLARE
    kept text;
BEGIN
    FOREACH kept IN ARRAY ARRAY['accounts', 'products', 'prices', 'orders', 'order_items', 'units', 'attempts', 'payments', 'refunds',
        'refund_units', 'disputes', 'bookings', 'finance_acks', 'licences', 'inbox', 'audit', 'revocation_lists'] LOOP
        EXECUTE format('CREATE TRIGGER never BEFORE DELETE OR TRUNCATE ON shop.%I FOR EACH STATEMENT EXECUTE FUNCTION shop.never()', kept);
    END LOOP;
END $$;

-- What we give back is never more than what came: of one payment, under its row's lock.
CREATE FUNCTION shop.no_more_than_was_paid() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    paid bigint;
    gone bigint;
BEGIN
    IF NEW.key IS NULL OR NEW.state > 2 THEN
        RETURN NEW;
    END IF;
    SELECT received INTO paid FROM shop.payments WHERE id = NEW.payment FOR UPDATE;
    SELECT coalesce(sum(amount), 0) INTO gone FROM shop.refunds WHERE payment = NEW.payment AND state <= 2 AND id <> NEW.id;
    IF paid IS NULL OR gone + NEW.amount > paid THEN
        RAISE EXCEPTION 'of payment % % was received, % went back, and % is asked for', NEW.payment, paid, gone, NEW.amount
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER no_more_than_was_paid BEFORE INSERT ON shop.refunds FOR EACH ROW EXECUTE FUNCTION shop.no_more_than_was_paid();
