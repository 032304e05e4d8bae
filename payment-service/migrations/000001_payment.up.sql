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

-- Whether a payment can be in this state.
--
-- The rule is a function, because PostgreSQL reads the expression of a CHECK from its stored text anew in every statement that
-- writes a row, and a function once in a session: with long expressions that was a tenth of its CPU time.
CREATE FUNCTION payment_state(status text, reason text, customer_id text, amount bigint)
RETURNS boolean IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql AS $$ BEGIN
    RETURN status IN ('CHARGED', 'REFUSED', 'REFUNDED', 'BARRED')
       AND reason IN ('', 'insufficient_funds', 'unknown_customer')
       AND (status = 'REFUSED') = (reason <> '')
       AND CASE status WHEN 'BARRED' THEN amount = 0 AND customer_id = '' ELSE amount > 0 AND customer_id <> '' END;
END $$;

-- One row an order: the answer to its command, kept for ever, so that the command has
-- its effect once, and its compensation too.
CREATE TABLE payments (
    order_id    uuid        NOT NULL PRIMARY KEY,
    customer_id text        COLLATE "C" NOT NULL,
    amount      bigint      NOT NULL,
    status      text        NOT NULL,
    reason      text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT payments_state CHECK (payment_state(status, reason, customer_id, amount))
) WITH (fillfactor = 90);

-- A row with a topic that does not exist would stall the connector for ever.
CREATE FUNCTION outbox_topic(topic text) RETURNS boolean IMMUTABLE PARALLEL SAFE LANGUAGE plpgsql AS $$ BEGIN
    RETURN topic IN ('payment.success', 'payment.failed', 'payment.compensated', 'payment.dlt');
END $$;
ALTER TABLE outbox ADD CONSTRAINT outbox_topic CHECK (outbox_topic(topic));
