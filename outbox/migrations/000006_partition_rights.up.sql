-- To make and to drop partitions is for who writes the outbox: whoever drops those of the inbox makes it forget. Who could write before
-- migrates with it; later a role needs GRANT EXECUTE on both.
REVOKE EXECUTE ON FUNCTION event_partitions_prepare(text, integer, integer), event_partitions_drop(text, interval) FROM PUBLIC;
DO $$
DECLARE
    grantee oid;
BEGIN
    FOR grantee IN SELECT a.grantee FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = 'outbox'::regclass
        AND a.privilege_type = 'INSERT' AND a.grantee <> c.relowner LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION event_partitions_prepare(text, integer, integer), event_partitions_drop(text, interval) TO %s',
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
    END LOOP;
END $$;

-- As in the first migration, and of the days only: a default partition has another name.
CREATE OR REPLACE FUNCTION event_partitions_window(parent text, OUT since timestamptz, OUT until timestamptz)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT min(day)::timestamp AT TIME ZONE 'UTC', (max(day) + 1)::timestamp AT TIME ZONE 'UTC'
    FROM (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = to_regclass(parent) AND c.relname ~ '_[0-9]{8}$') days
$$;
