ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP TABLE payments;
DROP TABLE accounts;
