-- Stock and its reservations. The bounds and states are those of stock/stock.go.

-- One row an article. Updated in place again and again: room in the page keeps the
-- updates off the index (HOT).
CREATE TABLE items (
    sku       text   COLLATE "C" NOT NULL PRIMARY KEY,
    available bigint NOT NULL CHECK (available >= 0),
    reserved  bigint NOT NULL CHECK (reserved >= 0),
    received  bigint NOT NULL CHECK (received BETWEEN 1 AND 1000000000000000),
    CONSTRAINT items_conserved CHECK (received = available + reserved)
) WITH (fillfactor = 50);

-- One row an order: the answer to its command, kept for ever, so that the command has
-- its effect once, and its compensation too.
CREATE TABLE reservations (
    order_id   uuid        NOT NULL PRIMARY KEY,
    status     text        NOT NULL CHECK (status IN ('RESERVED', 'REFUSED', 'RELEASED', 'BARRED')),
    reason     text        NOT NULL CHECK (reason IN ('', 'insufficient_stock', 'unknown_item')),
    items      json        NOT NULL, -- [{"sku":…,"quantity":…}], one line an SKU, sorted
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reservations_reason CHECK ((status = 'REFUSED') = (reason <> '')),
    CONSTRAINT reservations_items CHECK ((status = 'BARRED') = (json_array_length(items) = 0))
) WITH (fillfactor = 90);

-- A row with a topic that does not exist would stall the connector for ever.
ALTER TABLE outbox ADD CONSTRAINT outbox_topic CHECK (topic IN
    ('stock.success', 'stock.failed', 'stock.compensated', 'stock.dlt'));
