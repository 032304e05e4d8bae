-- Whoever owns the inbox can work with inbox_group too, also where another role migrates.
DO $$
DECLARE
    inbox_owner oid := (SELECT relowner FROM pg_class WHERE oid = 'inbox'::regclass);
    group_owner oid := (SELECT relowner FROM pg_class WHERE oid = 'inbox_group'::regclass);
BEGIN
    IF has_table_privilege(inbox_owner, 'inbox_group', 'SELECT') AND has_table_privilege(inbox_owner, 'inbox_group', 'INSERT') THEN
        RETURN;
    END IF;
    IF NOT pg_has_role(group_owner, 'USAGE') THEN
        RAISE EXCEPTION 'as %: GRANT SELECT, INSERT ON inbox_group TO %; and migrate again', group_owner::regrole, inbox_owner::regrole;
    END IF;
    EXECUTE format('GRANT SELECT, INSERT ON inbox_group TO %s', inbox_owner::regrole);
END $$;
