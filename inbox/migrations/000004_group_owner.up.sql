-- Whoever owns the inbox can work with inbox_group too, also where another role migrates.
DO $$
DECLARE
    inbox_owner oid := (SELECT relowner FROM pg_class WHERE oid = 'inbox'::regclass);
BEGIN
    IF inbox_owner <> (SELECT relowner FROM pg_class WHERE oid = 'inbox_group'::regclass) THEN
        EXECUTE format('GRANT SELECT, INSERT ON inbox_group TO %s', inbox_owner::regrole);
    END IF;
END $$;
