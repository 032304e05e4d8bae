-- Accounts and payments. The bounds and states are those of payment/payment.go.
-- Money is an integer in minor units.

-- One row a customer. Updated in place again and again: room in the page keeps the
-- updates off the index (HOT).
CREATE TABLE accounts (
    customer_id text   COLLATE "C" NOT NULL PRIMARY KEY,
    balance     bigint NOT NULL CHECK (balance >= 0),
    charged     bigint NOT NULL CHECK (charged >= 0),
    deposited   bigint NOT NULL CHECK (deposited BETWEEN 1 AND 1000000000000000),
    CONSTRAINT accounts_conserved CHECK (deposited = balance + charged)
) WITH (fillfactor = 50);

-- One row an order: the answer to its command, kept for ever, so that the command has
-- its effect once, and its compensation too.
CREATE TABLE payments (
    order_id    uuid        NOT NULL PRIMARY KEY,
    customer_id text        COLLATE "C" NOT NULL,
    amount      bigint      NOT NULL,
    status      text        NOT NULL CHECK (status IN ('CHARGED', 'REFUSED', 'REFUNDED', 'BARRED')),
    reason      text        NOT NULL CHECK (reason IN ('', 'insufficient_funds', 'unknown_customer')),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT payments_reason CHECK ((status = 'REFUSED') = (reason <> '')),
    CONSTRAINT payments_amount CHECK (CASE status WHEN 'BARRED' THEN amount = 0 AND customer_id = '' ELSE amount > 0 AND customer_id <> '' END)
) WITH (fillfactor = 90);

-- A row with a topic that does not exist would stall the connector for ever.
ALTER TABLE outbox ADD CONSTRAINT outbox_topic CHECK (topic IN
    ('payment.success', 'payment.failed', 'payment.compensated', 'payment.dlt'));
