ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP TABLE orders_swept;
DROP TABLE orders;
