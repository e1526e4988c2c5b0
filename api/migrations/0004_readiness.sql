-- The shop is ready when the schema is what it needs: its role may look which of the steps were taken. Whoever takes them by hand keeps
-- no such list.
DO $$
BEGIN
    IF to_regclass('public._sqlx_migrations') IS NOT NULL THEN
        GRANT SELECT ON public._sqlx_migrations TO vitrine_api;
    END IF;
END $$;
