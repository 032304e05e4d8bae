ALTER TABLE outbox DROP CONSTRAINT outbox_topic;
DROP TABLE reservations;
DROP TABLE items;
