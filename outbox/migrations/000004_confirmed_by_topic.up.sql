-- What a new slot may leave out is known by topic now: a topic that is made anew does not have what it had; the others still do.
-- And what its consumer's inbox has need not be in Kafka.
DELETE FROM outbox_confirmed;
ALTER TABLE outbox_confirmed
    DROP COLUMN since,
    DROP COLUMN topics,
    ADD COLUMN topics    text[] NOT NULL,
    ADD COLUMN topic_ids text[] NOT NULL, -- of each topic, as who keeps it calls it
    ADD COLUMN since     xid8[] NOT NULL; -- of each topic: its rows of all transactions from this one to before are in Kafka, or in an inbox

-- Keeps, by a slot, which rows are in Kafka, as is known of a log: of each topic those of all transactions from its since to before. With
-- until, what is kept is taken for true until then, by this server's clock; nothing is kept then that was not. Before is null: nothing is known.
-- A time and not a duration: who was stopped between its look and this call must not say what was true long ago.
DROP FUNCTION outbox_confirm(name, xid8, xid8, text, text, interval);
CREATE FUNCTION outbox_confirm(slot name, topics text[], topic_ids text[], since xid8[], before xid8, history text, until timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF before IS NULL THEN
        DELETE FROM outbox_confirmed c WHERE c.slot = outbox_confirm.slot;
    ELSIF until IS NOT NULL THEN
        UPDATE outbox_confirmed c SET topics = outbox_confirm.topics, topic_ids = outbox_confirm.topic_ids, since = outbox_confirm.since,
            before = outbox_confirm.before, history = outbox_confirm.history, until = outbox_confirm.until
        WHERE c.slot = outbox_confirm.slot;
    ELSE
        INSERT INTO outbox_confirmed AS c (slot, topics, topic_ids, since, before, history, until)
        VALUES (slot, topics, topic_ids, since, before, history, '-infinity')
        ON CONFLICT ON CONSTRAINT outbox_confirmed_pkey DO UPDATE SET topics = excluded.topics, topic_ids = excluded.topic_ids,
            since = excluded.since, before = excluded.before, history = excluded.history, until = excluded.until;
    END IF;
END $$;

-- A row of the outbox may be left out if age(xmin) is one of its topic's. xmin is the transaction that inserted the row, or
-- one within that, which has a higher number; rows are never updated. Ages end where that of an older transaction would soon be that of
-- a newer one.
CREATE FUNCTION outbox_confirmed_topics(slot name) RETURNS TABLE (topic text, ages int4range)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    SELECT t.topic, int4range(age(c.before::xid) + 1, CASE WHEN newest - t.since::text::bigint < 1000000000 THEN age(t.since::xid) ELSE 1000000000 END, '[]')
    FROM outbox_confirmed c, unnest(c.topics, c.since) t (topic, since), CAST(pg_snapshot_xmax(pg_current_snapshot())::text AS bigint) newest
    WHERE c.slot = outbox_confirmed_topics.slot AND c.until > clock_timestamp() AND c.history = outbox_log_history()
      AND t.since < c.before AND c.before::text::bigint BETWEEN newest - 999999998 AND newest
$$;

-- A connector that is still registered as it was before sends all of the outbox.
CREATE OR REPLACE FUNCTION outbox_confirmed_ages(slot name) RETURNS int4range
LANGUAGE sql STABLE
AS $$ SELECT int4range 'empty' $$;

-- To say too much would lose events.
REVOKE EXECUTE ON FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz) FROM PUBLIC;

-- A session's own temporary tables must not stand in for ours in what runs as the owner.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_confirmed_topics(name) SET search_path = %I, pg_temp', current_schema());
END $$;
