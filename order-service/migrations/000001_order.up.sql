-- Orders. The states are those of order/order.go.
--
-- No index has a column that changes while the saga runs, not even in a predicate: so the updates
-- of a row are HOT (they touch no index), and pages have room for them (fillfactor): a row
-- doubles its size.
CREATE TABLE orders (
    id              uuid        NOT NULL PRIMARY KEY, -- UUIDv7: in the order of placing
    customer_id     text        NOT NULL,
    status          text        NOT NULL DEFAULT 'IN_PROGRESS' CHECK (status IN ('IN_PROGRESS', 'SUCCESS', 'FAILED')),
    payment_status  text        NOT NULL DEFAULT 'IN_PROGRESS',
    stock_status    text        NOT NULL DEFAULT 'IN_PROGRESS',
    failure_reason  text        NOT NULL DEFAULT '',
    needs_attention boolean     NOT NULL DEFAULT false,
    payment_command uuid        NOT NULL, -- the event ids of the two commands
    stock_command   uuid        NOT NULL,
    amount          bigint      NOT NULL CHECK (amount > 0),
    items           text        NOT NULL, -- JSON, as it was ordered
    -- What happened after the placing, one JSON object a line, only appended to. The placing
    -- itself is in the columns.
    timeline        text        NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,

    CONSTRAINT orders_steps CHECK (
        payment_status IN ('IN_PROGRESS', 'SUCCESS', 'FAILED', 'COMPENSATING', 'COMPENSATED') AND
        stock_status   IN ('IN_PROGRESS', 'SUCCESS', 'FAILED', 'COMPENSATING', 'COMPENSATED')),
    CONSTRAINT orders_matrix CHECK (CASE status
        WHEN 'SUCCESS' THEN payment_status = 'SUCCESS' AND stock_status = 'SUCCESS'
        -- An order in progress has no failed step, and not yet both.
        WHEN 'IN_PROGRESS' THEN payment_status IN ('IN_PROGRESS', 'SUCCESS') AND stock_status IN ('IN_PROGRESS', 'SUCCESS')
                            AND NOT (payment_status = 'SUCCESS' AND stock_status = 'SUCCESS')
        -- No step of a failed order stays successful: it is compensated.
        ELSE payment_status <> 'SUCCESS' AND stock_status <> 'SUCCESS' END),
    CONSTRAINT orders_reason CHECK ((status = 'FAILED') = (failure_reason <> '')),
    CONSTRAINT orders_attention CHECK (NOT needs_attention OR payment_status = 'COMPENSATING' OR stock_status = 'COMPENSATING')
) WITH (fillfactor = 30);

CREATE INDEX orders_by_customer ON orders (customer_id, id);

-- How far the orders were looked at for their timeout: none with a lower id is in progress, or will
-- ever be. One row.
CREATE TABLE orders_swept (
    upto uuid NOT NULL
);
INSERT INTO orders_swept VALUES ('00000000-0000-0000-0000-000000000000');

-- A row with a topic that does not exist would stall the connector for ever.
ALTER TABLE outbox ADD CONSTRAINT outbox_topic CHECK (topic IN
    ('payment', 'payment.compensation', 'stock', 'stock.compensation', 'order.dlt'));
