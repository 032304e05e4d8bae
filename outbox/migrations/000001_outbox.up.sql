-- The outbox: rows that leave the database as Kafka records, in commit order.
-- Rows are inserted only: never updated, never deleted. Whole partitions go.

-- The lowest UUIDv7 of a millisecond: a time as a bound on ids.
CREATE FUNCTION uuidv7_floor(t timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
AS $$ SELECT (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $$;

CREATE TABLE outbox (
    id             uuid         NOT NULL,
    topic          text         NOT NULL,
    aggregate_type text         NOT NULL,
    aggregate_id   text         NOT NULL,
    type           text         NOT NULL,
    payload        text         NOT NULL,
    traceparent    text,
    -- UTC, without time zone: Debezium's EventRouter takes the record's timestamp
    -- from it and understands no other type.
    created_at     timestamp(6) NOT NULL DEFAULT (clock_timestamp() AT TIME ZONE 'UTC'),
    PRIMARY KEY (id),
    -- A record above the producer's max.request.size (1 MiB) stalls the connector.
    CONSTRAINT outbox_payload_size CHECK (octet_length(payload) <= 1000000),
    CONSTRAINT outbox_key CHECK (topic <> '' AND aggregate_id <> '' AND octet_length(aggregate_id) <= 1000)
) PARTITION BY RANGE (id);

-- Prepares one partition a day (UTC), from past days ago to ahead days from now,
-- for a table that is partitioned by a UUIDv7: outbox or inbox. Safe to call at any
-- time, by several sessions, under load: ATTACH takes no lock that a writer waits for.
-- It runs as the owner, so that a service needs no right to create tables.
CREATE FUNCTION event_partitions_prepare(parent text, past integer, ahead integer) RETURNS integer
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

-- The time whose ids the partitions of a table cover, without gaps.
CREATE FUNCTION event_partitions_window(parent text, OUT since timestamptz, OUT until timestamptz)
LANGUAGE sql STABLE
SET search_path FROM CURRENT
AS $$
    SELECT min(day)::timestamp AT TIME ZONE 'UTC', (max(day) + 1)::timestamp AT TIME ZONE 'UTC'
    FROM (SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
          WHERE i.inhparent = to_regclass(parent)) days
$$;

SELECT event_partitions_prepare('outbox', 1, 7);

CREATE PUBLICATION outbox_pub FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true);
