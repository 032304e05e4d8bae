-- What the supervisor did, for people: outboxctl status.
CREATE TABLE supervisor_acts (
    id        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    instance  text        NOT NULL,
    connector text        NOT NULL,
    act       text        NOT NULL,
    reason    text        NOT NULL,
    outcome   text        NOT NULL -- done, would (with --dry-run), begun (a resend that is not finished), or the error
);
