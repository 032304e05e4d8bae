-- Requests that were answered: the key that the client chose, a hash of what it asked,
-- and what came of it. Rows are inserted in the transaction that has the effect, never
-- updated, and deleted after a day.
CREATE TABLE idempotency_keys (
    scope      text        NOT NULL, -- the operation; keys of two operations never meet
    key        text        NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 255),
    hash       bytea       NOT NULL CHECK (octet_length(hash) = 32), -- SHA-256 of the request
    response   text        NOT NULL, -- what the request resulted in, for example the order's id
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, key)
);

-- For the deletion, oldest first.
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
