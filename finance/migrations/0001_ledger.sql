-- Finance's own books: double entry, append only, each entry chained to the one before. Only Finance's role gets here.

CREATE SCHEMA ledger;

-- The ledger itself: its epoch is made with it, and its head is locked by whoever appends.
CREATE TABLE ledger.head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    sequence bigint NOT NULL DEFAULT 0 CHECK (sequence >= 0),
    root text NOT NULL DEFAULT repeat('0', 64) CHECK (root ~ '^[0-9a-f]{64}$')
);
INSERT INTO ledger.head DEFAULT VALUES;

-- What the shop keeps of a sale. Never changed: a new version is a new row, and an entry names the one it was reckoned by.
CREATE TABLE ledger.fee_policies (
    version integer PRIMARY KEY CHECK (version > 0),
    -- Of what is paid without tax.
    rate_ppm integer NOT NULL CHECK (rate_ppm BETWEEN 0 AND 1000000),
    valid_from timestamptz NOT NULL DEFAULT now()
);
-- 15 %: one in the middle of what marketplaces of software take; whoever installs this adds their own.
INSERT INTO ledger.fee_policies (version, rate_ppm) VALUES (1, 150000);

CREATE TABLE ledger.entries (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    key text NOT NULL UNIQUE,
    kind text NOT NULL CHECK (kind IN ('deposit', 'reserve', 'post', 'refund', 'reinstate', 'memo')),
    order_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    reverses text REFERENCES ledger.entries (key),
    fee_policy integer REFERENCES ledger.fee_policies,
    request bytea NOT NULL,
    request_sha256 text NOT NULL CHECK (request_sha256 = encode(sha256(request), 'hex')),
    -- The receipt, as it was signed.
    note bytea NOT NULL,
    root text NOT NULL CHECK (root ~ '^[0-9a-f]{64}$'),
    at timestamptz NOT NULL
);
CREATE INDEX entries_of_order ON ledger.entries (order_id);

CREATE TABLE ledger.postings (
    sequence bigint NOT NULL REFERENCES ledger.entries,
    line integer NOT NULL,
    account text NOT NULL,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    -- Positive: debit; negative: credit.
    minor bigint NOT NULL CHECK (minor <> 0),
    PRIMARY KEY (sequence, line)
);
CREATE INDEX postings_of_account ON ledger.postings (account, sequence);

-- Debits and credits of an entry are equal, in each currency; judged when its transaction ends.
CREATE FUNCTION ledger.balanced() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong record;
BEGIN
    SELECT currency, sum(minor) AS minor INTO wrong FROM ledger.postings WHERE sequence = NEW.sequence GROUP BY currency HAVING sum(minor) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % is out of balance by % %', NEW.sequence, wrong.minor, wrong.currency
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER balanced AFTER INSERT ON ledger.postings DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION ledger.balanced();

CREATE FUNCTION ledger.never() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are never changed', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER never BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.entries FOR EACH STATEMENT EXECUTE FUNCTION ledger.never();
CREATE TRIGGER never BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.postings FOR EACH STATEMENT EXECUTE FUNCTION ledger.never();
CREATE TRIGGER never BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger.fee_policies FOR EACH STATEMENT EXECUTE FUNCTION ledger.never();

-- The head goes forward only, one ledger for ever.
CREATE FUNCTION ledger.forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.epoch <> OLD.epoch OR NEW.sequence < OLD.sequence THEN
        RAISE EXCEPTION 'the ledger goes from % of % back to % of %', OLD.sequence, OLD.epoch, NEW.sequence, NEW.epoch
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER forward BEFORE UPDATE ON ledger.head FOR EACH ROW EXECUTE FUNCTION ledger.forward();
