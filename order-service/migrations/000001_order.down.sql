ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP FUNCTION outbox_topic;
DROP TABLE orders_swept;
DROP TABLE orders;
DROP FUNCTION order_states;
