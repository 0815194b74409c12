-- name: set
-- Takes limits of keys in hand, in one order for everybody, and sets them: first those that there are, as nobody who makes one may have
-- to wait for another one then (see job_locking). $1 tenant, then one entry a key: $2 queues, $3 keys, $4 how
-- many places each has.
with there as materialized (
    select from (select a.* from unnest($2::text[], $3::text[]) as a (queue, concurrency_key) order by a.queue, a.concurrency_key) w
    cross join lateral (select from mcp.job_limits l
                        where l.tenant_id = $1 and l.queue = w.queue and l.concurrency_key = w.concurrency_key limit 1 for update) l
)
insert into mcp.job_limits as m (tenant_id, queue, concurrency_key, concurrency_limit)
select $1, a.* from unnest($2::text[], $3::text[], $4::integer[]) as a (queue, concurrency_key, concurrency_limit)
where (select count(*) from there) >= 0  -- first those
order by a.queue, a.concurrency_key
on conflict (tenant_id, queue, concurrency_key) do update set concurrency_limit = excluded.concurrency_limit
where m.concurrency_limit <> excluded.concurrency_limit;

-- name: otherwise
-- Which of these keys have another limit. One that nobody has has none: who comes to have it brings its own. $1 tenant, then one entry a
-- key: $2 queues, $3 keys, $4 limits.
select a.queue, a.concurrency_key from unnest($2::text[], $3::text[], $4::integer[]) as a (queue, concurrency_key, concurrency_limit)
cross join lateral (select * from mcp.job_limits l
                    where l.tenant_id = $1 and l.queue = a.queue and l.concurrency_key = a.concurrency_key limit 1) m
where m.concurrency_limit <> a.concurrency_limit;

-- name: lock
-- Takes limits of keys in hand, in the same order, and leaves them as they are: no row is written, only locked. A key that nobody had
-- any more gets one. $1 tenant, then one entry a key: $2 queues, $3 keys, $4 how many places it has if it has to be made.
with there as materialized (
    select from (select a.* from unnest($2::text[], $3::text[]) as a (queue, concurrency_key) order by a.queue, a.concurrency_key) w
    cross join lateral (select from mcp.job_limits l
                        where l.tenant_id = $1 and l.queue = w.queue and l.concurrency_key = w.concurrency_key limit 1 for update) l
)
insert into mcp.job_limits as m (tenant_id, queue, concurrency_key, concurrency_limit)
select $1, a.* from unnest($2::text[], $3::text[], $4::integer[]) as a (queue, concurrency_key, concurrency_limit)
where (select count(*) from there) >= 0  -- first those
order by a.queue, a.concurrency_key
on conflict (tenant_id, queue, concurrency_key) do update set concurrency_limit = m.concurrency_limit where false;

-- name: wait
-- Writes that new jobs wait for places. $1 tenant, then one entry a job: $2 jobs, $3 when they were made, $4 when they may run, $5
-- priorities, $6 queues, $7 keys.
insert into mcp.jobs_limited (tenant_id, job_id, created_at, run_at, attempt, retries, priority, is_parent, is_delayed, queue,
                              concurrency_key)
select $1, w.job_id, w.created_at, w.run_at, 0, 0, w.priority, false, w.run_at > clock_timestamp(), w.queue, w.concurrency_key
from unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::smallint[], $6::text[], $7::text[])
     as w (job_id, created_at, run_at, priority, queue, concurrency_key);

-- name: leave
-- These jobs have no place any more. $1 tenant, $2 jobs.
delete from mcp.job_slots s where s.tenant_id = $1 and s.job_id = any($2::uuid[]) returning s.queue, s.concurrency_key, 1 as concurrency_limit;

-- name: hold_back
-- Takes jobs with a key out of their queues, into which this transaction has put them: they wait for a place first. The others
-- stay. $1 tenant, $2 jobs.
with found as materialized (
    select h.place, p.job_id, p.concurrency_key, p.concurrency_limit from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select * from mcp.job_places k where k.tenant_id = $1 and k.job_id = a.job_id limit 1) p
    cross join generate_series(1, 5) as level (priority)
    cross join lateral (select r.ctid as place from mcp.jobs_ready r
                        where r.tenant_id = $1 and r.queue = p.queue and r.priority = level.priority and r.run_at = p.run_at
                          and r.job_id = a.job_id limit 1) h
    where p.concurrency_key is not null
), gone as (
    delete from mcp.jobs_ready r where r.ctid = any(array(select found.place from found)) returning r.*
), back as materialized (
    select g.*, found.concurrency_key, found.concurrency_limit from gone g full join found on found.job_id = g.job_id
), waiting as (
    insert into mcp.jobs_limited (tenant_id, job_id, created_at, run_at, attempt, retries, priority, is_parent, is_delayed, queue,
                                  concurrency_key)
    select $1, b.job_id, b.created_at, b.run_at, b.attempt, b.retries, b.priority, b.is_parent, b.run_at > clock_timestamp(), b.queue,
           b.concurrency_key
    from back b where b.queue is not null
)
select b.queue, b.concurrency_key, b.concurrency_limit from back b where b.queue is not null;

