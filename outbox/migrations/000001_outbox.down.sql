DROP PUBLICATION outbox_pub;
DROP TABLE outbox;
DROP FUNCTION event_partitions_window(text);
DROP FUNCTION event_partitions_prepare(text, integer, integer);
DROP FUNCTION uuidv7_floor(timestamptz);
