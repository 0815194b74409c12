-- name: try_lock
-- Takes the migration lock for the session if it is free. It must not wait in the server: a waiting statement holds a
-- snapshot, and CREATE INDEX CONCURRENTLY would wait for that, and so for itself. $1 the lock's number.
select pg_try_advisory_lock($1);

-- name: is_locked
-- Whether somebody holds the migration lock of this database, and so is migrating. $1 the lock's number.
select exists (
    select from pg_locks
    where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
      and classid::bigint << 32 | objid::bigint = $1::bigint and objsubid = 1 and granted);

-- name: is_bootstrapped
-- Whether the table of applied migrations is there. No parameters.
select to_regclass('mcp.schema_migrations') is not null;

-- name: is_current
-- Whether that table has the column that was added to it last. No parameters.
select exists (select from pg_attribute where attrelid = to_regclass('mcp.schema_migrations')
                                          and attname = 'works_with' and not attisdropped);

-- name: list
-- What is recorded, by version. works_with is taken out of the row as a whole, because a database that an earlier program
-- made has no such column until it is migrated. No parameters.
select version, name, state, checksum, started_at, finished_at, duration_ms, program_version, error,
       (to_jsonb(m) ->> 'works_with')::bigint as works_with
from mcp.schema_migrations m order by version;

-- name: now
-- The database's clock. No parameters.
select clock_timestamp();

-- name: record_applied
-- Records a migration as applied. $1 version, $2 name, $3 checksum, $4 when it was begun, $5 the program's version, $6 the
-- oldest version whose programs keep working with it, or null.
insert into mcp.schema_migrations as m
    (version, name, state, checksum, started_at, finished_at, duration_ms, program_version, works_with)
values ($1, $2, 'applied', $3, $4, clock_timestamp(), extract(epoch from clock_timestamp() - $4) * 1000, $5, $6)
on conflict (version) do update set
    state = 'applied', finished_at = excluded.finished_at, duration_ms = excluded.duration_ms, error = null;

-- name: record_dirty
-- Records a migration as begun or failed. $1 to $6 as for record_applied, $7 the error or null while it runs.
insert into mcp.schema_migrations as m (version, name, state, checksum, started_at, program_version, works_with, error)
values ($1, $2, 'dirty', $3, $4, $5, $6, $7)
on conflict (version) do update set state = 'dirty', error = excluded.error;

-- name: forget
-- Removes the record of a migration that was taken back. $1 version.
delete from mcp.schema_migrations where version = $1;
