-- Who may do what. Logins are made by whoever installs this, as members of these.

DO $$
DECLARE
    made text;
BEGIN
    FOREACH made IN ARRAY ARRAY['vitrine_api', 'vitrine_signer'] LOOP
        -- Who owns the database need not be one who may make roles, if somebody has made these before.
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = made);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', made);
        EXCEPTION
            -- Roles are of all databases of a server: another shop's are there already, or are made at the same time.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA shop TO vitrine_api, vitrine_signer;

GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA shop TO vitrine_api;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA shop TO vitrine_api;
GRANT UPDATE (stripe_customer) ON shop.accounts TO vitrine_api;
GRANT UPDATE ON shop.products, shop.revoked, shop.attempts, shop.payments, shop.refunds, shop.disputes, shop.inbox, shop.tasks TO vitrine_api;
-- Also what SELECT … FOR UPDATE of an order needs.
GRANT UPDATE (accepted, closed) ON shop.orders TO vitrine_api;
GRANT UPDATE (signature, signed_at) ON shop.licences TO vitrine_api;
GRANT UPDATE (signature) ON shop.revocation_lists TO vitrine_api;
GRANT DELETE ON shop.tasks, shop.outbox TO vitrine_api;

-- The signer looks for itself, and writes nothing.
GRANT SELECT ON shop.accounts, shop.orders, shop.order_items, shop.bookings, shop.finance_acks, shop.licences, shop.revocation_lists TO vitrine_signer;
