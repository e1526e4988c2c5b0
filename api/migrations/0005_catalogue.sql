-- Listings are written down by a process of its own, which alone may talk to the cluster; the shop's process only reads them.

-- In which currencies the listing itself says what it costs: it is sold in no other one then, and nobody else says a price. NULL: it says
-- none, and who runs the shop does.
ALTER TABLE shop.products ADD COLUMN currencies text[];
-- Which of the two has said a price: what a listing once said is no price of the shop's own.
ALTER TABLE shop.prices ADD COLUMN by_listing boolean NOT NULL DEFAULT false;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'vitrine_catalogue') THEN
        CREATE ROLE vitrine_catalogue NOLOGIN;
    END IF;
EXCEPTION
    -- Roles are of all databases of a server: another shop's are made at the same time.
    WHEN duplicate_object OR unique_violation THEN NULL;
END $$;

GRANT USAGE ON SCHEMA shop TO vitrine_catalogue;
GRANT SELECT, INSERT, UPDATE ON shop.products TO vitrine_catalogue;
GRANT SELECT, INSERT ON shop.prices TO vitrine_catalogue;
REVOKE INSERT, UPDATE ON shop.products FROM vitrine_api;
-- What SELECT … FOR SHARE needs.
GRANT UPDATE (seen_at) ON shop.products TO vitrine_api;

DO $$
BEGIN
    IF to_regclass('public._sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON public._sqlx_migrations TO vitrine_catalogue;
    END IF;
END $$;

-- As before (0003), by the two ends of the index: of a table in which all rows have one epoch, the planner takes any range of others for a third
-- of it, and looked through all of it for each receipt.
CREATE OR REPLACE FUNCTION shop.one_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT epoch FROM shop.finance_acks ORDER BY epoch LIMIT 1) <> NEW.epoch
        OR (SELECT epoch FROM shop.finance_acks ORDER BY epoch DESC LIMIT 1) <> NEW.epoch THEN
        RAISE EXCEPTION 'entry % is of ledger %, and not of the one that was acknowledged by before', NEW.key, NEW.epoch
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
