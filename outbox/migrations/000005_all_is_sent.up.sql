-- With moments, outbox_confirm keeps nothing either where nothing is known (before is 0): somebody wants all to be sent, and who knew
-- something before must not say it again.
CREATE OR REPLACE FUNCTION outbox_confirm(slot name, topics text[], topic_ids text[], since xid8[], before xid8, history text, looked timestamptz, moments interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT
AS $$
#variable_conflict use_variable
BEGIN
    IF moments > interval '0' THEN
        UPDATE outbox_confirmed c SET topics = outbox_confirm.topics, topic_ids = outbox_confirm.topic_ids, since = outbox_confirm.since,
            before = outbox_confirm.before, history = outbox_confirm.history, looked = outbox_confirm.looked, until = outbox_confirm.looked + moments
        WHERE c.slot = outbox_confirm.slot AND c.before <> '0' AND (c.looked <= outbox_confirm.looked OR c.looked > clock_timestamp());
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

-- A session's own temporary tables must not stand in for ours in what runs as the owner.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_confirm(name, text[], text[], xid8[], xid8, text, timestamptz, interval) SET search_path = %I, pg_temp', current_schema());
END $$;
