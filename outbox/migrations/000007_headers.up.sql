-- A record above the producer's max.request.size stalls the connector, whichever part of it is too long. Rows that are there are not looked at.
ALTER TABLE outbox ADD CONSTRAINT outbox_headers CHECK (octet_length(type) <= 1000 AND octet_length(traceparent) <= 1000) NOT VALID;
