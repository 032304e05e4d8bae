ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP FUNCTION outbox_topic;
DROP TABLE payments;
DROP TABLE accounts;
DROP FUNCTION payment_state;
