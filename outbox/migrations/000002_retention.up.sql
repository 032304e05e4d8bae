-- Retention: partitions that are past it go as a whole. The rules, and why, are in the doc comments
-- of outbox.DropPartitions and inbox.DropPartitions.

-- Up to where partitions are gone. None is ever made again below it: it would be empty, and an inbox
-- would take the events of that time for new. The rows exist from the start, so that a session with an
-- old snapshot fails on them rather than not see them.
CREATE TABLE event_partitions_dropped (
    parent text        NOT NULL PRIMARY KEY,
    until  timestamptz NOT NULL
);
INSERT INTO event_partitions_dropped VALUES ('outbox', '-infinity'), ('inbox', '-infinity');

-- Partitions of the outbox that take no rows any more.
CREATE TABLE event_partitions_sealed (
    partition text        NOT NULL PRIMARY KEY,
    lsn       pg_lsn      NOT NULL, -- every row was committed before this position
    readers   text        NOT NULL, -- the server's start, and the slots, each with the process that read it
    marked_at timestamptz NOT NULL
);

-- A late writer gets the error that it gets once the partition is gone.
CREATE FUNCTION event_partition_sealed() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION 'no partition of relation "outbox" takes the id %: it is older than the retention', NEW.id
        USING ERRCODE = 'check_violation', HINT = 'the clock of the writer is days behind, or it made the id long before this transaction';
END $$;

-- As in the first migration, and never below what was dropped.
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

-- Whether every slot of this database has confirmed all of a partition of the outbox: reason is null then,
-- else a state of event_partitions_drop. It seals and marks the partition when that is due.
CREATE FUNCTION event_partition_confirmed(partition text, OUT reason text, OUT detail text)
LANGUAGE plpgsql VOLATILE
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
DECLARE
    mark event_partitions_sealed;
    slot record;
BEGIN
    SELECT s.* INTO mark FROM event_partitions_sealed s WHERE s.partition = event_partition_confirmed.partition;
    -- Process ids begin anew with the server.
    SELECT count(*) AS slots,
           format('%s %s', extract(epoch FROM pg_postmaster_start_time()), string_agg(format('%s=%s', slot_name, active_pid), ' ' ORDER BY slot_name)) AS readers,
           min(slot_name) FILTER (WHERE wal_status = 'lost') AS lost,
           min(slot_name) FILTER (WHERE NOT active OR active_pid IS NULL) AS inactive,
           min(slot_name) FILTER (WHERE confirmed_flush_lsn IS NULL OR confirmed_flush_lsn < mark.lsn) AS behind
    INTO slot FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database();
    CASE
    WHEN slot.slots = 0 THEN
        reason := 'no_slot'; detail := 'no replication slot of this database has read it: make the slot and start the connector';
    WHEN slot.lost IS NOT NULL THEN
        reason := 'slot_lost'; detail := format('slot %s is lost: drop it, then the connector makes a new one', slot.lost);
    WHEN slot.inactive IS NOT NULL THEN
        reason := 'slot_inactive'; detail := format('nobody reads slot %s: start its connector, or drop the slot if it is not needed', slot.inactive);
    WHEN mark.partition IS NULL OR mark.readers <> slot.readers OR mark.marked_at < clock_timestamp() - interval '30 min' THEN
        reason := 'unconfirmed'; detail := 'it is sealed now; the slots must confirm that';
        IF mark.partition IS NULL THEN
            BEGIN
                EXECUTE format('CREATE TRIGGER sealed BEFORE INSERT ON %I FOR EACH ROW EXECUTE FUNCTION event_partition_sealed()', partition);
            EXCEPTION WHEN lock_not_available THEN
                reason := 'locked'; detail := 'a transaction that wrote into it is still open';
                RETURN;
            END;
        END IF;
        -- After the seal: whoever wrote into it has committed, below this position.
        INSERT INTO event_partitions_sealed AS s VALUES (partition, pg_current_wal_insert_lsn(), slot.readers, clock_timestamp())
        ON CONFLICT ON CONSTRAINT event_partitions_sealed_pkey DO UPDATE SET lsn = excluded.lsn, readers = excluded.readers, marked_at = excluded.marked_at;
    WHEN slot.behind IS NOT NULL THEN
        reason := 'unconfirmed'; detail := format('slot %s has not confirmed it yet', slot.behind);
    ELSE
        NULL;
    END CASE;
