-- Finance's ledger as it is seen from here.

-- Whether it still has what it has acknowledged. While it has not, nothing is booked and nothing is licensed.
CREATE TABLE shop.ledger (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    is_whole boolean NOT NULL DEFAULT true,
    -- What is wrong, for people.
    why text,
    since timestamptz NOT NULL DEFAULT now(),
    CHECK (is_whole = (why IS NULL))
);
INSERT INTO shop.ledger DEFAULT VALUES;
GRANT SELECT ON shop.ledger TO vitrine_api;
GRANT UPDATE (is_whole, why, since) ON shop.ledger TO vitrine_api;

CREATE INDEX finance_acks_in_order ON shop.finance_acks (sequence);

-- A shop has one ledger for ever: one that begins anew knows of nothing that was sold before.
CREATE FUNCTION shop.one_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Two ranges of an index: <> has none.
    IF EXISTS (SELECT FROM shop.finance_acks WHERE epoch < NEW.epoch) OR EXISTS (SELECT FROM shop.finance_acks WHERE epoch > NEW.epoch) THEN
        RAISE EXCEPTION 'entry % is of ledger %, and not of the one that was acknowledged by before', NEW.key, NEW.epoch
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER one_ledger BEFORE INSERT ON shop.finance_acks FOR EACH ROW EXECUTE FUNCTION shop.one_ledger();