-- name: admit
-- Gives the free places of keys, whose limits this transaction has locked, to those that wait for them: highest priority first, then
-- oldest. From now on they lie in their queues. One that is being cancelled is waited for, and the next one has its place when it is
-- gone: nobody else would give it. $1 tenant, $2 queues, $3 keys.
with free as materialized (
    select m.queue, m.concurrency_key, greatest(m.concurrency_limit - taken.count, 0) as count
    from unnest($2::text[], $3::text[]) as a (queue, concurrency_key)
    cross join lateral (select * from mcp.job_limits l
                        where l.tenant_id = $1 and l.queue = a.queue and l.concurrency_key = a.concurrency_key limit 1) m
    cross join lateral (select count(*) from mcp.job_slots s
                        where s.concurrency_key = m.concurrency_key and s.queue = m.queue and s.tenant_id = $1) taken
), next as materialized (
    select n.job_id from free f
    cross join lateral (select w.job_id from mcp.jobs_limited w
                        where w.concurrency_key = f.concurrency_key and w.queue = f.queue and w.tenant_id = $1 and not w.is_delayed
                        order by w.priority desc, w.run_at, w.job_id limit f.count for update) n
), gone as (
    delete from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = any(array(select next.job_id from next)) returning w.*
), timed as materialized (
    select g.*, (select clock_timestamp()) as ready_at from gone g
), placed as (
    insert into mcp.job_slots (tenant_id, job_id, ready_at, queue, concurrency_key)
    select $1, t.job_id, t.ready_at, t.queue, t.concurrency_key from timed t
)
insert into mcp.jobs_ready (tenant_id, run_at, job_id, created_at, attempt, retries, priority, is_parent, queue)
select $1, t.ready_at, t.job_id, t.created_at, t.attempt, t.retries, t.priority, t.is_parent, t.queue from timed t
returning job_id;

-- name: forget
-- Removes the limits of keys that nobody waits for and that have no place taken; this transaction has locked them. $1 tenant, $2 queues,
-- $3 keys.
delete from mcp.job_limits m where m.ctid = any(array(
    select k.place from unnest($2::text[], $3::text[]) as a (queue, concurrency_key)
    cross join lateral (select l.ctid as place from mcp.job_limits l
                        where l.tenant_id = $1 and l.queue = a.queue and l.concurrency_key = a.concurrency_key limit 1) k
    left join lateral (select s.job_id from mcp.job_slots s
                       where s.concurrency_key = a.concurrency_key and s.queue = a.queue and s.tenant_id is not distinct from $1
                       limit 1) placed on true
    left join lateral (select w.job_id from mcp.jobs_limited w
                       where w.concurrency_key = a.concurrency_key and w.queue = a.queue and w.tenant_id is not distinct from $1
                       limit 1) waiting on true
    where placed.job_id is null and waiting.job_id is null));

-- name: due
-- Those of the waiting whose time has come, and their keys. $1 tenant, $2 how many.
select d.job_id, d.queue, d.concurrency_key from mcp.jobs_limited d
where d.is_delayed and d.run_at <= now() and d.tenant_id is not distinct from $1 order by d.run_at limit $2;

-- name: come_due
-- Those of these jobs that wait for a place may have one from now on; the limits of their keys are locked. $1 tenant, $2 jobs.
update mcp.jobs_limited w set is_delayed = false
where w.ctid = any(array(
    select h.place from unnest($2::uuid[]) as a (job_id)
    cross join lateral (select d.ctid as place from mcp.jobs_limited d
                        where d.tenant_id = $1 and d.job_id = a.job_id and d.is_delayed limit 1 for update skip locked) h))
returning w.queue, w.concurrency_key, 1 as concurrency_limit;

-- name: end
-- Ends jobs that wait for a place as cancelled. $1 tenant, $2 jobs, $3 why, as JSON.
with gone as (
    delete from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = any($2::uuid[])
    returning w.job_id, w.queue, w.attempt, w.retries, w.is_parent
), kept as (
    insert into mcp.job_executions (tenant_id, job_id, finished_at, attempt, retries, outcome, error)
    select $1, g.job_id, clock_timestamp(), g.attempt + 1, g.retries, 'CANCELLED', $3::json from gone g
)
select g.job_id, g.queue, g.attempt + 1 as attempt, g.is_parent from gone g;

-- name: ids_of_queue
-- Those that wait for a place in a queue. $1 tenant, $2 queue, $3 how many.
select w.job_id from mcp.jobs_limited w where w.tenant_id = $1 and w.queue = $2 order by w.job_id limit $3;

-- name: take
-- Takes a job out of those that wait for a place. $1 tenant, $2 the job.
delete from mcp.jobs_limited w where w.tenant_id = $1 and w.job_id = $2 returning w.*;

-- name: standing
-- What a job that waits for a place waits for. $1 tenant, $2 the job.
select w.concurrency_key, w.is_delayed, m.concurrency_limit, held.count from mcp.jobs_limited w
cross join lateral (select l.concurrency_limit from mcp.job_limits l
                    where l.tenant_id = $1 and l.queue = w.queue and l.concurrency_key = w.concurrency_key limit 1) m
cross join lateral (select count(*) from mcp.job_slots s
                    where s.concurrency_key = w.concurrency_key and s.queue = w.queue and s.tenant_id = $1) held
where w.tenant_id = $1 and w.job_id = $2;

-- name: promote
-- Raises the priority of jobs that have waited for a place for long, as `jobs.promote` does for those in their queues. $1 tenant,
-- $2 after how many seconds from priority 1, $3 from 2 and 3, $4 how many of each priority.
with old as materialized (
    select h.job_id
    from (values (1::smallint, $2::double precision), (2, $3::double precision), (3, $3::double precision)) as level (priority, after_s)
    cross join lateral (select w.job_id from mcp.jobs_limited w
                        where w.tenant_id = $1 and w.priority = level.priority and w.priority <= 3 and not w.is_delayed
                          and w.run_at <= now() - make_interval(secs => level.after_s)
                        order by w.run_at, w.job_id limit $4 for update skip locked) h
    where level.after_s > 0
)
update mcp.jobs_limited w set priority = case w.priority when 1 then 2 else 4 end
where w.tenant_id = $1 and w.job_id = any(array(select old.job_id from old))
returning w.job_id, w.queue, w.attempt, w.priority;
