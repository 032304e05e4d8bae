-- The inbox: the ids of the events whose effect is in this database. It builds on
-- the outbox's migrations (partitions by UUIDv7, dead letters leave as events).

CREATE TABLE inbox (
    event_id    uuid        NOT NULL PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (event_id);

-- 11 days back: longer than outbox retention (3 days) plus topic retention (7 days).
-- An event from before the first partition cannot be proven new.
SELECT event_partitions_prepare('inbox', 11, 7);

-- Records that could not be handled, kept until someone decides.
CREATE TABLE dead_letters (
    id          uuid        NOT NULL PRIMARY KEY,
    event_id    text        NOT NULL, -- the header "id" as it was
    event_type  text        NOT NULL,
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    "offset"    bigint      NOT NULL,
    recorded_at timestamptz NOT NULL, -- the record's timestamp
    key         bytea       NOT NULL,
    payload     bytea       NOT NULL,
    traceparent text        NOT NULL,
    error       text        NOT NULL,
    attempts    integer     NOT NULL,
    failed_at   timestamptz NOT NULL,
    status      text        NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'redriven', 'discarded')),
    resolved_at timestamptz,
    resolved_by text,
    reason      text,
    CHECK ((status = 'open') = (resolved_at IS NULL)),
    CHECK ((status = 'open') = (resolved_by IS NULL)),
    CHECK (status <> 'discarded' OR reason <> ''),
    -- One record, one dead letter, also when it is read again. The timestamp tells
    -- apart the records of a topic that was deleted and made anew.
    UNIQUE (topic, partition, "offset", recorded_at)
);

CREATE INDEX dead_letters_open ON dead_letters (id) WHERE status = 'open';
