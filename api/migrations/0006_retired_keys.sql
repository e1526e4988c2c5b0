-- A key that is retired before it has signed what was fixed for it signs nothing any more: the text is fixed anew, for the key that signs now.
-- What is signed stays as it is.
GRANT UPDATE (payload, key) ON shop.licences TO vitrine_api;

DROP TRIGGER said_once ON shop.licences;
CREATE TRIGGER said_once BEFORE UPDATE ON shop.licences FOR EACH ROW
    EXECUTE FUNCTION shop.said_once('signature', 'signed_at', 'payload=', 'key=');

CREATE FUNCTION shop.fixed_by_its_signature() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Nor by the statement that signs it: what was signed is what stood there.
    IF coalesce(OLD.signature, NEW.signature) IS NOT NULL AND (NEW.payload, NEW.key) IS DISTINCT FROM (OLD.payload, OLD.key) THEN
        RAISE EXCEPTION 'the text of licence % is signed, and said once', OLD.id USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER fixed_by_its_signature BEFORE UPDATE ON shop.licences FOR EACH ROW EXECUTE FUNCTION shop.fixed_by_its_signature();
