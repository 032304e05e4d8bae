-- Whether the inbox has the id of a dead letter's event since it became one: not if it could not judge the id. Then another record with
-- the same id may be handled, and the letter must not be redriven after it. NULL: of a program that did not say.
ALTER TABLE dead_letters ADD COLUMN recorded boolean;
