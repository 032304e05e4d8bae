ALTER TABLE outbox DROP CONSTRAINT outbox_headers;
