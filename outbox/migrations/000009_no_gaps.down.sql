CREATE OR REPLACE FUNCTION event_partitions_prepare(parent text, past integer, ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '2s'
AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    gone  timestamptz;
    day   date;
    name  text;
    made  integer := 0;
BEGIN
    IF parent IS NULL OR parent NOT IN ('outbox', 'inbox') THEN
        RAISE EXCEPTION 'no event table: %', parent USING HINT = 'outbox or inbox';
    END IF;
    IF past NOT BETWEEN 0 AND 400 OR ahead NOT BETWEEN 1 AND 400 THEN
        RAISE EXCEPTION 'past % or ahead % is out of range', past, ahead USING HINT = 'past is 0 to 400 days, ahead 1 to 400';
    END IF;
    -- One session at a time makes or drops. What was dropped is read after the lock is had.
    PERFORM pg_advisory_xact_lock(hashtext('event_partitions_prepare'));
    SELECT d.until INTO STRICT gone FROM event_partitions_dropped d WHERE d.parent = event_partitions_prepare.parent FOR SHARE;
    FOR day IN SELECT today + d FROM generate_series(-past, ahead) d LOOP
        CONTINUE WHEN (day::timestamp AT TIME ZONE 'UTC') < gone;
        name := parent || '_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(format('%I', name)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', name, parent);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, name,
            uuidv7_floor(day::timestamp AT TIME ZONE 'UTC'), uuidv7_floor((day + 1)::timestamp AT TIME ZONE 'UTC'));
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION event_partitions_prepare(text, integer, integer) SET search_path = %I, pg_temp', current_schema());
END $$;
