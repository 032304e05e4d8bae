DROP FUNCTION outbox_confirmed_topics(name);
DROP FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval);
DROP FUNCTION outbox_confirmed_ages(name);
DROP TABLE outbox_confirmed;

CREATE TABLE outbox_confirmed (
    slot    name        NOT NULL PRIMARY KEY,
    since   xid8        NOT NULL, -- Kafka has the rows of all transactions from this one
    before  xid8        NOT NULL, -- to before this one
    history text        NOT NULL, -- of which log that is known (outbox_log_history)
    topics  text        NOT NULL, -- and of which topics, as who keeps it calls them: a topic that is made anew is empty
    until   timestamptz NOT NULL  -- it is taken for true until then
);

-- Keeps that Kafka has, by a slot, the rows of all transactions from since to before another, as is known of a log and of topics. With
-- moments, what is kept is taken for true so long; nothing is kept then that was not. Before is null: nothing is known.
CREATE FUNCTION outbox_confirm(slot name, since xid8, before xid8, history text, topics text, moments interval) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF before IS NULL THEN
        DELETE FROM outbox_confirmed c WHERE c.slot = outbox_confirm.slot;
    ELSIF moments > interval '0' THEN
        UPDATE outbox_confirmed c SET since = outbox_confirm.since, before = outbox_confirm.before, history = outbox_confirm.history, topics = outbox_confirm.topics,
            until = clock_timestamp() + moments
        WHERE c.slot = outbox_confirm.slot;
    ELSE
        INSERT INTO outbox_confirmed VALUES (slot, since, before, history, topics, '-infinity')
        ON CONFLICT ON CONSTRAINT outbox_confirmed_pkey DO UPDATE
            SET since = excluded.since, before = excluded.before, history = excluded.history, topics = excluded.topics, until = excluded.until;
    END IF;
END $$;

-- A row of the outbox is in Kafka if age(xmin) is one of these. xmin is the transaction that inserted the row, or
-- one within that, which has a higher number; rows are never updated. Ages end where that of an older transaction would soon be that of
-- a newer one.
CREATE FUNCTION outbox_confirmed_ages(slot name) RETURNS int4range
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
    SELECT coalesce((
        SELECT int4range(age(c.before::xid) + 1, CASE WHEN newest - c.since::text::bigint < 1000000000 THEN age(c.since::xid) ELSE 1000000000 END, '[]')
        FROM outbox_confirmed c, CAST(pg_snapshot_xmax(pg_current_snapshot())::text AS bigint) newest
        WHERE c.slot = outbox_confirmed_ages.slot AND c.until > clock_timestamp() AND c.history = outbox_log_history()
          AND c.since < c.before AND c.before::text::bigint BETWEEN newest - 999999998 AND newest
    ), 'empty')
$$;

-- To say too much would lose events.
REVOKE EXECUTE ON FUNCTION outbox_confirm(name, xid8, xid8, text, text, interval) FROM PUBLIC;

-- A session's own temporary tables must not stand in for ours in what runs as the owner.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_confirm(name, xid8, xid8, text, text, interval) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_confirmed_ages(name) SET search_path = %I, pg_temp', current_schema());
END $$;
