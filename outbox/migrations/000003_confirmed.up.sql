-- What a new slot may leave out. A connector whose slot was lost or dropped makes a new one and sends the outbox
-- again (a snapshot): all that is retained, unless a row here says which of it Kafka has. Who watches the slot
-- (outboxctl supervise) keeps that here, and lets it be taken for true only while the slot is lost or missing, for some moments at a
-- time: a connector that reads the outbox again for another reason, because Kafka has lost its records, must send
-- all of it.
CREATE TABLE outbox_confirmed (
    slot    name        NOT NULL PRIMARY KEY,
    xid     xid8        NOT NULL, -- Kafka has the rows of all transactions before this one
    history text        NOT NULL, -- of which log that is known (outbox_log_history)
    topics  text        NOT NULL, -- and of which topics, as who keeps it calls them: a topic that is made anew is empty
    until   timestamptz NOT NULL  -- it is taken for true until then
);

-- The cluster and the timeline. Another cluster has other numbers for its transactions, and so has a standby that was promoted, or a
-- backup, from where it left what its primary went on with.
CREATE FUNCTION outbox_log_history() RETURNS text
LANGUAGE sql STABLE
AS $$ SELECT system_identifier || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) FROM pg_control_system() $$;

-- Keeps that Kafka has, by a slot, the rows of all transactions before xid, as is known of a log and of topics, to be taken for
-- true for some moments, or none. Null: nothing is known.
CREATE FUNCTION outbox_confirm(slot name, xid xid8, history text, topics text, moments interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF xid IS NULL THEN
        DELETE FROM outbox_confirmed c WHERE c.slot = outbox_confirm.slot;
        RETURN;
    END IF;
    INSERT INTO outbox_confirmed VALUES (slot, xid, history, topics, clock_timestamp() + moments)
    ON CONFLICT ON CONSTRAINT outbox_confirmed_pkey DO UPDATE SET xid = excluded.xid, history = excluded.history, topics = excluded.topics, until = excluded.until;
END $$;

-- A row of the outbox is not known to be in Kafka if age(xmin) is this at most. xmin is the transaction that
-- inserted the row, or one within that, which has a higher number; rows are never updated. The largest integer if
-- nothing is known, or of a transaction so long ago that its age would soon be that of a newer one.
CREATE FUNCTION outbox_unconfirmed_age(slot name) RETURNS integer
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    SELECT coalesce((
        SELECT age(c.xid::xid)
        FROM outbox_confirmed c
        WHERE c.slot = outbox_unconfirmed_age.slot AND c.until > clock_timestamp() AND c.history = outbox_log_history()
          AND c.xid <= pg_snapshot_xmax(pg_current_snapshot())
          AND pg_snapshot_xmax(pg_current_snapshot())::text::bigint - c.xid::text::bigint < 1000000000
    ), 2147483647)
$$;

-- To say too much would lose events.
REVOKE EXECUTE ON FUNCTION outbox_confirm(name, xid8, text, text, interval) FROM PUBLIC;

-- A session's own temporary tables must not stand in for ours in what runs as the owner.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_confirm(name, xid8, text, text, interval) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_unconfirmed_age(name) SET search_path = %I, pg_temp', current_schema());
END $$;
