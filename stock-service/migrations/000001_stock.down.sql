ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP FUNCTION outbox_topic;
DROP TABLE reservations;
DROP TABLE items;
DROP FUNCTION reservation_state;
