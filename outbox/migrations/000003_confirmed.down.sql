DROP FUNCTION outbox_confirmed_ages(name);
DROP FUNCTION outbox_confirm(name, xid8, xid8, text, text, interval);
DROP FUNCTION outbox_log_history();
DROP TABLE outbox_confirmed;
