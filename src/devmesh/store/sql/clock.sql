-- name: now
-- The transaction's time by the database's clock.
select now();

-- name: standing
-- Whether the database takes writes, and its clock at this moment. A standby takes none, nor does one that an operator, or a
-- guard of its disk, has set to be read-only.
select pg_is_in_recovery() as is_standby, current_setting('default_transaction_read_only')::boolean as is_read_only,
       clock_timestamp() as clock;
