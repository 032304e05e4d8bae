CREATE OR REPLACE FUNCTION event_partition_confirmed(partition text, OUT reason text, OUT detail text)
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

CREATE OR REPLACE FUNCTION event_partitions_drop(parent text, retention interval, OUT partition text, OUT state text, OUT detail text)
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

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION event_partition_confirmed(text) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION event_partitions_drop(text, interval) SET search_path = %I, pg_temp', current_schema());
END $$;
