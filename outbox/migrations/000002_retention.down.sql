DROP FUNCTION event_partitions_drop(text, interval);
DROP FUNCTION event_partition_confirmed(text);
DO $$
DECLARE
    p text;
BEGIN
    FOR p IN SELECT partition FROM event_partitions_sealed LOOP
        EXECUTE format('DROP TRIGGER sealed ON %I', p);
    END LOOP;
END $$;
DROP FUNCTION event_partition_sealed();
DROP TABLE event_partitions_sealed;

CREATE OR REPLACE FUNCTION event_partitions_prepare(parent text, past integer, ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '2s'
AS $$
DECLARE
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    day   date;
    name  text;
    made  integer := 0;
BEGIN
    IF parent NOT IN ('outbox', 'inbox') THEN
        RAISE EXCEPTION 'no event table: %', parent USING HINT = 'outbox or inbox';
    END IF;
    IF past NOT BETWEEN 0 AND 400 OR ahead NOT BETWEEN 1 AND 400 THEN
        RAISE EXCEPTION 'past % or ahead % is out of range', past, ahead USING HINT = 'past is 0 to 400 days, ahead 1 to 400';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('event_partitions_prepare'));
    FOR day IN SELECT today + d FROM generate_series(-past, ahead) d LOOP
        name := parent || '_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(format('%I', name)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', name, parent);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, name,
            uuidv7_floor(day::timestamp AT TIME ZONE 'UTC'), uuidv7_floor((day + 1)::timestamp AT TIME ZONE 'UTC'));
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
DROP TABLE event_partitions_dropped;