END $$;

-- Drops the oldest partition of a table if it is past retention and nobody needs it. state is
-- none (all are younger), dropped, or why it stays: busy, locked, unconfirmed, no_slot, slot_lost,
-- slot_inactive. One call, one transaction, one partition: the lock on the table must be short.
-- It runs as the owner, so that a service needs no right to drop tables.
CREATE FUNCTION event_partitions_drop(parent text, retention interval, OUT partition text, OUT state text, OUT detail text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
SET lock_timeout = '75ms' -- whoever writes meanwhile waits behind us for no longer than this
AS $$
#variable_conflict use_variable
DECLARE
    space  name := current_schema();
    past   timestamptz := clock_timestamp() - retention;
    oldest record;
    one    record;
    slots  record;
BEGIN
    IF parent IS NULL OR parent NOT IN ('outbox', 'inbox') THEN
        RAISE EXCEPTION 'no event table: %', parent USING HINT = 'outbox or inbox';
    END IF;
    IF retention IS NULL OR retention < interval '1 day' OR retention > interval '400 days' THEN
        RAISE EXCEPTION 'a retention of % is out of range', retention USING HINT = '1 to 400 days';
    END IF;
    IF NOT pg_try_advisory_xact_lock(hashtext('event_partitions_prepare')) THEN
        state := 'busy'; detail := 'another session makes or drops partitions';
        RETURN;
    END IF;
    -- Only what event_partitions_prepare has made: a default partition has another name.
    FOR one IN
        SELECT name, bound, uuidv7_floor(begins) AS first, uuidv7_floor(ends) AS next, ends
        FROM (SELECT c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bound,
                     to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC' AS begins,
                     (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC' AS ends
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
              WHERE p.relname = parent AND p.relnamespace = space::regnamespace AND c.relnamespace = p.relnamespace
                AND c.relname ~ ('^' || parent || '_[0-9]{8}$')) days
        WHERE ends <= past ORDER BY name
    LOOP
        IF one.bound <> format('FOR VALUES FROM (%L) TO (%L)', one.first, one.next) THEN
            RAISE EXCEPTION 'partition % holds other ids than its name says: %', one.name, one.bound USING HINT = 'nothing is dropped; rename or detach it by hand';
        END IF;
        IF parent = 'outbox' THEN
            slots := event_partition_confirmed(one.name);
        END IF;
        IF oldest IS NULL THEN
            oldest := one;
            partition := one.name;
            IF parent = 'outbox' THEN
                state := slots.reason; detail := slots.detail;
            END IF;
        END IF;
        -- Those behind it are sealed by the same call, so that they need not wait one after the other.
        EXIT WHEN state IS NULL;
    END LOOP;
    IF oldest IS NULL THEN
        state := 'none';
        RETURN;
    ELSIF state IS NOT NULL THEN
        RETURN;
    END IF;
    BEGIN
        -- DROP comes last: from then to the commit nobody can use the table.
        UPDATE event_partitions_dropped d SET until = greatest(d.until, oldest.ends) WHERE d.parent = event_partitions_drop.parent;
        DELETE FROM event_partitions_sealed s WHERE s.partition = oldest.name;
        EXECUTE format('DROP TABLE %I.%I', space, oldest.name);
        state := 'dropped';
    EXCEPTION WHEN lock_not_available THEN
        state := 'locked'; detail := 'transactions use the table for longer than the drop waits for them';
    END;
END $$;

-- A session's own temporary tables must not stand in for ours in what runs as the owner.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION event_partitions_prepare(text, integer, integer) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION event_partition_confirmed(text) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION event_partitions_drop(text, interval) SET search_path = %I, pg_temp', current_schema());
END $$;
