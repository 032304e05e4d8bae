GRANT EXECUTE ON FUNCTION event_partitions_prepare(text, integer, integer), event_partitions_drop(text, interval) TO PUBLIC;

CREATE OR REPLACE FUNCTION event_partitions_window(parent text, OUT since timestamptz, OUT until timestamptz)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT min(day)::timestamp AT TIME ZONE 'UTC', (max(day) + 1)::timestamp AT TIME ZONE 'UTC'
    FROM (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = to_regclass(parent)) days
$$;
