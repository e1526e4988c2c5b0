-- A ledger that is still empty may become the one that it was: it takes over its epoch with its first entry.
CREATE OR REPLACE FUNCTION ledger.forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.epoch <> OLD.epoch AND OLD.sequence > 0) OR NEW.sequence < OLD.sequence THEN
        RAISE EXCEPTION 'the ledger goes from % of % back to % of %', OLD.sequence, OLD.epoch, NEW.sequence, NEW.epoch
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- The policy that the ledger began with is valid from its beginning, whenever the database was made: what is given back is older than that.
ALTER TABLE ledger.fee_policies DISABLE TRIGGER never;
UPDATE ledger.fee_policies SET valid_from = '-infinity' WHERE version = 1;
ALTER TABLE ledger.fee_policies ENABLE TRIGGER never;
