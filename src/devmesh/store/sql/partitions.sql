-- name: list
-- The partitions of tables, with the months they are for, how large they are, how many rows are in default ones (counted up to a
-- limit), and what month it is by the database's clock. A table without any, or that is not there, has one row without a name.
-- $1 tables, $2 the limit, $3 whether sizes are asked for, which have to wait while a partition is rewritten; bounds, of no relation, do not.
select t.name as table_name, to_regclass(format('mcp.%I', t.name)) is not null as is_there, c.relname as name,
       b.bounds = 'DEFAULT' as is_default,
       (substring(b.bounds from $re$FROM \('([^']+)'\)$re$)::timestamptz at time zone 'UTC')::date as first_day,
       (substring(b.bounds from $re$TO \('([^']+)'\)$re$)::timestamptz at time zone 'UTC')::date as end_day,
       case when b.bounds = 'DEFAULT' then mcp.count_rows(c.relname, $2) end as default_rows,
       case when $3 then pg_total_relation_size(c.oid) end as bytes, date_trunc('month', now() at time zone 'UTC')::date as this_month
from unnest($1::text[]) with ordinality as t (name, place)
left join pg_inherits i on i.inhparent = to_regclass(format('mcp.%I', t.name))
left join pg_class c on c.oid = i.inhrelid
left join lateral (select pg_get_expr(c.relpartbound, 0) as bounds) b on true
order by t.place, first_day;

-- name: count_rows
-- How many rows a partition has. $1 its name.
select mcp.count_rows($1, null);

-- name: try_lock
-- Makes this transaction the only keeper of partitions until it ends, for as long as that takes: true, or false when another is.
-- $1 the lock's number.
select pg_try_advisory_xact_lock($1) and set_config('idle_in_transaction_session_timeout', '0', true) is not null;

-- name: make
-- Makes the partition of a month, or the default one: made, there, busy, in default, or unfit. $1 table, $2 the month's first
-- day, or null.
select mcp.make_partition($1, $2);

-- name: begin_drain
-- Begins to drain a default partition. $1 table, $2 how many months at once.
select b.outcome, b.drain, b.blocks from mcp.begin_drain($1, $2) b;

-- name: copy_drain
-- Copies a piece of a default partition. $1 table, $2 first block, $3 how many blocks.
select mcp.copy_drain($1, $2, $3);

-- name: end_drain
-- Puts what was copied in the place of the default partition: done, busy or overtaken. $1 table, $2 the stand-in.
select mcp.end_drain($1, $2);

-- name: detach
-- Takes a partition out of its table: done or busy. $1 table, $2 partition.
select mcp.detach_partition($1, $2);

-- name: drop_detached
-- Drops what was taken out of a table. $1 table.
select mcp.drop_detached($1);

-- name: oldest_job_alive
-- When the oldest job was made that waits, runs, or may be replayed. No parameters.
select (least((select min(r.created_at) from mcp.jobs_ready r), (select min(l.created_at) from mcp.jobs_leased l),
              (select min(b.created_at) from mcp.jobs_blocked b), (select min(w.created_at) from mcp.jobs_limited w),
              (select min(d.created_at) from mcp.dead_letter_queue d)) at time zone 'UTC')::date as day;

-- name: try_keep_over
-- Has nobody put a job that is over back to work until this transaction ends: kept, or busy while somebody does (job_dependencies.lock).
-- No parameters.
select case when pg_try_advisory_xact_lock(hashtextextended('mcp.jobs', 15)) then 'kept' else 'busy' end as outcome;
