-- name: insert
-- Makes a schedule. No row: the name is taken. $1 tenant, $2 id, $3 the caller's key, $4 name, $5 cron or null, $6 interval in seconds or
-- null, $7 time zone, $8 when it begins, $9 when it ends or null, $10 when it fires first, $11 what becomes of missed times, $12 the job.
insert into mcp.schedules (tenant_id, schedule_id, created_by_key_id, name, cron, interval_s, time_zone, starts_at, ends_at, next_fire_at,
                           missed, job)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::json)
on conflict (name, tenant_id) do nothing
returning *;

-- name: lock_name
-- One at a time gives a schedule of a tenant a name: each sees who has it by then. $1 tenant, $2 name.
select pg_advisory_xact_lock(hashtextextended($1::uuid::text || $2::text, 16));

-- name: count
-- How many a tenant has, up to a number. $1 tenant, $2 the number.
select count(*) from (select from mcp.schedules s where s.tenant_id = $1 limit $2) found;

-- name: get
-- $1 tenant, $2 id.
select s.* from mcp.schedules s where s.tenant_id = $1 and s.schedule_id = $2;

-- name: lock
-- The same, for a change. $1 tenant, $2 id.
select s.* from mcp.schedules s where s.tenant_id = $1 and s.schedule_id = $2 for update;

-- name: page
-- A page of schedules, newest first. $1 tenant, $2 ids below this one or null, $3 a name or null, $4 how many, $5 up to how many bytes,
-- as they are stored, and one more. `found` is how many there were of $4.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.job)) over (order by f.schedule_id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select s.* from mcp.schedules s
        where s.tenant_id = $1 and ($2::uuid is null or s.schedule_id < $2) and ($3::text is null or s.name = $3)
        order by s.schedule_id desc limit $4) f) p
where coalesce(p.bytes_before, 0) < $5 order by p.schedule_id desc;

-- name: change
-- Changes a schedule that this transaction has locked. $1 tenant, $2 id, then as for `insert`: $3 cron, $4 interval, $5 time zone, $6
-- when it ends, $7 when it fires next, $8 missed times, $9 the job, $10 name.
update mcp.schedules s
set cron = $3, interval_s = $4, time_zone = $5, ends_at = $6, next_fire_at = $7, missed = $8, job = $9::text::json, name = $10,
    updated_at = now()
where s.tenant_id = $1 and s.schedule_id = $2
returning s.*;

-- name: name_of_another
-- Whether another schedule has a name. $1 tenant, $2 id, $3 name.
select s.schedule_id from mcp.schedules s where s.name = $3 and s.tenant_id = $1 and s.schedule_id <> $2;

-- name: set_paused
-- Pauses a schedule, or has it go on. $1 tenant, $2 id, $3 whether it pauses, $4 when it fires next.
update mcp.schedules s
set paused_at = case when $3 then coalesce(s.paused_at, now()) end, next_fire_at = $4, updated_at = now()
where s.tenant_id = $1 and s.schedule_id = $2
returning s.*;

-- name: delete
-- $1 tenant, $2 id.
delete from mcp.schedules s where s.tenant_id = $1 and s.schedule_id = $2 returning s.*;

-- name: due
-- Locks schedules that are due, but for those that another node is dealing with. $1 tenant, $2 how many, $3 which are left out.
select s.* from mcp.schedules s
where s.paused_at is null and s.next_fire_at <= (select clock_timestamp()) and s.tenant_id is not distinct from $1
  and s.schedule_id <> all($3::uuid[])
order by s.next_fire_at limit $2 for update skip locked;

-- name: fired
-- Writes what became of schedules that this transaction has locked. $1 tenant, then one entry a schedule: $2 ids, $3 when they fire
-- next, or null, $4 the last time that was due, or null for as it was, $5 the last job, or null for as it was, $6 how many jobs, $7 how
-- many times were missed.
update mcp.schedules s
set next_fire_at = ($3::timestamptz[])[array_position($2::uuid[], s.schedule_id)],
    last_fired_at = coalesce(($4::timestamptz[])[array_position($2::uuid[], s.schedule_id)], s.last_fired_at),
    last_job_id = coalesce(($5::uuid[])[array_position($2::uuid[], s.schedule_id)], s.last_job_id),
    fired_count = s.fired_count + ($6::integer[])[array_position($2::uuid[], s.schedule_id)],
    missed_count = s.missed_count + ($7::integer[])[array_position($2::uuid[], s.schedule_id)]
where s.tenant_id = $1 and s.schedule_id = any($2::uuid[])
returning s.schedule_id, s.next_fire_at, s.last_fired_at, s.last_job_id, s.fired_count, s.missed_count;
