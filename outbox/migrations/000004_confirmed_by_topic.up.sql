-- What a new slot may leave out is known by topic now: a topic that is made anew does not have what it had; the others still do.
-- And what its consumer's inbox has need not be in Kafka.
LOCK TABLE outbox_confirmed IN ACCESS EXCLUSIVE MODE;
DELETE FROM outbox_confirmed;
ALTER TABLE outbox_confirmed
    DROP COLUMN since,
    DROP COLUMN topics,
    ADD COLUMN topics    text[]      NOT NULL,
    ADD COLUMN topic_ids text[]      NOT NULL, -- of each topic, as who keeps it calls it
    ADD COLUMN since     xid8[]      NOT NULL, -- of each topic: its rows of all transactions from this one to before are in Kafka, or in an inbox
    ADD COLUMN looked    timestamptz NOT NULL; -- when it was seen so, by this server's clock

-- Keeps, by a slot, which rows are in Kafka, as was known of a log when it was looked: of each topic those of all transactions from its
-- since to before; before is 0: nothing is known. With moments, what is kept is taken for true so long after the look; nothing is kept then
-- that was not. False: it is not kept. What a later look has found stands, unless nothing is known any more, and who was stopped between its look and this call must not say what
-- was true long ago. What was found in the future was found before the clock was set back.
CREATE FUNCTION outbox_confirm(slot name, topics text[], topic_ids text[], since xid8[], before xid8, history text, looked timestamptz, moments interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF moments > interval '0' THEN
        UPDATE outbox_confirmed c SET topics = outbox_confirm.topics, topic_ids = outbox_confirm.topic_ids, since = outbox_confirm.since,
            before = outbox_confirm.before, history = outbox_confirm.history, looked = outbox_confirm.looked, until = outbox_confirm.looked + moments
        WHERE c.slot = outbox_confirm.slot AND (c.looked <= outbox_confirm.looked OR c.looked > clock_timestamp());
    ELSIF before = '0' OR looked > clock_timestamp() - interval '20 s' THEN
        INSERT INTO outbox_confirmed AS c (slot, topics, topic_ids, since, before, history, looked, until)
        VALUES (slot, topics, topic_ids, since, before, history, looked, '-infinity')
        ON CONFLICT ON CONSTRAINT outbox_confirmed_pkey DO UPDATE SET topics = excluded.topics, topic_ids = excluded.topic_ids,
            since = excluded.since, before = excluded.before, history = excluded.history, looked = least(greatest(c.looked, excluded.looked), clock_timestamp()), until = excluded.until
        WHERE c.looked <= excluded.looked OR c.looked > clock_timestamp() OR excluded.before = '0';
    ELSE
        RETURN false;
    END IF;
    RETURN FOUND;
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
    WHERE c.slot = outbox_confirmed_topics.slot AND c.until > clock_timestamp() AND c.looked <= clock_timestamp() AND c.history = outbox_log_history()
      AND t.since < c.before AND c.before::text::bigint BETWEEN newest - 999000000 AND newest
$$;

-- A connector that is still registered as it was before sends all of the outbox.
CREATE OR REPLACE FUNCTION outbox_confirmed_ages(slot name) RETURNS int4range
LANGUAGE sql STABLE
AS $$ SELECT int4range 'empty' $$;

-- To say too much would lose events. Who could say it before still can.
REVOKE EXECUTE ON FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval) FROM PUBLIC;
DO $$
DECLARE
    grantee oid;
BEGIN
    FOR grantee IN SELECT a.grantee FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = 'outbox_confirm(name, xid8, xid8, text, text, interval)'::regprocedure
        AND a.privilege_type = 'EXECUTE' AND a.grantee NOT IN (0, p.proowner) LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval) TO %s', grantee::regrole);
    END LOOP;
    -- A session's own temporary tables must not stand in for ours in what runs as the owner.
    EXECUTE format('ALTER FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION outbox_confirmed_topics(name) SET search_path = %I, pg_temp', current_schema());
END $$;
DROP FUNCTION outbox_confirm(name, xid8, xid8, text, text, interval);
