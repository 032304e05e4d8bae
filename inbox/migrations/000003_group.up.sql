-- The consumer group that the inbox belongs to. A second one would take what the first has handled for repetitions, and skip it.
CREATE TABLE inbox_group (
    one  boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    name text    NOT NULL CHECK (name <> '')
);

-- Who could work with the inbox still can.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'inbox'::regclass AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner LOOP
        EXECUTE format('GRANT SELECT, INSERT ON inbox_group TO %s', grantee);
    END LOOP;
END $$;
